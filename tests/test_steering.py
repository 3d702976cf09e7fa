"""A channel is turned up, down or off while a picture is made: the value, the picture, the mistakes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tiny import ON_CPU, SHORT, command, tiny_net
from vital_exp import load_model, visualize
from vital_exp.concepts.concepts import Concepts
from vital_exp.concepts.factors import factorise
from vital_exp.engine import objective_and_gradient
from vital_exp.errors import UsageError
from vital_exp.models.identity import identity_of
from vital_exp.models.network import model_space

REFERENCES = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
ASKED = ("transforms=none", "objective=[activation]", "model.layers=[relu]")


def test_the_logit_is_that_of_the_steered_network() -> None:
    """Twin: the network run by hand with the channel changed; its gradient by autograd."""
    module = tiny_net()
    own = load_model(module, size=16)
    pictures = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for steer in ("relu:3:+2sd", "relu:3:-0.5sd", "relu:3:off"):
        values, gradient = objective_and_gradient(
            own, ["class:1", "class:2"], pictures, references=REFERENCES, overrides=[*ASKED, f"steer={steer}"]
        )
        x = model_space(pictures, own).requires_grad_()
        maps = torch.relu(module.bn1(module.conv1(x)))  # type: ignore[operator]
        seen = torch.relu(module.bn1(module.conv1(model_space(REFERENCES, own))))[:, 3]  # type: ignore[operator]
        changed = maps.clone()
        if steer.endswith("off"):
            changed[:, 3] = 0
        else:
            changed[:, 3] = maps[:, 3] + float(steer.split(":")[2][:-2]) * seen.std()
        logits = module.fc(module.layer1(changed).mean((2, 3)))  # type: ignore[operator]
        chosen = logits[[0, 1], [1, 2]]
        torch.testing.assert_close(values, -chosen, atol=1e-5, rtol=1e-5)
        (twin,) = torch.autograd.grad(-chosen.sum(), x)
        torch.testing.assert_close(gradient, twin, atol=1e-5, rtol=1e-4)
    assert not module.relu._forward_hooks  # type: ignore[union-attr]


@pytest.mark.parametrize("method", ["nmf", "pca", "kmeans"])
def test_the_logit_is_that_of_the_network_with_a_concept_changed(method: str, tmp_path: Path) -> None:
    """Twin: the layer's map changed by hand in numpy; after off the concept reads 0, and the others as before."""
    module = tiny_net()
    own = load_model(module, size=16)
    seen = torch.relu(module.bn1(module.conv1(model_space(REFERENCES, own)))).detach()  # type: ignore[operator]
    factors = factorise(seen.permute(0, 2, 3, 1).flatten(0, 2), 3, method)
    meta = {**vars(identity_of(own)), "network": "TinyNet", "layer": "relu", "method": method, "format": 2}
    Concepts(factors, None, {**meta, "label": None, "class": None}).save(tmp_path)
    u, d, m = (part.numpy().astype(float) for part in (factors.components[1], factors.directions[1], factors.mean))

    def reading(maps: np.ndarray) -> np.ndarray:
        return np.einsum("nchw,c->nhw", maps - m[:, None, None], d) / (d @ u)

    pictures = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    maps = torch.relu(module.bn1(module.conv1(model_space(pictures, own)))).detach().numpy()  # type: ignore[operator]
    for amount in (1.5, None):
        steer = f"steer='{tmp_path}#1:{'off' if amount is None else f'+{amount}sd'}'"
        values, _ = objective_and_gradient(own, "class:1", pictures, references=REFERENCES, overrides=[*ASKED, steer])
        change = -reading(maps) if amount is None else amount * reading(seen.numpy()).std(ddof=1)
        changed = maps + np.broadcast_to(change, maps[:, 0].shape)[:, None] * u[:, None, None]
        if amount is None:
            np.testing.assert_allclose(reading(changed), 0, atol=1e-5)
        made = torch.tensor(changed, dtype=torch.float32)
        logits = module.fc(module.layer1(made).mean((2, 3)))  # type: ignore[operator]
        torch.testing.assert_close(values, -logits[:, 1], atol=1e-4, rtol=1e-4)
    with pytest.raises(UsageError, match="3 concepts, 0 to 2"):
        objective_and_gradient(
            own, "class:1", pictures, references=REFERENCES, overrides=[*ASKED, f"steer='{tmp_path}#3:off'"]
        )


def test_another_picture_comes_out_and_the_network_is_as_it_was(workplace: Path) -> None:
    own = load_model(tiny_net(), size=16)
    made = {}
    for steer in ("null", "relu:3:+3sd"):
        asked = ["evaluation=none", "logger=none", "progress=false", *ASKED, f"steer={steer}"]
        made[steer] = visualize(
            own, ["class:1"], method="fourier", references=REFERENCES, steps=3, overrides=asked
        ).images
    assert not torch.equal(*made.values())


@pytest.mark.parametrize(
    ("steer", "words"),
    [
        ("layer3", ("steer=layer3", "+2sd")),
        ("layer3:5=+2", ("steer=layer3:5=+2", "+2sd")),
        ("layr3:5=+2sd", ("steer=layr3", "layer3")),
        ("nowhere#3:off", ("steer=nowhere", "vital-mine concepts")),
        ("layer3:999=off", ("steer=layer3:999=off", "has 96 channels")),
    ],
)
def test_mistakes_are_one_line(
    steer: str, words: tuple[str, ...], workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(*SHORT, *ON_CPU, f"steer={steer}", "hydra.run.dir=run") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert all(word in lines[0] for word in words), lines[0]


def test_the_command_takes_both_spellings(workplace: Path) -> None:
    for number, steer in enumerate(("layer3:5=+2sd", "layer3:5:+2sd")):
        assert command(*SHORT, *ON_CPU, f"steer={steer}", f"hydra.run.dir=run{number}") == 0
    first, second = (Path(f"run{number}/images/class-0.png").read_bytes() for number in (0, 1))
    assert first == second


def test_a_layer_above_all_that_is_read_is_refused(workplace: Path) -> None:
    from vital_exp.errors import UsageError

    own = load_model(tiny_net(), size=16)
    asked = ["objective=[deepdream]", "objective.deepdream.layer=conv1", "transforms=none", "steer=layer1:3:off"]
    with pytest.raises(UsageError, match="no term reads"):
        objective_and_gradient(own, ["class:1"], REFERENCES[:1], references=REFERENCES, overrides=asked)
