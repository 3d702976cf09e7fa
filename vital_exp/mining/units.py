"""What is mined of a network: layers, their channels or directions, and how a map becomes one number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vital_exp.errors import UsageError
from vital_exp.models.layers import layer_shapes
from vital_exp.models.network import VisionNetwork, model_space
from vital_exp.models.taps import Taps
from vital_exp.targets.selection import unit_targets

POOLINGS = ("max", "mean")


@dataclass(frozen=True)
class Units:
    """The units that are mined.

    Attributes:
        network: the frozen network.
        channels: for each layer the numbers of its channels, or of the given directions.
        pooling: how a unit's map becomes one number: its spatial ``"max"`` or ``"mean"``.
        directions: for some layers (K, C) read-outs that are mined in place of channels.
    """

    network: VisionNetwork
    channels: Mapping[str, Sequence[int]]
    pooling: str
    directions: Mapping[str, Tensor]

    @property
    def layers(self) -> list[str]:
        """The layers' names."""
        return list(self.channels)

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        """Return for each layer the units' maps, (B, U, P), of RGB images (B, 3, H, W)."""
        activations, _ = Taps(self.network.module, self.layers, "layers")(model_space(images, self.network))
        maps = {}
        for layer, activation in activations.items():
            values = activation.flatten(2)  # (B, C, P)
            if layer in self.directions:
                values = torch.einsum("bcp,kc->bkp", values, self.directions[layer].to(values))
            numbers = self.channels[layer]
            maps[layer] = values if len(numbers) == values.shape[1] else values[:, list(numbers)]
        return maps

    def values(self, images: Tensor) -> dict[str, Tensor]:
        """Return for each layer the units' values, (B, U) float32 on the CPU."""
        pooled = {layer: pool(values, self.pooling) for layer, values in self.maps(images).items()}
        return {layer: values.float().cpu() for layer, values in pooled.items()}


def pool(maps: Tensor, pooling: str) -> Tensor:
    """Return the spatial maximum or mean of maps (..., P)."""
    return maps.amax(dim=-1) if pooling == "max" else maps.mean(dim=-1)


def select_units(
    network: VisionNetwork,
    layers: Sequence[str],
    channels: object = "all",
    pooling: str = "max",
    directions: Mapping[str, Tensor] | None = None,
) -> Units:
    """Return the units of the layers.

    Args:
        network: the frozen network.
        layers: module names.
        channels: "all", numbers, "0-63", a list of these; the same for every layer, or {layer: selection}.
        pooling: ``"max"`` or ``"mean"``.
        directions: for some layers (K, C) read-outs in place of channels.

    Raises:
        UsageError: no layer, an unknown one, a channel out of range, an unknown pooling.
    """
    if not layers:
        raise UsageError("layers", list(layers), "at least one layer; list=layers prints them")
    if pooling not in POOLINGS:
        raise UsageError("pooling", pooling, f"one of {', '.join(POOLINGS)}", POOLINGS)
    Taps(network.module, layers, "layers")  # names the layer that does not exist
    shapes, given = layer_shapes(network), dict(directions or {})
    chosen = {}
    for layer in dict.fromkeys(layers):
        if layer not in shapes:
            raise UsageError("layers", layer, "the network never runs this layer in a forward pass")
        count = len(given[layer]) if layer in given else shapes[layer][0]
        selection = channels[layer] if isinstance(channels, Mapping) else channels
        try:
            targets = unit_targets("direction" if layer in given else "channel", layer, selection, count)  # type: ignore[arg-type]
        except UsageError as error:
            raise UsageError("channels", error.value, error.problem) from None
        chosen[layer] = [target.index for target in targets]
    return Units(network, chosen, pooling, given)
