"""Steering: a channel or concept is raised, lowered or set to 0 while a picture is made (docs/methods/steering.md)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from vital_exp.errors import UsageError
from vital_exp.models.layers import layer_shapes, unit_shape
from vital_exp.models.network import model_space
from vital_exp.models.precision import exact
from vital_exp.objectives.terms import GradientRule, Problem
from vital_exp.references.base import PER_TARGET, References
from vital_exp.targets.unit import OUTPUT, Target

KEY = "steer"
FORM = re.compile(r"(?P<layer>.+):(?P<channel>\d+)[=:](?:(?P<amount>[+-]?\d+(?:\.\d+)?)sd|(?P<off>off))")
CONCEPT_FORM = re.compile(r"(?P<place>.+)#(?P<number>\d+)[=:](?:[+-]?\d+(?:\.\d+)?sd|off)")
WANTED = "layer:channel:+2sd, layer:channel:-1sd, layer:channel:off or folder#concept:+2sd"
IMAGES_PER_PASS = 8


@dataclass(frozen=True)
class Axis:
    """A channel or a concept of a layer: the vector that steering adds, and the reading of its amount.

    The amount in an activation is r = direction . (activation - mean) / (direction . component).

    Attributes:
        layer: name of the layer.
        component: (C,), the vector that steering adds to an activation.
        direction: (C,), as in the formula.
        mean: (C,), as in the formula.
    """

    layer: str
    component: Tensor
    direction: Tensor
    mean: Tensor

    @classmethod
    def of_channel(cls, layer: str, channel: int, channels: int) -> Axis:
        """Return the axis of a channel, whose amount r is its activation."""
        unit = nn.functional.one_hot(torch.tensor(channel), channels).float()
        return cls(layer, unit, unit, torch.zeros(channels))

    def read(self, activation: Tensor) -> Tensor:
        """Return the amount r at each position, (N, P), of activations (N, C, P)."""
        component, direction, mean = (part.to(activation) for part in (self.component, self.direction, self.mean))
        found: Tensor = torch.einsum("ncp,c->np", activation - mean[:, None], direction / (direction @ component))
        return found


class Steering(GradientRule):
    """Adds a multiple of its standard deviation to a channel or a concept at all positions, or sets it to 0.

    The standard deviation is that of the amount r over all positions of the references of a picture's target. Only the
    pictures are steered; reference statistics and relevance are those of the unchanged network.

    Args:
        problem: what the pictures are made for.
        asked: ``"layer3:5:+2sd"``, ``"layer3:5:off"`` or ``"folder#3:+2sd"``; the last colon may be ``=``.
        concept: the concept that ``"folder#3"`` names, which the caller reads; None for a channel.

    Raises:
        UsageError: another form, no such layer or channel, no references, or references with a constant amount.
    """

    def __init__(self, problem: Problem, asked: str, concept: Axis | None = None) -> None:
        super().__init__(problem)
        # "folder#3:off" is parsed like "folder:3:off", a layer and a channel.
        found = FORM.fullmatch(str(asked) if concept is None else str(asked).replace("#", ":"))
        if found is None:
            raise UsageError(KEY, asked, f"{WANTED} is needed; sd is the standard deviation over the references")
        self.asked, self.layer = asked, found["layer"] if concept is None else concept.layer
        self.taps = problem.network.taps([self.layer], KEY)
        channels, number = unit_shape(problem.network, self.layer, KEY)[0], int(found["channel"])
        if concept is None and number >= channels:
            raise UsageError(KEY, asked, f"{self.layer} has {channels} channels, 0 to {channels - 1}")
        self.axis = concept or Axis.of_channel(self.layer, number, channels)
        self.added: Tensor | None = None  # (N,), the amount to add for each picture; None sets the amount to 0
        if found["off"] is None:
            own = {target: self._deviation(problem.statistics.references, target) for target in set(problem.targets)}
            self.added = float(found["amount"]) * torch.stack([own[target] for target in problem.targets])

    def check_read(self, layers: Sequence[str]) -> None:
        """Check that a term reads the steered layer or a layer after it.

        Raises:
            UsageError: no term does.
        """
        order = [*layer_shapes(self.network), OUTPUT]
        place = order.index(self.layer)
        if not any(layer in order and order.index(layer) >= place for layer in layers):
            raise UsageError(KEY, self.asked, f"has no effect: no term reads {self.layer} or a layer above it")

    @torch.no_grad()
    def _deviation(self, references: References, target: Target) -> Tensor:
        images = islice(references.images(target), PER_TARGET)
        values = []
        while chunk := list(islice(images, IMAGES_PER_PASS)):
            activation = exact(self.taps(model_space(torch.stack(chunk), self.network))[0][self.layer])
            values.append(self.axis.read(activation.flatten(2)).flatten().double().cpu())
        if not values:
            raise UsageError(KEY, self.asked, f"{target.name} has no references to take the standard deviation over")
        deviation = torch.cat(values).std()
        if not deviation > 0:
            raise UsageError(KEY, self.asked, f"its standard deviation over the references of {target.name} is 0")
        return deviation

    @contextmanager
    def during(self, step: int) -> Iterator[None]:
        """Change the layer's output while the network runs."""
        with ExitStack() as hooks:
            for layer in self.taps.layers.values():
                hooks.callback(layer.register_forward_hook(self._hook()).remove)
            yield

    def _hook(self) -> Callable[[nn.Module, object, object], Tensor]:
        def hook(_module: nn.Module, _inputs: object, output: object) -> Tensor:
            if not isinstance(output, Tensor):
                raise UsageError(KEY, self.asked, f"the layer returns {type(output).__name__}, not a tensor")
            layout = self.taps.layout(self.layer)
            count = output.shape[layout.pictures]
            if layout.windowed or (self.added is not None and count != len(self.added)):
                raise UsageError(KEY, self.asked, "the layer's output does not have one entry per picture of the batch")
            activation = layout.channels_first(output, count)  # (N, C, ...)
            component = self.axis.component.to(activation).view(1, -1, *[1] * (activation.ndim - 2))
            if self.added is None:
                here = self.axis.read(activation.flatten(2)).view(count, 1, *activation.shape[2:])
                return layout.restore(activation - here * component, output, count)
            added = self.added.to(activation).view(-1, *[1] * (activation.ndim - 1))
            return layout.restore(activation + added * component, output, count)

        return hook
