"""One batch: its targets, their pictures, the objective of a step, and the results."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from vital_exp.engine.module import Stage, VisualizationModule
from vital_exp.engine.step import step_objective
from vital_exp.evaluation.activation import unit_activations
from vital_exp.images.fourier import Fourier
from vital_exp.images.output import quantised, resized
from vital_exp.models.precision import precisions_of
from vital_exp.setup.batching import padded
from vital_exp.setup.growth import Growth
from vital_exp.setup.run_setup import RunSetup
from vital_exp.targets.unit import Target


@dataclass
class Made:
    """One target's picture in memory.

    Attributes:
        picture: (C, H, W) in [0, 1]; NaN where the target failed.
        mask: (1, H, W) in [0, 1], the transparency map.
        history: each term's weighted share of the loss at each step, by the term's name; and the ``total``.
        activation: the target's activation by the saved picture; None for a class of a network without class names.
        error: why the picture is not a valid result; None when the picture is valid.
    """

    picture: Tensor
    mask: Tensor
    history: dict[str, list[float]] = field(default_factory=dict)
    activation: float | None = None
    error: str | None = None

    @classmethod
    def failed(
        cls, shape: tuple[int, int, int], error: str | None = None, history: dict[str, list[float]] | None = None
    ) -> Made:
        """Return the placeholder, all NaN, for a picture of (channels, height, width) that could not be made."""
        return cls(torch.full(shape, torch.nan), torch.zeros(1, *shape[1:]), history or {}, None, error)


class Batch:
    """Pictures that are optimised together; no picture's gradient depends on another.

    Args:
        setup: the run's setup.
        targets: units of one layer, or classes only.
        size: number of pictures; copies of the last target fill a short batch. None: one picture per target.
        views_per_pass: views of each picture in one forward pass; None: as many as are fast and fit into memory.
        picture_size: (height, width); None: the setup's.
        given: for each target the image, (C, H, W) in [0, 1], that replaces ``image.init`` as its picture's start.

    Attributes:
        targets: the targets without the copies that fill the batch.
        starts: (N, C, H, W) in [0, 1], the starting images as the parameterisation represents them; None: noise.
        pictures: the parameterisation.
        objective: computes losses and gradient of a step at the pictures' own size.
        stages: groups of steps; in one stage the network sees the pictures at one size.

    Raises:
        UsageError: a target without references.
    """

    def __init__(
        self,
        setup: RunSetup,
        targets: Sequence[Target],
        size: int | None = None,
        views_per_pass: int | None = None,
        picture_size: tuple[int, int] | None = None,
        given: dict[Target, Tensor] | None = None,
    ) -> None:
        self.setup, self.targets, self.picture_size = setup, list(targets), picture_size or setup.size
        size = size or len(self.targets)
        views_per_pass = views_per_pass or setup.together(self.picture_size, size)
        filled = padded(self.targets, size)
        start = torch.stack([given[target] for target in filled]) if given else setup.starts(filled, self.picture_size)
        self.pictures = setup.pictures(filled, start)
        self.starts: Tensor | None = None
        if start is not None:
            with torch.no_grad():
                self.starts = self.pictures()
        self.objective = step_objective(setup, filled, views_per_pass, self.picture_size, self.starts)
        self.stages = [Stage(setup.steps, self.objective, self.pictures.network_input)]
        if setup.growth:
            self.stages.insert(0, self._small_stage(setup.growth, filled, views_per_pass))

    def _small_stage(self, growth: Growth, filled: Sequence[Target], views_per_pass: int) -> Stage:
        """Return the first steps, in which the network sees pictures and references at a share of their side."""
        assert isinstance(self.pictures, Fourier)  # checked with the configuration
        size = growth.size(self.picture_size)
        starts = None if self.starts is None else resized(self.starts, size)
        objective = step_objective(self.setup, filled, views_per_pass, size, starts, growth.share)
        return Stage(growth.until, objective, partial(self.pictures.smaller, size))

    @property
    def names(self) -> list[str]:
        """The targets' names."""
        return [target.name for target in self.targets]

    def module(self) -> VisualizationModule:
        """Return the LightningModule that optimises the pictures."""
        own = self.setup
        return VisualizationModule(self.pictures, self.stages, own.optimizer, own.rate, own.mask)

    def made(self, module: VisualizationModule) -> list[Made]:
        """Return each target's picture after the optimisation, or the reason why there is no picture."""
        count = len(self.targets)
        with torch.no_grad():
            pictures = module.pictures().detach().float().cpu()[:count]
        masks = module.masks(self.setup.mask_percentile)[:count]
        history = module.history()
        activations, dead = self._activations(pictures), module.dead()
        found = []
        for i in range(count):
            terms = {name: values[:, i].tolist() for name, values in history.items()}
            error = failure(terms["total"], pictures[i], dead[i], activations[i])
            error = error and error + self._precision_hint(error)
            one = Made(pictures[i], masks[i], terms, activations[i], error)
            found.append(Made.failed((pictures.shape[1], *self.picture_size), error, terms) if error else one)
        return found

    def _activations(self, pictures: Tensor) -> list[float | None]:
        """Each target's activation by its saved picture: a class's logit, a hidden unit's largest activation."""
        network = self.setup.network
        if self.targets[0].kind == "class" and network.class_names is None:
            return [None] * len(self.targets)
        shown = quantised(pictures.nan_to_num())
        if self.setup.seen_size(self.picture_size) != self.picture_size:  # a transformer could not read them otherwise
            shown = resized(shown, network.preprocessing.size)
        return list(map(float, unit_activations(network, self.setup.readout(self.targets), shown)))

    def _precision_hint(self, error: str) -> str:
        """Advice for an error that may come from a number outside float16's range, 6e-8 to 65504; else empty."""
        narrow = torch.float16 in precisions_of(self.setup.network.module) and "zero" not in error
        return "; the network computes in float16, to 65504: hand over module.bfloat16() or float()" if narrow else ""


def failure(losses: Sequence[float], picture: Tensor, dead: bool, activation: float | None) -> str | None:
    """Return why a picture is not a valid result; None when the picture is valid."""
    broken = next((step for step, value in enumerate(losses) if not math.isfinite(value)), None)
    if broken is not None:
        return f"the loss is {losses[broken]} at step {broken}"
    if not picture.isfinite().all():
        return f"the picture is not finite after step {len(losses) - 1}"
    if activation is not None and not math.isfinite(activation):
        return f"the target's activation by the picture is {activation}"
    if dead:
        return "the gradient is exactly zero: nothing in the picture reaches the unit; try image.init=reference"
    return None
