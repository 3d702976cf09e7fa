"""What is read of each layer: one number per image and unit."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vital_exp.errors import UsageError
from vital_exp.models.network import VisionNetwork
from vital_exp.models.taps import Taps
from vital_exp.targets.selection import unit_targets

POOLINGS = ("max", "mean")
CHANNEL, DIRECTION = "channel", "direction"
Channels = int | str | Iterable[int | str]


@dataclass(frozen=True)
class Reading:
    """Channels of a layer, or directions in its channels, each pooled over the positions of its map.

    Attributes:
        layer: module name.
        kind: ``"channel"`` or ``"direction"``.
        units: their numbers.
        pooling: ``"max"`` or ``"mean"`` over positions; tokens are positions, the class token among them.
        vectors: (U, C), one direction per unit; None for channels.
    """

    layer: str
    kind: str
    units: tuple[int, ...]
    pooling: str
    vectors: Tensor | None = None

    def pooled(self, activation: Tensor) -> Tensor:
        """Return (N, U) of an activation (N, C, ...)."""
        values = activation.flatten(2)  # (N, C, P)
        if self.vectors is not None:
            values = torch.einsum("ncp,uc->nup", values, self.vectors.to(values))
        pooled = values.amax(dim=2) if self.pooling == "max" else values.mean(dim=2)
        if self.kind == CHANNEL and len(self.units) < pooled.shape[1]:
            pooled = pooled[:, torch.tensor(self.units, device=pooled.device)]
        return pooled

    def identity(self) -> dict[str, object]:
        """Return what decides the values, ready for JSON."""
        return {"layer": self.layer, "kind": self.kind, "units": _ranges(self.units), "vectors": self._vectors_hash()}

    def _vectors_hash(self) -> str | None:
        return None if self.vectors is None else vectors_hash(self.vectors)


def vectors_hash(vectors: Tensor) -> str:
    """Return 16 hexadecimal digits of the sha256 of directions (K, C), as float32."""
    return hashlib.sha256(vectors.detach().cpu().float().contiguous().numpy().tobytes()).hexdigest()[:16]


def _ranges(units: Sequence[int]) -> str:
    """Return numbers as "0-63,70"."""
    spans: list[list[int]] = []
    for unit in units:
        if spans and unit == spans[-1][1] + 1:
            spans[-1][1] = unit
        else:
            spans.append([unit, unit])
    return ",".join(f"{first}-{last}" if last > first else str(first) for first, last in spans)


def readings_of(
    network: VisionNetwork,
    layers: Sequence[str],
    channels: Channels | None,
    directions: Mapping[str, Tensor],
    pooling: str,
) -> list[Reading]:
    """Return what is read of a network.

    Args:
        network: the network.
        layers: module names.
        channels: ``"all"``, ``"0-63"``, a number or a list of these, of every layer; None for none.
        directions: for some of the layers (K, C) directions in its channels.
        pooling: one of POOLINGS.

    Raises:
        UsageError: an unknown layer, pooling or channel, or directions that do not fit their layer.
    """
    if pooling not in POOLINGS:
        raise UsageError("pooling", pooling, f"one of {', '.join(POOLINGS)}", POOLINGS)
    if not layers or len(set(layers)) < len(layers):
        raise UsageError("layers", list(layers), "different layers, at least one")
    widths = layer_widths(network, layers)
    readings = []
    for layer in layers:
        if channels is not None:
            readings.append(Reading(layer, CHANNEL, _selected(layer, channels, widths[layer]), pooling))
        if layer in directions:
            vectors = _fitting(directions[layer], layer, widths[layer])
            readings.append(Reading(layer, DIRECTION, tuple(range(len(vectors))), pooling, vectors))
    for layer in directions:
        if layer not in layers:
            raise UsageError("directions", layer, "directions of a layer that is not mined", layers)
    if not readings:
        raise UsageError("channels", None, "nothing is asked for: name channels or directions")
    return readings


@torch.no_grad()
def layer_widths(network: VisionNetwork, layers: Sequence[str], key: str = "layers") -> dict[str, int]:
    """Return the number of channels of each layer, found by one forward pass.

    Raises:
        UsageError: a name that is no layer (the nearest are suggested), or a layer that never runs.
    """
    taps = Taps(network.module, layers, key)
    zeros = torch.zeros(1, 3, *network.preprocessing.size, dtype=network.dtype, device=network.device)
    try:
        activations, _ = taps(zeros)
    except UsageError as error:
        raise UsageError(key, error.value, error.problem) from None
    return {layer: activations[layer].shape[1] for layer in layers}


def _selected(layer: str, channels: Channels, width: int) -> tuple[int, ...]:
    try:
        targets = unit_targets(CHANNEL, layer, channels, width)
    except UsageError as error:
        raise UsageError("channels", error.value, error.problem) from None
    return tuple(sorted(target.index for target in targets))


def _fitting(vectors: Tensor, layer: str, width: int) -> Tensor:
    if vectors.ndim != 2 or vectors.shape[1] != width:
        problem = f"must have the shape (K, {width}), one row per direction: {layer} has {width} channels"
        raise UsageError("directions", tuple(vectors.shape), problem)
    return vectors.detach().float()
