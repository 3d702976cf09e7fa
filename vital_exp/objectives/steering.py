"""Steering: a channel is turned up, down or off while a picture is made (docs/methods/steering.md)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
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
WANTED = "layer:channel:+2sd, layer:channel:-1sd or layer:channel:off"
IMAGES_PER_PASS = 8


class Steering(GradientRule):
    """Adds a multiple of a channel's standard deviation to it at all positions, or replaces it by 0.

    The deviation is that of the channel over the references of each picture's own target and all positions. Only the
    picture's own pass is steered: reference statistics and relevance are of the network as it is.

    Args:
        problem: what the pictures are made for.
        asked: ``"layer3:5:+2sd"``, ``"layer3:5:off"``; with ``=`` for the last colon too.

    Raises:
        UsageError: another form, no such layer or channel, a layer above all that is read, no references.
    """

    def __init__(self, problem: Problem, asked: str) -> None:
        super().__init__(problem)
        found = FORM.fullmatch(str(asked))
        if found is None:
            raise UsageError(KEY, asked, f"{WANTED} is needed, standard deviations over the references")
        self.asked, self.layer, self.channel = asked, found["layer"], int(found["channel"])
        self.taps = problem.network.taps([self.layer], KEY)
        channels = unit_shape(problem.network, self.layer, KEY)[0]
        if self.channel >= channels:
            raise UsageError(KEY, asked, f"{self.layer} has {channels} channels, 0 to {channels - 1}")
        self.added: Tensor | None = None  # (N,), per picture
        if found["off"] is None:
            own = {target: self._deviation(problem.statistics.references, target) for target in set(problem.targets)}
            self.added = float(found["amount"]) * torch.stack([own[target] for target in problem.targets])

    def check_read(self, layers: Sequence[str]) -> None:
        """Make sure that some layer that a term reads comes after the steered one, or is it."""
        order = [*layer_shapes(self.network), OUTPUT]
        place = order.index(self.layer)
        if not any(layer in order and order.index(layer) >= place for layer in layers):
            raise UsageError(KEY, self.asked, f"no term reads {self.layer} or a layer above it: it changes nothing")

    @torch.no_grad()
    def _deviation(self, references: References, target: Target) -> Tensor:
        images = islice(references.images(target), PER_TARGET)
        values = []
        while chunk := list(islice(images, IMAGES_PER_PASS)):
            activation = exact(self.taps(model_space(torch.stack(chunk), self.network))[0][self.layer])
            values.append(activation.flatten(2)[:, self.channel].flatten().double().cpu())
        if not values:
            raise UsageError(KEY, self.asked, "standard deviations are over references, of which there are none")
        deviation = torch.cat(values).std()
        if not deviation > 0:
            raise UsageError(KEY, self.asked, f"the channel is the same for all references of {target.name}")
        return deviation

    @contextmanager
    def during(self, step: int) -> Iterator[None]:
        """Change the channel of the layer's output."""
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
                raise UsageError(KEY, self.asked, "the layer does not hold one row for each picture of the batch")
            activation = layout.channels_first(output, count)  # (N, C, ...)
            chosen = torch.zeros(activation.shape[1], dtype=torch.bool, device=output.device)
            chosen[self.channel] = True
            chosen = chosen.view(1, -1, *[1] * (activation.ndim - 2))
            if self.added is None:
                return layout.restore(activation.masked_fill(chosen, 0), output, count)
            added = self.added.to(activation).view(-1, *[1] * (activation.ndim - 1)) * chosen
            return layout.restore(activation + added, output, count)

        return hook
