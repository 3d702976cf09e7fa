"""The autoencoder that travels with the package: its loss, its weights, its shapes, its command."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from tests.tiny import ON_CPU, SHORT, command, exit_code
from vital_exp.commands.hydra_app import MISTAKE
from vital_exp.commands.visualize import main
from vital_exp.images.embedded_prior import EmbeddedAutoencoder, embedded_prior, weights_path
from vital_exp.images.prior import Prior
from vital_exp.images.randomness import RandomStreams
from vital_exp.models.network import Preprocessing
from vital_exp.references.drawn import draw_set

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import train_prior

MEASURED = json.loads(weights_path().with_suffix(".json").read_text())


def test_the_loss_is_the_negative_evidence_lower_bound() -> None:
    """Twin: torch's own divergence of two normal distributions, and the density of a Laplace distribution."""
    torch.manual_seed(0)
    model, pictures = EmbeddedAutoencoder(), torch.rand(2, 3, 64, 64) * 2 - 1
    loss, error, nats = train_prior.loss_of(model, pictures, torch.Generator().manual_seed(1))
    mean, log_variance = model.posterior(pictures)
    own = Normal(mean, (log_variance / 2).exp())
    divergence = kl_divergence(own, Normal(torch.zeros(()), torch.ones(()))).sum() / 2
    torch.testing.assert_close(nats, divergence)
    latents = mean + own.scale * torch.randn(mean.shape, generator=torch.Generator().manual_seed(1))
    made = model.decode(latents).sample
    density = torch.distributions.Laplace(made, train_prior.SPREAD).log_prob(pictures).mean()
    constant = torch.log(torch.tensor(2 * train_prior.SPREAD))
    bound = density - divergence / pictures[0].numel()
    torch.testing.assert_close(loss, -train_prior.SPREAD * (bound + constant), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(error, (made - pictures).abs().mean())


def test_the_weights_are_those_that_were_measured() -> None:
    assert hashlib.sha256(weights_path().read_bytes()).hexdigest() == MEASURED["sha256"]
    assert weights_path().stat().st_size < 2.5e6
    pictures = draw_set(3, train_prior.HELD_OUT_SEED)[0]
    model = embedded_prior()
    with torch.no_grad():
        made = model.decode(model.encode(pictures * 2 - 1).latents).sample / 2 + 0.5
    assert sum(parameter.numel() for parameter in model.parameters()) == MEASURED["parameters"]
    key = "mean absolute error of held-out images, RGB in [0, 1]"
    assert float((made - pictures).abs().mean()) == pytest.approx(MEASURED[key], rel=0.3)


@pytest.mark.parametrize(("side", "shape"), [(64, (16, 4, 4)), (224, (16, 14, 14)), (40, (16, 3, 3))])
def test_latents_cover_the_picture(side: int, shape: tuple[int, int, int]) -> None:
    own = Prior(
        Preprocessing((0.5,) * 3, (0.5,) * 3, (side, side)), (side, side), RandomStreams(0, ["a"]), weights="embedded"
    )
    assert own.latents.shape[1:] == shape
    assert own().shape == (1, 3, side, side)


def test_a_drawn_image_to_start_from_stays(workplace: Path) -> None:
    pictures = draw_set(1, 3)[0][:2]
    own = Prior(
        Preprocessing((0.5,) * 3, (0.5,) * 3, (64, 64)),
        (64, 64),
        RandomStreams(0, ["a", "b"]),
        (pictures - 0.5) / 0.5,
        weights="embedded",
        radius=None,
    )
    assert float((own().detach() - pictures).abs().mean()) < 0.08  # of another drawing of the class: above 0.1


def test_the_command_needs_no_diffusers(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    prior = ("method=fourier", "image=prior", "image.weights=embedded")
    assert command(*SHORT, *ON_CPU, *prior, "hydra.run.dir=run") == 0, capsys.readouterr().err
    assert list(Path("run/images").glob("*.png"))
    assert command(*SHORT, *ON_CPU, *prior[:2], "image.weights=embeded", "hydra.run.dir=other") == 2
    told = capsys.readouterr().err
    assert "image.weights=embeded" in told
    assert "did you mean embedded?" in told


def test_a_misspelt_prior_leaves_no_run_folder(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(main, "target.index=star", "image=prior", "image.weights=embeded") == MISTAKE
    assert "did you mean embedded?" in capsys.readouterr().err
    assert not Path("outputs").exists()
