"""Relevance passes every k steps: the same views between two passes, the same bits after an interruption."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn

from tests.tiny import tiny_net
from vital_exp import load_model, visualize
from vital_exp.engine.batch import Batch
from vital_exp.engine.step import StepObjective
from vital_exp.errors import UsageError
from vital_exp.relevance.weights import Relevance
from vital_exp.setup.request import Request
from vital_exp.setup.run_setup import RunSetup
from vital_exp.visualization.step_time import seconds_per_step

REFERENCES = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
UNITS = ["layer1:3", "layer1:5"]
FAST = ("relevance=guided_backprop", "references.facets=1", "evaluation=none")


class Wrapped(nn.Module):
    """A network that returns a dict, with channels last in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny_net().to(memory_format=torch.channels_last)

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """Return the logits by name."""
        return {"logits": self.inner(pictures)}


def requested(*overrides: str, units: list[str] = UNITS, network: Any = None, **options: Any) -> Request:
    own = network or load_model(tiny_net(), size=32)
    given = {"method": "vital_fourier", "references": REFERENCES, "steps": 6, **options}
    return Request.of(own, units, overrides=[*FAST, *overrides], **given)


def made(*overrides: str, units: list[str] = UNITS, network: Any = None, **options: Any) -> Any:
    own = network or load_model(tiny_net(), size=32)
    given = {"method": "vital_fourier", "references": REFERENCES, "steps": 6, **options}
    return visualize(own, units, overrides=[*FAST, *overrides], **given)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The views of each relevance pass over pictures."""
    seen: list[Tensor] = []
    masks = Relevance.masks

    def watched(self: Relevance, pictures: Tensor, layers: Any) -> dict[str, Tensor]:
        seen.append(pictures.detach().clone())
        return masks(self, pictures, layers)

    monkeypatch.setattr(Relevance, "masks", watched)
    return seen


def test_the_steps_between_show_the_same_views_and_weigh_by_the_same_masks(passes: list[Tensor]) -> None:
    """Twin: the objective of each step, without the engine, at the views of the latest relevance pass."""
    request = requested("relevance.every=3")
    batch = Batch(request.setup, request.targets)
    own = batch.objective
    noise = torch.randn(6, 2, 3, 32, 32, generator=torch.Generator().manual_seed(2))  # of steps, of pictures
    for step in range(6):
        pictures, first = noise[step], noise[step - step % 3]
        found = own(pictures, step)
        assert len(passes) == 1 + step // 3
        views, old = (own.transform(one, own.streams, step - step % 3) for one in (pictures, first))
        torch.testing.assert_close(passes[-1], old)
        losses, _ = own.objective(views, step=step, masks=own.objective.masks(old))
        del passes[-1]
        torch.testing.assert_close(found.losses, losses)


def test_every_step_is_the_default(passes: list[Tensor]) -> None:
    pictures = made()
    assert len(passes) == 6
    passes.clear()
    assert torch.equal(made("relevance.every=1").images, pictures.images)
    passes.clear()
    assert not torch.equal(made("relevance.every=2").images, pictures.images)
    assert len(passes) == 3


def test_several_views_have_a_map_each(passes: list[Tensor]) -> None:
    assert made("relevance.every=4", "views=2", "views_per_pass=1").images.isfinite().all()
    assert len(passes) == 2 * 2
    assert not torch.equal(passes[0], passes[1])


def test_company_changes_nothing() -> None:
    together = made("relevance.every=4", "batch_size=2").images
    alone = made("relevance.every=4", "batch_size=2", units=UNITS[1:]).images
    assert torch.equal(together[1], alone[0])


class _Killed(Callback):
    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        if trainer.global_step == 4:
            raise RuntimeError("killed")


@pytest.mark.parametrize("growth", [[], ["image.grow_from=0.5", "image.grow_until=0.5"]])
def test_a_run_resumed_between_two_passes_makes_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, growth: list[str]
) -> None:
    asked = ["relevance.every=4", "checkpoint_every=3", *growth]
    whole = made(*asked)
    real = RunSetup.trainer
    monkeypatch.setattr(RunSetup, "trainer", lambda self, callbacks: real(self, [*callbacks, _Killed()]))
    with pytest.raises(RuntimeError, match="killed"):
        made(*asked, out=tmp_path)
    monkeypatch.setattr(RunSetup, "trainer", real)
    steps: list[int] = []
    called = StepObjective.__call__

    def watched(self: StepObjective, pictures: Tensor, step: int, **options: bool) -> Any:
        steps.append(step)
        return called(self, pictures, step, **options)

    monkeypatch.setattr(StepObjective, "__call__", watched)
    resumed = made(*asked, out=tmp_path)
    assert steps == [3, 4, 5]
    assert torch.equal(resumed.images, whole.images)
    assert torch.equal(resumed.masks, whole.masks)


def test_an_estimate_counts_the_passes_in_their_share(passes: list[Tensor]) -> None:
    request = requested("relevance.every=2")
    assert seconds_per_step(Batch(request.setup, request.targets), 1) > 0
    assert len(passes) == 2  # of steps 0 and 2; 1 and 2 are timed


def test_other_networks() -> None:
    own = load_model(Wrapped(), size=32)
    assert made("relevance.every=2", units=["inner.layer1:3"], network=own).images.isfinite().all()


@pytest.mark.parametrize("value", ["0", "1.5", "often"])
def test_a_number_of_steps_that_is_not_allowed(value: str) -> None:
    with pytest.raises(UsageError) as caught:
        requested(f"relevance.every={value}")
    assert str(caught.value) == f"relevance.every={value}: a whole number of at least 1"
