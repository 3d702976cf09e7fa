"""What channels do for a unit: their activation is replaced by its mean, and the unit read again.

Formulas: docs/methods/causal_circuits.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vital_exp.errors import UsageError
from vital_exp.models.network import VisionNetwork, model_space
from vital_exp.models.precision import exact
from vital_exp.targets.readout import Readout

IMAGES_PER_PASS = 8
NO_EFFECT = 1e-6  # of the unit's value; a layer that changes the unit less has no shares


@contextmanager
def ablated(network: VisionNetwork, layer: str, channels: Tensor, means: Tensor) -> Iterator[None]:
    """Replace channels of a layer by constants at all positions while the network runs.

    Args:
        network: the frozen network.
        layer: a module's name.
        channels: (C,) bool, those that are replaced.
        means: (C,), by what.

    Raises:
        UsageError: the layer returns something else than a tensor.
    """
    layout, count = network.taps([layer], "target.layers").layout(layer), 0
    kept, constant = ~channels, means * channels

    def begin(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal count
        count = len(inputs[0])

    def replace(_module: nn.Module, _inputs: object, output: object) -> Tensor:
        if not isinstance(output, Tensor):
            raise UsageError(
                "target.layers", layer, f"returns {type(output).__name__}: its channels cannot be replaced"
            )
        values = layout.channels_first(output, count)  # (N, C, ...)
        shape = (1, -1, *[1] * (values.ndim - 2))
        changed = values * kept.to(values).view(shape) + constant.to(values).view(shape)
        return layout.restore(changed, output, count)

    handles = [network.module.register_forward_pre_hook(begin)]
    handles.append(dict(network.module.named_modules())[layer].register_forward_hook(replace))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def channel_means(network: VisionNetwork, layer: str, images: Tensor) -> Tensor:
    """Return each channel's mean over images (N, C, H, W) in [0, 1] and positions, (C,) float64."""
    taps, sums = network.taps([layer], "target.layers"), []
    for part in images.split(IMAGES_PER_PASS):
        activation = exact(taps(model_space(part, network))[0][layer])
        sums.append(activation.flatten(2).mean(dim=2).sum(dim=0).double().cpu())
    return torch.stack(sums).sum(dim=0) / len(images)


@torch.no_grad()
def mean_value(network: VisionNetwork, read: Readout, images: Tensor) -> float:
    """Return the mean over images of what one target reads: a logit, a channel's largest value."""
    taps, values = network.taps([read.layer]), []
    for part in images.split(IMAGES_PER_PASS):
        activation = exact(taps(model_space(part, network))[0][read.layer])
        values.append(read.select([0] * len(part)).value(activation).double().cpu())
    return float(torch.cat(values).mean())


@dataclass(frozen=True)
class Ablation:
    """A unit, the layer below it and the images on which channels of the layer are replaced.

    Attributes:
        network: the frozen network.
        read: of the unit.
        layer: whose channels are replaced.
        means: (C,) of :func:`channel_means` over other images.
        images: (N, C, H, W) in [0, 1].
    """

    network: VisionNetwork
    read: Readout
    layer: str
    means: Tensor
    images: Tensor

    def without(self, channels: Tensor | Sequence[int]) -> float:
        """Return the unit's mean value m with some channels, by number, replaced by their means."""
        chosen = torch.zeros(len(self.means), dtype=torch.bool)
        chosen[torch.as_tensor(channels, dtype=torch.long)] = True
        with ablated(self.network, self.layer, chosen, self.means):
            return mean_value(self.network, self.read, self.images)

    def keeping(self, channels: Tensor | Sequence[int]) -> float:
        """Return m with all channels but these replaced."""
        others = torch.ones(len(self.means), dtype=torch.bool)
        others[torch.as_tensor(channels, dtype=torch.long)] = False
        return self.without(others.nonzero()[:, 0])

    @property
    def ends(self) -> tuple[float, float]:
        """m of the whole network, and with all channels of the layer replaced."""
        return mean_value(self.network, self.read, self.images), self.keeping([])

    def shares(self, values: Sequence[float], ends: tuple[float, float]) -> list[float | None]:
        """Return (m - m of none) / (m of all - m of none); None where the layer changes nothing."""
        whole, none = ends
        if abs(whole - none) <= NO_EFFECT * max(abs(whole), abs(none)):
            return [None] * len(values)
        return [(value - none) / (whole - none) for value in values]
