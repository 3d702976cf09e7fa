"""One step's losses and gradient, averaged over random views of each picture, with a few views per forward pass."""

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
    """The objective's losses and gradients for N pictures.

    Attributes:
        losses: (N,), means over the views.
        shares: each term's weighted share of the losses, (N,).
        gradient: of each picture's loss, (N, C, H, W).
        reached: (N,), whether the terms that depend on the target have a nonzero gradient; None where nobody asked.
    """

    losses: Tensor
    shares: dict[str, Tensor]
    gradient: Tensor
    reached: Tensor | None

    def plus(self, other: ObjectiveValues, *, in_place: bool) -> ObjectiveValues:
        """Return the sums; a picture is reached where either operand reached it.

        In place, the sum takes over this gradient's memory: a picture of 1280 px has 20 MB.
        """
        reached = None if self.reached is None or other.reached is None else self.reached | other.reached
        shares = {name: value + other.shares[name] for name, value in self.shares.items()}
        gradient = self.gradient.add_(other.gradient) if in_place else self.gradient + other.gradient
        return ObjectiveValues(self.losses + other.losses, shares, gradient, reached)


class StepObjective:
    """The mean of an objective over the random views of each picture in a step.

    Args:
        objective: the objective of all views in one pass, ordered by view, then by picture.
        transform: makes a view of a picture.
        streams: the pictures' random streams.
        views: number of views of each picture in a step.
        views_per_pass: number of views of each picture in one forward pass; a divisor of ``views``.
        every: steps between two relevance passes over the pictures. The steps between show the network the same views,
            because the relevance of one view does not fit another. Without effect if no term reads relevance masks.

    Attributes:
        masks: the relevance masks of the latest relevance passes, by prefixed layer, by the pass's first view.
    """

    def __init__(
        self,
        objective: Objective,
        transform: Transform,
        streams: RandomStreams,
        views: int = 1,
        views_per_pass: int = 1,
        every: int = 1,
    ) -> None:
        self.objective = objective
        self.transform = transform
        self.streams = streams
        self.views = views
        self.views_per_pass = views_per_pass
        self.every = every if objective.masked else 1
        self.masks: dict[int, dict[str, Tensor]] = {}

    @torch.enable_grad()
    def __call__(self, pictures: Tensor, step: int, *, ask_reached: bool = False) -> ObjectiveValues:
        """Return losses and gradients for normalised pictures (N, C, H, W).

        Memory is needed for one pass only: the graph of a pass is freed before the next pass.
        """
        if step % self.every == 0:
            self.masks = {}
        found: ObjectiveValues | None = None
        for number, first in enumerate(range(0, self.views, self.views_per_pass)):
            numbers = range(first, first + self.views_per_pass)
            one = self._pass(pictures.detach().requires_grad_(), step, numbers, ask_reached)
            # The first gradient may be autograd's view of a single number; a sum has memory of its own.
            found = one if found is None else found.plus(one, in_place=number > 1)
        assert found is not None
        return found

    def _pass(self, pictures: Tensor, step: int, numbers: Sequence[int], ask_reached: bool) -> ObjectiveValues:
        """Return the contribution of some views of each picture to the mean over all views."""
        streams, count, drawn = self.streams.views(numbers), len(numbers), step - step % self.every
        given = {name: self.transform(one, streams, drawn) for name, one in self.objective.given.items()}
        views = self.transform(pictures, streams, drawn)
        losses, shares = self.objective(views, step=step, given=given, masks=self._masks(views, numbers[0]))
        reached = self._reached(pictures, shares) if ask_reached else None
        gradient = scaled_gradient(losses / self.views, pictures, self.objective.scales)
        return ObjectiveValues(
            self._mean(losses, count), {name: self._mean(one, count) for name, one in shares.items()}, gradient, reached
        )

    def _masks(self, views: Tensor, first: int) -> dict[str, Tensor] | None:
        """Return the relevance masks of a pass, of an earlier step if there are any; None: each step has its own."""
        if self.every == 1:
            return None
        if first not in self.masks:
            self.masks[first] = self.objective.masks(views)
        return self.masks[first]

    def _reached(self, pictures: Tensor, shares: Mapping[str, Tensor]) -> Tensor:
        """Return (N,) bool: whether the terms that depend on the target have a gradient that is not exactly zero."""
        aimed = self.objective.aimed(shares)
        if not aimed.requires_grad:  # no term depends on the target
            return torch.ones(len(pictures), dtype=torch.bool, device=pictures.device)
        gradient = scaled_gradient(aimed, pictures, self.objective.scales, keep_graph=True)
        return gradient.flatten(1).abs().amax(dim=1) > 0

    def _mean(self, values: Tensor, count: int) -> Tensor:
        """Return the contribution (N,) of ``count`` views' values (count N,) to the mean over all views."""
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
        setup: the run's setup.
        targets: one per picture; units of one layer, or classes only.
        views_per_pass: number of views of each picture in one forward pass.
        size: (height, width) of the pictures.
        starts: (N, C, H, W) in [0, 1], the images that the pictures start from; None: noise.
        share: the factor by which the sides of the references are scaled before the network sees them.
    """
    problem = setup.problem(list(targets) * views_per_pass, share)
    repeated = starts if starts is None or views_per_pass == 1 else starts.repeat(views_per_pass, 1, 1, 1)
    problem = replace(problem, size=size, starts=repeated, views=views_per_pass)
    streams = RandomStreams(setup.seed, [target.name for target in targets])
    views = (setup.views, views_per_pass)
    return StepObjective(setup.objective(problem), setup.transform, streams, *views, setup.relevance_every)
