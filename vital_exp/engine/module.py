"""The LightningModule whose parameters are the pictures of a batch of targets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.nn import functional
from torch.optim import Optimizer

from vital_exp.engine.step import StepObjective
from vital_exp.images.masks import MASKS
from vital_exp.images.output import smoothed_transparency, transparency
from vital_exp.images.parameterisation import Parameterisation


class _Known(torch.autograd.Function):
    """A loss whose gradient with respect to the pictures has already been computed."""

    @staticmethod
    def forward(ctx, pictures: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(gradient)
        return loss.clone()

    @staticmethod
    def backward(ctx, factor: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[no-untyped-def]
        (gradient,) = ctx.saved_tensors
        return factor * gradient, None, None


@dataclass(frozen=True)
class Stage:
    """Steps in which the network sees the pictures at one size.

    Attributes:
        until: the first step after the stage.
        objective: gives each picture's loss and its gradient at a step.
        network_input: returns the normalised pictures at the stage's size, (N, C, h, w), with an autograd graph.
    """

    until: int
    objective: StepObjective
    network_input: Callable[[], Tensor]


class VisualizationModule(LightningModule):
    """Optimises N pictures at once, each for its own target; no picture's gradient depends on another.

    The objective holds the network, which is not a submodule: a checkpoint holds the pictures, not the weights.

    Args:
        pictures: the parameterisation; its parameters are the module's only ones.
        stages: in order of their steps; the last stage ends with the run's last step.
        optimizer: makes the optimiser from the parameters.
        rate: maps a step to the learning rate.
        mask: the quantity that the transparency map sums over steps, one of ``MASKS``.
    """

    def __init__(
        self,
        pictures: Parameterisation,
        stages: Sequence[Stage],
        optimizer: Callable[[list[torch.nn.Parameter]], Optimizer],
        rate: Callable[[int], float],
        mask: str = MASKS[0],
    ) -> None:
        super().__init__()
        self.pictures = pictures
        self.stages = list(stages)
        self.objective, self.steps = self.stages[-1].objective, self.stages[-1].until
        self._make_optimizer = optimizer
        self._rate = rate
        self.mask = mask
        count = len(self.objective.streams.names)
        # The terms of all steps stay on the device until the end: reading a value at each step would stall a GPU.
        terms = [*self.objective.objective.terms, "total"]
        self._history = {name: torch.full((self.steps, count), torch.nan) for name in terms}
        self._sensitivity = torch.zeros(())  # sum over steps of |dL/dx|, or of what the picture follows, (N, C, H, W)
        self._dead = torch.zeros(count, dtype=torch.bool)  # no gradient from the target at the first and the last step

    def configure_optimizers(self) -> Optimizer:
        """Return the optimiser of the pictures."""
        return self._make_optimizer(list(self.parameters()))

    def train_dataloader(self) -> range:
        """Return one item per step."""
        return range(self.steps)

    def on_fit_start(self) -> None:
        """Move the records to the pictures' device."""
        self._history = {name: values.to(self.device) for name, values in self._history.items()}
        self._sensitivity = self._sensitivity.to(self.device)
        self._dead = self._dead.to(self.device)
        for stage in self.stages:
            stage.objective.masks = {
                first: {name: mask.to(self.device) for name, mask in masks.items()}
                for first, masks in stage.objective.masks.items()
            }

    def training_step(self, batch: object, batch_idx: int) -> Tensor:
        """Return the scalar that Lightning differentiates in this step."""
        return self.surrogate(self.global_step)

    def surrogate(self, step: int) -> Tensor:
        """Return the summed losses, differentiable with respect to the parameters; record the step's losses."""
        stage = next(one for one in self.stages if step < one.until)
        pictures = stage.network_input()
        first = min(self.objective.objective.settled, self.steps - 1)  # before, a gradient rule may revive dead units
        found = stage.objective(pictures, step, ask_reached=step in (first, self.steps - 1))
        for name, value in {**found.shares, "total": found.losses}.items():
            self._history[name][step] = value
        if found.reached is not None:
            self._dead = ~found.reached if step == first else self._dead & ~found.reached
        self._note_sensitivity(pictures.detach(), found.gradient)
        loss: Tensor = _Known.apply(pictures, found.losses.sum(), found.gradient)
        return loss

    @torch.no_grad()
    def _note_sensitivity(self, pictures: Tensor, gradient: Tensor) -> None:
        if self.mask == "followed":
            gradient = self.pictures.followed(pictures, gradient)
        moved = self._whole(gradient.abs())
        self._sensitivity = self._sensitivity.add_(moved) if self._sensitivity.ndim else moved

    def _whole(self, sensitivity: Tensor) -> Tensor:
        """Return a map (N, C, h, w) at the pictures' own size, with the same sum."""
        if len(self.stages) == 1 or sensitivity.shape[-2:] == self._size:
            return sensitivity
        share = sensitivity[0, 0].numel() / self._size.numel()
        return functional.interpolate(sensitivity, list(self._size), mode="bilinear") * share

    @cached_property
    def _size(self) -> torch.Size:
        """The (height, width) of the pictures."""
        with torch.no_grad():
            shape: torch.Size = self.pictures().shape
        return shape[-2:]

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Take one step at the schedule's learning rate, then project the pictures back into their range."""
        for group in optimizer.param_groups:
            group["lr"] = self._rate(self.global_step)
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.pictures.project()

    def on_save_checkpoint(self, checkpoint: dict[str, object]) -> None:
        """Store the records in the checkpoint, beside pictures and optimiser."""
        records = {"history": self._history, "sensitivity": self._sensitivity, "dead": self._dead}
        checkpoint["visualization"] = records | {"masks": [stage.objective.masks for stage in self.stages]}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the records."""
        self._history = checkpoint["visualization"]["history"]
        self._sensitivity = checkpoint["visualization"]["sensitivity"]
        self._dead = checkpoint["visualization"]["dead"]
        for stage, masks in zip(self.stages, checkpoint["visualization"]["masks"], strict=True):
            stage.objective.masks = masks

    def history(self) -> dict[str, Tensor]:
        """Return each term's weighted share of the loss and the total, (steps, N) on the CPU, NaN where not reached."""
        return {name: values.cpu() for name, values in self._history.items()}

    def latest_loss(self) -> Tensor:
        """Return the mean total of the latest step, a scalar on the device."""
        return self._history["total"][max(self.global_step - 1, 0)].mean()

    def terms_at(self, step: int, count: int) -> dict[str, float]:
        """Return the mean over the first ``count`` pictures of each term and of the total at a step."""
        return {name: float(values[step, :count].mean()) for name, values in self._history.items()}

    def each_at(self, step: int, count: int) -> dict[str, list[float]]:
        """Return each term and the total of the first ``count`` pictures at a step."""
        return {name: values[step, :count].tolist() for name, values in self._history.items()}

    def dead(self) -> list[bool]:
        """Return for each picture whether its target's gradient was exactly zero at the first and last checked step."""
        return [bool(one) for one in self._dead.cpu()]

    def masks(self, percentile: float) -> Tensor:
        """Return the transparency map of each picture, (N, 1, H, W) in [0, 1], on the CPU, clipped at a percentile.

        ``published``: the sum over steps of |dL/dx|. ``followed``: the sum over steps of the magnitude of the part of
        dL/dx that the parameterisation can follow, smoothed.
        """
        as_map = transparency if self.mask == "published" else smoothed_transparency
        return as_map(self._sensitivity.cpu(), percentile)
