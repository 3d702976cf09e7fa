"""Mean ablation: replace the activation of channels by their means, and read a unit again.

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
NO_EFFECT = 1e-6  # relative change of the unit's value, at or below which a layer has no shares


@contextmanager
def ablated(network: VisionNetwork, layer: str, channels: Tensor, means: Tensor) -> Iterator[None]:
    """Replace channels of a layer by constants at all positions while the network runs.

    Args:
        network: the frozen network.
        layer: a module's name.
        channels: (C,) bool, true for the channels that are replaced.
        means: (C,), the constants.

    Raises:
        UsageError: the layer's output is not a tensor.
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
    """Return the mean over images (N, C, H, W) in [0, 1] of one target's read-out, for example a logit."""
    taps, values = network.taps([read.layer]), []
    for part in images.split(IMAGES_PER_PASS):
        activation = exact(taps(model_space(part, network))[0][read.layer])
        values.append(read.select([0] * len(part)).value(activation).double().cpu())
    return float(torch.cat(values).mean())


@dataclass(frozen=True)
class Ablation:
    """The ablation of a layer's channels, and its effect on a unit above, over some images.

    m is the mean of the unit's read-out over the images.

    Attributes:
        network: the frozen network.
        read: the unit's read-out.
        layer: the layer below the unit whose channels are replaced.
        means: (C,), each channel's mean, from :func:`channel_means`.
        images: (N, C, H, W) in [0, 1].
    """

    network: VisionNetwork
    read: Readout
    layer: str
    means: Tensor
    images: Tensor

    def without(self, channels: Tensor | Sequence[int]) -> float:
        """Return m with the channels of these numbers replaced by their means."""
        chosen = torch.zeros(len(self.means), dtype=torch.bool)
        chosen[torch.as_tensor(channels, dtype=torch.long)] = True
        with ablated(self.network, self.layer, chosen, self.means):
            return mean_value(self.network, self.read, self.images)

    def keeping(self, channels: Tensor | Sequence[int]) -> float:
        """Return m with all channels replaced by their means, except the channels of these numbers."""
        others = torch.ones(len(self.means), dtype=torch.bool)
        others[torch.as_tensor(channels, dtype=torch.long)] = False
        return self.without(others.nonzero()[:, 0])

    @property
    def ends(self) -> tuple[float, float]:
        """m of the unchanged network, and m with all channels of the layer replaced."""
        return mean_value(self.network, self.read, self.images), self.keeping([])

    def shares(self, values: Sequence[float], ends: tuple[float, float]) -> list[float | None]:
        """Return (m - m_none) / (m_whole - m_none) for each m in ``values``; None if the layer has no effect.

        Args:
            values: values of m.
            ends: (m_whole, m_none), as :attr:`ends`.
        """
        whole, none = ends
        if abs(whole - none) <= NO_EFFECT * max(abs(whole), abs(none)):
            return [None] * len(values)
        return [(value - none) / (whole - none) for value in values]
