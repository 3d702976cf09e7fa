"""Units of a transformer's class token, registers or patches alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from tests.tiny import command, exit_code, image_folder, tiny_net
from vital_exp import load_model, visualize
from vital_exp.commands import evaluate, mine
from vital_exp.errors import UsageError
from vital_exp.mining.units import select_units
from vital_exp.models.network import VisionNetwork, model_space
from vital_exp.models.tokens import token_span
from vital_exp.models.unit_readout import unit_readout
from vital_exp.targets.selection import parse_target
from vital_exp.targets.unit import TOKENS, Target

SIZE, REGISTERS, PATCHES = 32, 4, 16
LAYER = "blocks.1"
QUIET = ("steps=2", "progress=false", "trainer.accelerator=cpu", "logger=none", "batch_size=2")
FACTORY = """
import timm
import torch


def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, embed_dim=16, num_heads=2,
                                 reg_tokens=4, num_classes=0)
"""


@pytest.fixture
def network() -> VisionNetwork:
    scope: dict[str, object] = {}
    exec(FACTORY, scope)  # the same network as on the command line
    return load_model(scope["network"](), size=SIZE)  # type: ignore[operator]


SPANS = {"cls": (0, 1), "register": (1, 1 + REGISTERS), "patches": (1 + REGISTERS, 1 + REGISTERS + PATCHES)}


@pytest.mark.parametrize("tokens", TOKENS)
def test_units_read_their_tokens_alone(network: VisionNetwork, tokens: str) -> None:
    """Read-out and mining agree with the module's own output at those tokens."""
    images = torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        activation = network.taps([LAYER])(model_space(images, network))[0][LAYER]  # (3, 16, 21)
    first, end = SPANS[tokens]
    assert token_span(network, LAYER, tokens) == (first, end)
    wanted = activation[:, 5, first:end].amax(dim=1)
    unit = Target("channel", 5, LAYER, tokens=tokens)
    read = unit_readout(network, [unit]).select([0] * 3)
    torch.testing.assert_close(read.value(activation), wanted)
    torch.testing.assert_close(read.mean(activation), activation[:, 5, first:end].mean(dim=1))
    larger = torch.cat([activation, activation.new_full((3, 16, 7), 9.0)], dim=2)  # as of a picture with more patches
    more = larger[:, 5, first:] if tokens == "patches" else larger[:, 5, first:end]
    torch.testing.assert_close(read.value(larger), more.amax(dim=1))
    mined = select_units(network, [LAYER], 5, tokens=tokens).values(images)[LAYER]
    torch.testing.assert_close(mined[:, 0], wanted)


def test_names_of_tokens_are_read_back() -> None:
    for tokens in TOKENS:
        unit = Target("channel", 7, "blocks.5", tokens=tokens, facet=1, variation=2)
        assert unit.name == f"channel-blocks.5-7-{tokens}_f1_v2"
        assert parse_target(unit.name, None) == unit
        assert parse_target(f"blocks.5:7@{tokens}#1_v2", None) == unit
    assert parse_target("sae-blocks.5-7-cls", None) == Target("sae", 7, "blocks.5", tokens="cls")


@pytest.mark.parametrize("tokens", TOKENS)
def test_a_run_without_classes(tokens: str, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Mining, facets, pictures, metrics and page of a backbone that has no classes."""
    (workplace / "nets.py").write_text(FACTORY)
    image_folder(workplace / "photos", ["a", "b"], count=12)
    own = ("model=python", "model.factory=nets.py:network", f"model.size={SIZE}")
    asked = (
        *QUIET,
        *own,
        "references.root=photos",
        "references.count=4",
        "references.candidates=16",
        "evaluation=none",
    )
    unit = ("target=channel", f"target.layer={LAYER}", "target.index=[3,4]", f"target.position={tokens}")
    assert command(*asked, *unit, "method=vital_fourier", "hydra.run.dir=run") == 0, capsys.readouterr().err
    results = [json.loads(line) for line in Path("run/results.jsonl").read_text().splitlines()]
    assert [(one["position"], one["target"]) for one in results] == [
        (tokens, f"channel-{LAYER}-{number}-{tokens}_f0") for number in (3, 4)
    ]
    assert exit_code(evaluate.main, "run=run", "metrics=units", "trainer.accelerator=cpu") == 0
    assert json.loads(Path("run/metrics.json").read_text())["own_unit_first"]["n"] == 2
    assert "<b>no classes</b>" in Path("run/report.html").read_text()
    mined = (*own, "images=photos", f"layers=[{LAYER}]", "channels=0-2", "k=4", f"position={tokens}", "progress=false")
    assert exit_code(mine.main, *mined, "trainer.accelerator=cpu", "hydra.run.dir=mined", "patches=false") == 0
    assert "The network has no classes." in Path("mined/index.html").read_text()


def test_tokens_differ_in_what_they_show(network: VisionNetwork) -> None:
    keys = {
        "references": torch.rand(6, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)),
        "method": "fourier",
        "steps": 5,
        "overrides": ["evaluation=none", "logger=none", "progress=false"],
    }
    made = {tokens: visualize(network, f"{LAYER}:3@{tokens}", **keys).images for tokens in TOKENS}
    every: Tensor = visualize(network, f"{LAYER}:3", **keys).images
    for one, other in (("cls", "patches"), ("register", "patches")):
        assert not torch.allclose(made[one], made[other], atol=1e-3)
    assert not torch.allclose(made["cls"], every, atol=1e-3)
    assert np.isfinite(every.numpy()).all()


def test_mistakes(network: VisionNetwork) -> None:
    with pytest.raises(UsageError, match=r"target.position=cls: layer1 has no tokens, its maps are 8x8"):
        token_span(load_model(tiny_net(), size=SIZE), "layer1", "cls")
    plain = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, depth=1, embed_dim=16, num_heads=2, class_token=False, global_pool="avg"
    )
    with pytest.raises(UsageError, match=r"target.position=cls: .* has no class token: choose patches"):
        token_span(load_model(plain, size=SIZE), "blocks.0", "cls")
    with pytest.raises(UsageError, match=r"reads other tokens than channel-blocks.1-3-cls: two calls"):
        visualize(network, [f"{LAYER}:3@cls", f"{LAYER}:4@patches"], steps=1)
    odd = nn.Sequential(nn.Flatten(2), nn.Linear(SIZE * SIZE, 8))  # three tokens, one of each colour
    with pytest.raises(UsageError, match=r"target.position=patches: the 3 tokens of 1 are not 0 and a grid of patches"):
        token_span(load_model(odd, size=SIZE), "1", "patches")
