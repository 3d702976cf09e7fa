"""One step's losses and gradient: over several random views of each picture, a few images in the network at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vital_exp.images.randomness import RandomStreams
from vital_exp.images.transforms import Transform
from vital_exp.models.precision import scaled_gradient
from vital_exp.objectives.terms import Objective
from vital_exp.setup.run_setup import RunSetup
from vital_exp.targets.unit import Target


@dataclass(frozen=True)
class ObjectiveValues:
    """What the objective says of N pictures.

    Attributes:
        losses: (N,), means over the views.
        shares: each term's weighted share of the losses, (N,).
        gradient: of each picture's loss, (N, C, H, W).
        reached: (N,), whether the terms that know the target have any gradient; None where it was not asked for.
    """

    losses: Tensor
    shares: dict[str, Tensor]
    gradient: Tensor
    reached: Tensor | None

    def __add__(self, other: ObjectiveValues) -> ObjectiveValues:
        """Return the sums; reached is what either reached."""
        reached = None if self.reached is None or other.reached is None else self.reached | other.reached
        shares = {name: value + other.shares[name] for name, value in self.shares.items()}
        return ObjectiveValues(self.losses + other.losses, shares, self.gradient + other.gradient, reached)


class StepObjective:
    """The mean of an objective over the random views of each picture in a step.

    Args:
        objective: of as many pictures as are in one pass, view by view.
        transform: gives a view of a picture.
        streams: the pictures' random streams.
        views: of each picture in a step.
        views_per_pass: of each picture in the network at a time; a divisor of ``views``.
    """

    def __init__(
        self,
        objective: Objective,
        transform: Transform,
        streams: RandomStreams,
        views: int = 1,
        views_per_pass: int = 1,
    ) -> None:
        self.objective = objective
        self.transform = transform
        self.streams = streams
        self.views = views
        self.views_per_pass = views_per_pass

    @torch.enable_grad()
    def __call__(self, pictures: Tensor, step: int, *, ask_reached: bool = False) -> ObjectiveValues:
        """Return losses and gradients for normalised pictures (N, C, H, W).

        Memory is that of one pass: each pass's graph is gone before the next.
        """
        found: ObjectiveValues | None = None
        for first in range(0, self.views, self.views_per_pass):
            numbers = range(first, first + self.views_per_pass)
            one = self._pass(pictures.detach().requires_grad_(), step, numbers, ask_reached)
            found = one if found is None else found + one
        assert found is not None
        return found

    def _pass(self, pictures: Tensor, step: int, numbers: Sequence[int], ask_reached: bool) -> ObjectiveValues:
        """Return what some views of each picture add to the mean over all."""
        streams, count = self.streams.views(numbers), len(numbers)
        given = {name: self.transform(one, streams, step) for name, one in self.objective.given.items()}
        losses, shares = self.objective(self.transform(pictures, streams, step), step=step, given=given)
        reached = self._reached(pictures, shares) if ask_reached else None
        gradient = scaled_gradient(losses / self.views, pictures, self.objective.scales)
        return ObjectiveValues(
            self._mean(losses, count), {name: self._mean(one, count) for name, one in shares.items()}, gradient, reached
        )

    def _reached(self, pictures: Tensor, shares: Mapping[str, Tensor]) -> Tensor:
        """Return for which pictures (N,) the terms that know the target have a gradient that is not exactly zero."""
        aimed = self.objective.aimed(shares)
        if not aimed.requires_grad:  # no term knows the target
            return torch.ones(len(pictures), dtype=torch.bool, device=pictures.device)
        gradient = scaled_gradient(aimed, pictures, self.objective.scales, keep_graph=True)
        return gradient.flatten(1).abs().amax(dim=1) > 0

    def _mean(self, values: Tensor, count: int) -> Tensor:
        """Return what ``count`` views' values (count N,) add to the mean over all views, (N,)."""
        means: Tensor = values.detach().unflatten(0, (count, -1)).sum(dim=0) / self.views
        return means


def step_objective(
    setup: RunSetup,
    targets: Sequence[Target],
    views_per_pass: int,
    size: tuple[int, int],
    starts: Tensor | None = None,
    share: float = 1.0,
) -> StepObjective:
    """Return the objective of a batch of targets.

    Args:
        setup: of the run.
        targets: one per picture, all of one layer or all classes.
        views_per_pass: of each picture in the network at a time.
        size: (height, width) of the pictures.
        starts: (N, 3, H, W) RGB, what the pictures start from where that is an image.
        share: of their side, at which the network sees the references.
    """
    problem = setup.problem(list(targets) * views_per_pass, share)
    repeated = starts if starts is None or views_per_pass == 1 else starts.repeat(views_per_pass, 1, 1, 1)
    problem = replace(problem, size=size, starts=repeated, views=views_per_pass)
    streams = RandomStreams(setup.seed, [target.name for target in targets])
    return StepObjective(setup.objective(problem), setup.transform, streams, setup.views, views_per_pass)
