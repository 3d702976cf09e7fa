"""The term that pulls a picture towards a theme: its probe, its value, its mistakes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from tests.tiny import ON_CPU, SHORT, command, image_folder, tiny_net
from vital_exp import load_model
from vital_exp.engine import objective_and_gradient
from vital_exp.errors import UsageError
from vital_exp.models.network import model_space
from vital_exp.objectives.probe import RIDGE, fit_probe, logistic_weights

GENERATOR = torch.Generator().manual_seed(2)
CLASSES = {f"class:{number}": torch.rand(6, 3, 16, 16, generator=GENERATOR) ** (number + 1) for number in range(4)}
PICTURES = torch.rand(2, 3, 16, 16, generator=GENERATOR)


def test_the_probe_is_that_of_scikit_learn() -> None:
    """Twin: sklearn's ridge logistic regression on standardised values, both groups weighing alike."""
    theme = torch.randn(30, 5, dtype=torch.float64) * torch.tensor([1, 2, 3, 4, 5]) + torch.tensor([1.0, 0, 0, -3, 9])
    others = torch.randn(50, 5, dtype=torch.float64) * torch.tensor([1, 2, 3, 4, 5])
    values = torch.cat([theme, others]).numpy()
    scale = values.std(0)
    wanted = np.repeat([1, 0], [30, 50])
    share = np.where(wanted == 1, 0.5 / 30, 0.5 / 50)
    twin = LogisticRegression(C=1 / RIDGE, tol=1e-12, max_iter=2000)
    twin.fit((values - values.mean(0)) / scale, wanted, sample_weight=share)
    np.testing.assert_allclose(logistic_weights(theme, others), twin.coef_[0] / scale, rtol=1e-4, atol=1e-7)
    assert float(fit_probe(theme, others).weights.norm()) == pytest.approx(1)
    silent = torch.zeros(30, 1), torch.zeros(50, 1)
    both = [torch.cat(pair, dim=1) for pair in zip((theme, others), silent, strict=True)]
    np.testing.assert_allclose(logistic_weights(*both)[-1], 0)


def test_a_theme_that_is_not_there_is_told_by_chance(caplog: pytest.LogCaptureFixture) -> None:
    noise = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    assert fit_probe(noise[:100], noise[100:]).separation == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("rectified", [True, False])
def test_the_value_is_probe_times_activation_times_gradient(rectified: bool, tmp_path: Path) -> None:
    """Twin: the network run by hand; f is linear in the layer here, so its gradient is fc times the ReLU's gate."""
    module = tiny_net()
    own = load_model(module, size=16)
    weights = np.random.default_rng(0).normal(size=16).astype(np.float32)
    np.save(tmp_path / "probe.npy", weights)
    asked = ["objective=[facet]", f"objective.facet.probe={tmp_path / 'probe.npy'}", "objective.facet.layer=layer1.0"]
    asked += [f"objective.facet.rectified={rectified}", "objective.facet.weight=2.0", "transforms=none"]
    losses, gradient = objective_and_gradient(
        own, ["class:1", "class:2"], PICTURES, references=CLASSES, overrides=asked
    )
    x = model_space(PICTURES, own).requires_grad_()
    inner = module.layer1[0](torch.relu(module.bn1(module.conv1(x))))  # type: ignore[operator]
    assert isinstance(module.fc, nn.Linear)
    slope = module.fc.weight[[1, 2]][:, :, None, None] * (inner > 0) / inner[0, 0].numel()
    slope = slope.detach().clamp(min=0) if rectified else slope.detach()
    unit = torch.tensor(weights / np.linalg.norm(weights))
    twin = -2 * (inner * slope * unit[:, None, None]).sum((1, 2, 3))
    torch.testing.assert_close(losses, twin.detach(), atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(gradient, torch.autograd.grad(twin.sum(), x)[0], atol=1e-6, rtol=1e-3)
    assert not module.layer1[0]._forward_hooks


class Tokens(nn.Module):
    """A network whose layers hold (N, T, C), and that returns a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 6, 4, 4)
        self.mix = nn.Linear(6, 6)
        self.last = nn.Linear(6, 4)

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        tokens = self.patches(pictures).flatten(2).mT
        return {"logits": self.last(torch.tanh(self.mix(tokens)).mean(dim=1))}


def test_channels_last_a_dict_and_a_class_for_the_theme() -> None:
    torch.manual_seed(0)
    own = load_model(Tokens(), size=16)
    asked = ["objective=[activation,facet]", "objective.facet.theme='3'", "objective.facet.layer=mix"]
    both = [objective_and_gradient(own, "class:1", PICTURES[:1], references=CLASSES,
                                   overrides=[*asked, f"objective.facet.weight={weight}", "transforms=none"])
            for weight in (0.0, 1.0)]  # fmt: skip
    assert float(both[0][0]) != float(both[1][0])
    assert float((both[0][1] - both[1][1]).abs().max()) > 0


def test_a_folder_is_a_theme_for_a_hidden_unit(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "images", ["a", "b"], count=5)
    asked = [
        "objective=[activation,facet]",
        f"objective.facet.theme={root / 'a'}",
        f"objective.facet.others={root / 'b'}",
    ]
    own = load_model(tiny_net(), size=16)
    losses, _ = objective_and_gradient(
        own, "layer1:1", PICTURES[:1], references=CLASSES["class:0"], overrides=[*asked, "objective.facet.layer=conv1"]
    )
    assert losses.isfinite().all()
    with pytest.raises(UsageError, match="below the target's"):
        objective_and_gradient(
            own, "layer1:1", PICTURES[:1], references=CLASSES["class:0"], overrides=[*asked, "objective.facet.layer=fc"]
        )


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ([], ("objective.facet.theme=None", "objective.facet.probe")),
        (["theme=hart"], ("objective.facet.theme=hart", "heart")),
        (["theme=fish", "layer=lyer2"], ("objective.facet.layer=lyer2", "layer2")),
        (["theme=fish"], ("objective.facet.theme=fish", "at least 4")),
        (["theme=fish", "others=nowhere"], ("objective.facet.others=nowhere", "folder")),
        (["probe=none.npy"], ("objective.facet.probe=none.npy", "no such file")),
        (["theme=fish", "probe=none.npy"], ("objective.facet.theme=fish", "either")),
    ],
)
def test_mistakes_are_one_line(
    keys: list[str], words: tuple[str, ...], workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [f"objective.facet.{key}" for key in keys]
    code = command(*SHORT, *ON_CPU, "method=fourier", "objective=[activation,facet]", *asked, "hydra.run.dir=run")
    told = capsys.readouterr().err
    assert code == 2
    assert all(word in told for word in words), told
    assert "Traceback" not in told


def test_a_probe_of_another_layer_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "probe.npy", np.ones(3, dtype=np.float32))
    asked = ["objective=[facet]", f"objective.facet.probe={tmp_path / 'probe.npy'}", "objective.facet.layer=conv1"]
    with pytest.raises(UsageError, match="8 channels of conv1"):
        objective_and_gradient(load_model(tiny_net(), size=16), "class:1", PICTURES[:1], overrides=asked)
