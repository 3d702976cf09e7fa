"""The units that are mined: channels or directions of layers, and the pooling of their maps to one number."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vital_exp.errors import UsageError
from vital_exp.mining.bounds import before_bounds
from vital_exp.models.layers import unit_shape
from vital_exp.models.network import VisionNetwork, model_space
from vital_exp.models.precision import exact, precisions_of
from vital_exp.models.tokens import token_span
from vital_exp.models.unit_readout import unit_readout
from vital_exp.relevance.maps import WITH_MAPS, activations_and_relevance
from vital_exp.targets.autoencoder import SparseAutoencoder
from vital_exp.targets.selection import unit_targets
from vital_exp.targets.unit import OUTPUT, TOKENS, Target
from vital_exp.values import one_of

RELEVANCE = "relevance"
POOLINGS = ("max", "mean", RELEVANCE)
LARGEST_MAPS = 2**26  # most values of an autoencoder's features in memory at a time


@dataclass(frozen=True)
class ClassRelevance:
    """Ranks images by relevance for a class in place of activations (RelMax, Achtibat et al. 2023).

    Attributes:
        index: the class.
        method: a relevance method that gives maps.
    """

    index: int
    method: str = "lrp"


@dataclass(frozen=True)
class Units:
    """A selection of units.

    Attributes:
        network: the frozen network.
        channels: for each layer the numbers of the mined channels or directions.
        pooling: how a unit's map becomes one number: ``"max"`` or ``"mean"`` over positions, or ``"relevance"``, the
            sum of a relevance map. Every token is a position, including the class token.
        directions: for some layers directions (K, C) that are mined instead of channels, or the autoencoder whose
            features are mined.
        shapes: for each layer the shape of its map, (rows, columns), (tokens,) or (1,).
        tokens: which tokens are read, ``"cls"``, ``"register"`` or ``"patches"``; None: all positions.
        spans: for each layer the positions (first, last + 1) of these tokens; empty without ``tokens``.
        relevance: the class and the method of the relevance maps, for the pooling ``"relevance"``.
    """

    network: VisionNetwork
    channels: Mapping[str, Sequence[int]]
    pooling: str
    directions: Mapping[str, Tensor | SparseAutoencoder]
    shapes: Mapping[str, tuple[int, ...]]
    tokens: str | None = None
    spans: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    relevance: ClassRelevance | None = None

    @property
    def layers(self) -> list[str]:
        """The layers' names."""
        return list(self.channels)

    def is_sparse(self, layer: str) -> bool:
        """Whether the layer's units are features of an autoencoder, which are 0 for most images."""
        return isinstance(self.directions.get(layer), SparseAutoencoder)

    @torch.inference_mode()
    def maps(self, images: Tensor) -> dict[str, Tensor]:
        """Return for each layer the units' maps (B, U, P) for images (B, C, H, W), on the network's device."""
        if self.relevance is not None:
            return self._relevance_maps(images, self.relevance)
        activations, _ = self.network.taps(self.layers, "layers")(model_space(images, self.network))
        return {layer: self.of_units(layer, exact(activations[layer]).flatten(2)) for layer in self.layers}

    def _relevance_maps(self, images: Tensor, relevance: ClassRelevance) -> dict[str, Tensor]:
        """Return for each layer the units' relevance for a class at each position, (B, U, P)."""
        readout = unit_readout(self.network, [Target("class", relevance.index)]).select([0] * len(images))
        with torch.inference_mode(False), torch.enable_grad():
            pictures = model_space(images.clone(), self.network)
            try:
                _, maps, _ = activations_and_relevance(self.network, pictures, self.layers, readout, relevance.method)
            except UsageError as error:
                raise UsageError(error.key.replace("model.layers", "layers"), error.value, error.problem) from None
        return {layer: self.of_units(layer, exact(maps[layer]).flatten(2)) for layer in self.layers}

    def of_units(self, layer: str, values: Tensor) -> Tensor:
        """Return the units' values (B, U, P) from a layer's channels (B, C, P), at the positions that are read."""
        values = self.at_positions(layer, values)
        directions = self.directions.get(layer)
        if isinstance(directions, SparseAutoencoder):
            values = directions.encode(values)
        elif directions is not None:
            values = torch.einsum("bcp,kc->bkp", values, directions.to(values))
        numbers = self.channels[layer]
        return values if len(numbers) == values.shape[1] else values[:, list(numbers)]

    def at_positions(self, layer: str, values: Tensor) -> Tensor:
        """Return the values (..., P) at the positions that are read."""
        first, end = self.spans.get(layer, (0, values.shape[-1]))
        return values[..., first:end]

    def values(self, images: Tensor) -> dict[str, Tensor]:
        """Return for each layer the units' values, (B, U) float32 on the network's device.

        Raises:
            UsageError: some values are NaN or infinite, so images cannot be ranked.
        """
        parts = [
            {layer: self._checked(layer, pool(maps, self.pooling)) for layer, maps in self.maps(part).items()}
            for part in images.split(self._at_once)
        ]
        return {layer: torch.cat([part[layer] for part in parts]) for layer in self.layers}

    @property
    def _at_once(self) -> int:
        """The number of images whose maps are in memory together; maps of an autoencoder's features are large."""
        sizes = [len(self.directions[layer]) * math.prod(shape) for layer, shape in self.shapes.items()
                 if self.is_sparse(layer)]  # fmt: skip
        return max(1, LARGEST_MAPS // max([*sizes, 1]))

    def ranked(self, images: Tensor) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """Return for each layer the units' values, tie-breakers and flat positions of the maxima, (B, U) each.

        Many images drive a bounded unit (behind a ReLU6, for example) to its bound, so their values are equal. Then the
        activation before the bound breaks the tie, and its maximum gives the position. If the activation before the
        bound is not known, the mean over positions breaks the tie.

        Raises:
            UsageError: see :meth:`values`.
        """
        parts = [self._ranked(part) for part in images.split(self._at_once)]
        if len(parts) == 1:
            return parts[0]
        return {layer: _joined([part[layer] for part in parts]) for layer in self.layers}

    def _ranked(self, images: Tensor) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        ranked = {}
        for layer, (maps, unclipped) in self._maps_and_unclipped(images).items():
            means = pool(maps, "mean")
            largest, positions = (maps if unclipped is None else unclipped).max(dim=2)
            values = pool(maps, self.pooling)
            ranked[layer] = self._checked(layer, values), means if unclipped is None else largest, positions
        return ranked

    def _maps_and_unclipped(self, images: Tensor) -> dict[str, tuple[Tensor, Tensor | None]]:
        """Return for each layer the units' maps (B, U, P), and the maps before a bound clips them, or None."""
        if self.relevance is not None:
            return {layer: (maps, None) for layer, maps in self.maps(images).items()}
        with before_bounds(self.network, self.layers, len(images)) as inputs:
            maps_of = self.maps(images)
        both: dict[str, tuple[Tensor, Tensor | None]] = {}
        for layer, maps in maps_of.items():
            unclipped = inputs.get(layer)
            # If the network takes pictures one by one, only one picture was recorded. Directions mix channels.
            if unclipped is None or len(unclipped) != len(maps) or layer in self.directions:
                both[layer] = maps, None
            else:
                both[layer] = maps, self.of_units(layer, unclipped)
        return both

    def _checked(self, layer: str, values: Tensor) -> Tensor:
        """Return values as float32, after checking that they are finite."""
        checked = values.float()
        if not bool(checked.isfinite().all()):
            narrow = "; float16 ends at 65504: hand over module.bfloat16() or float()"
            half = torch.float16 in precisions_of(self.network.module)
            problem = "some images make its activations NaN or infinite"
            raise UsageError("layers", layer, problem + (narrow if half else ""))
        return checked

    def strongest(self, images: Tensor) -> dict[str, Tensor]:
        """Return for each layer the flat position of each unit's largest value, (B, U) int64."""
        both = self._maps_and_unclipped(images).items()
        return {layer: (maps if unclipped is None else unclipped).argmax(dim=2) for layer, (maps, unclipped) in both}

    def describe(self) -> list[dict[str, object]]:
        """Return the layers with their units, directions, tokens and relevance, ready for JSON."""
        hashes = {layer: directions_hash(vectors) for layer, vectors in self.directions.items()}
        tokens: dict[str, object] = {"tokens": self.tokens} if self.tokens else {}
        tokens |= {"relevance": vars(self.relevance)} if self.relevance else {}
        return [
            {"layer": layer, "channels": spans(numbers), "directions": hashes.get(layer), **tokens}
            for layer, numbers in self.channels.items()
        ]


def _joined(parts: Sequence[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    values, seconds, positions = (torch.cat(column) for column in zip(*parts, strict=True))
    return values, seconds, positions


def pool(maps: Tensor, pooling: str) -> Tensor:
    """Return maps (..., P) pooled over positions: maximum or mean; the sum for relevance."""
    if pooling == RELEVANCE:
        return maps.sum(dim=-1)
    return maps.amax(dim=-1) if pooling == "max" else maps.mean(dim=-1)


def spans(numbers: Sequence[int]) -> str:
    """Return ascending numbers as "0-63,70"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(f"{first}-{last}" if last > first else str(first) for first, last in runs)


def directions_hash(vectors: Tensor | SparseAutoencoder) -> str:
    """Return a hash of directions, or the description of an autoencoder; an index identifies them by it."""
    if isinstance(vectors, SparseAutoencoder):
        return vectors.describe()
    return hashlib.sha256(vectors.detach().cpu().float().contiguous().numpy().tobytes()).hexdigest()[:16]


def select_units(
    network: VisionNetwork,
    layers: Sequence[str],
    channels: object = "all",
    pooling: str = "max",
    directions: Mapping[str, Tensor | SparseAutoencoder] | None = None,
    tokens: str | None = None,
    relevance: ClassRelevance | None = None,
) -> Units:
    """Return the units of some layers, their numbers ascending.

    Args:
        network: the frozen network.
        layers: module names; ``"output"`` is the network's output.
        channels: ``"all"``, a number, ``"0-63"`` or a list of these, for every layer; or {layer: such a value}.
        pooling: ``"max"`` or ``"mean"`` of the activation; ``"relevance"``: the sum of the relevance for a class.
        directions: for some layers directions (K, C) or an autoencoder, which are mined instead of channels; then
            ``channels`` are the numbers of the directions or features.
        tokens: which tokens of a transformer's layers are read; None: all positions.
        relevance: class and method, for the pooling ``"relevance"``.

    Raises:
        UsageError: no layer, an unknown layer, a channel out of range, an unknown pooling, directions of wrong shape.
    """
    if not layers or len(set(layers)) < len(layers):
        raise UsageError("layers", list(layers), "must be at least one layer, each named once; list=layers prints them")
    one_of("pooling", pooling, POOLINGS)
    _check_relevance(network, pooling, relevance, has_directions=bool(directions))
    if relevance is not None and OUTPUT in layers:
        raise UsageError("layers", OUTPUT, "relevance for a class ranks units of layers below the output")
    shapes, directions = map_shapes(network, layers), dict(directions or {})
    if stray := [layer for layer in directions if layer not in layers]:
        raise UsageError("directions", stray[0], "is not among the mined layers", layers)
    chosen = {}
    for layer in layers:
        if layer in directions:
            _check_directions(directions[layer], layer, shapes[layer][0])
        count = len(directions[layer]) if layer in directions else shapes[layer][0]
        selection = channels[layer] if isinstance(channels, Mapping) else channels
        try:
            targets = unit_targets("direction" if layer in directions else "channel", layer, selection, count)  # type: ignore[arg-type]
        except UsageError as error:
            raise UsageError("channels", error.value, error.problem) from None
        chosen[layer] = sorted(target.index for target in targets)
    maps = {layer: shape[1:] for layer, shape in shapes.items()}
    if tokens is None:
        return Units(network, chosen, pooling, directions, maps, relevance=relevance)
    spans = {layer: token_span(network, layer, one_of("position", tokens, TOKENS), "position") for layer in layers}
    maps = {layer: (end - first,) for layer, (first, end) in spans.items()}
    return Units(network, chosen, pooling, directions, maps, tokens, spans, relevance)


def _check_relevance(
    network: VisionNetwork, pooling: str, relevance: ClassRelevance | None, *, has_directions: bool
) -> None:
    if pooling != RELEVANCE:
        return
    if relevance is None:
        raise UsageError("class", None, "pooling=relevance ranks by relevance for a class: give its number or name")
    network.classes.check(relevance.index, "class")
    one_of("relevance", relevance.method, WITH_MAPS)
    if has_directions:
        raise UsageError("pooling", pooling, "ranks channels alone; directions take max or mean", ("max", "mean"))


@torch.no_grad()
def map_shapes(network: VisionNetwork, layers: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Return the shape (C, ...) of each layer's activation.

    Raises:
        UsageError: the network has no layer of a name (the nearest names are suggested), or the layer never runs or
            cannot be read.
    """
    return {layer: unit_shape(network, layer, "layers") for layer in layers}


def _check_directions(directions: Tensor | SparseAutoencoder, layer: str, width: int) -> None:
    vectors = directions.encoder if isinstance(directions, SparseAutoencoder) else directions
    if vectors.ndim != 2 or vectors.shape[1] != width:
        problem = f"must have the shape (K, {width}), one row per direction: {layer} has {width} channels"
        raise UsageError("directions", tuple(vectors.shape), problem)
