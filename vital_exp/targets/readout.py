"""Read-outs: the number that a target reads from its layer at each position, a direction in the layer's channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vital_exp.errors import UsageError
from vital_exp.targets.autoencoder import SparseAutoencoder
from vital_exp.targets.unit import OUTPUT, Target

Position = tuple[int, int]
Span = tuple[int, int | None]
# Stands for the position where a picture's read-out is largest.
STRONGEST: Position = (-1, -1)


@dataclass(frozen=True)
class Readout:
    """The read-outs of a batch of N targets of one layer.

    Attributes:
        layer: module name, or ``"output"`` for the network's output.
        vectors: (N, C), one direction in the layer's channels per picture; for a channel or class its unit vector.
        positions: per picture None for the whole map, (row, column) for one position ((0, token) in a layer of tokens),
            or STRONGEST.
        autoencoder: the autoencoder whose features are read, ``vectors`` being rows of its encoder; None: the read-out
            is linear.
        features: (N,), the numbers of these features.
        span: the positions that are read at all, (first, last + 1). None in place of the second number: to the end,
            since larger pictures have more positions. None: all positions.
    """

    layer: str
    vectors: Tensor
    positions: tuple[Position | None, ...]
    autoencoder: SparseAutoencoder | None = None
    features: Tensor | None = None
    span: Span | None = None

    def map(self, activation: Tensor) -> Tensor:
        """Return the read-out at each position, (N, P), of an activation (N, C, ...) of the layer.

        Examples:
            >>> import torch
            >>> from vital_exp.targets.readout import Readout
            >>> activation = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]])  # one picture, 2 channels, a map of 1 x 2
            >>> readout = Readout("layer1", torch.tensor([[0.0, 1.0]]), (None,))  # the second channel
            >>> readout.map(activation)
            tensor([[3., 4.]])
            >>> readout.value(activation), readout.mean(activation)
            (tensor([4.]), tensor([3.5000]))
        """
        values = activation.flatten(2)  # (N, C, P)
        if self.autoencoder is not None and self.features is not None:
            return self.autoencoder.read(values, self.features)
        vectors = self.vectors.to(values)
        return torch.einsum("ncp,nc->np", values, vectors)

    def mask(self, activation: Tensor) -> Tensor:
        """Return 1 where a picture's target reads and 0 elsewhere, (N, P), for an activation (N, C, ...)."""
        values = self.map(activation)
        mask = torch.ones_like(values)
        if self.span is not None:
            mask[:, : self.span[0]] = 0
            if self.span[1] is not None:
                mask[:, self.span[1] :] = 0
        for number, position in enumerate(self.positions):
            if position is not None:
                here = values[number].argmax() if position == STRONGEST else _flat(position, activation)
                mask[number] = 0
                mask[number, here] = 1
        return mask

    def value(self, activation: Tensor) -> Tensor:
        """Return the largest read-out where the target reads, (N,); mining ranks images by it."""
        values = self.map(activation)
        return values.masked_fill(self.mask(activation) == 0, -torch.inf).amax(dim=1)

    def mean(self, activation: Tensor) -> Tensor:
        """Return the mean read-out where the target reads, (N,); activation maximisation maximises it."""
        mask = self.mask(activation)
        return (self.map(activation) * mask).sum(dim=1) / mask.sum(dim=1)

    def of(self, picture: int, count: int, *, strongest: bool = False) -> Readout:
        """Return one picture's read-out, repeated for ``count`` images.

        With ``strongest`` a neuron is read at its channel's strongest position in each image, since a reference image
        need not show what excites the neuron at the neuron's own position.
        """
        position = self.positions[picture]
        if strongest and position is not None:
            position = STRONGEST
        return replace(self.select([picture] * count), positions=(position,) * count)

    def select(self, pictures: Sequence[int]) -> Readout:
        """Return the read-outs of some pictures, in the order given."""
        chosen = list(pictures)
        positions = tuple(self.positions[picture] for picture in chosen)
        features = None if self.features is None else self.features[chosen]
        return replace(self, vectors=self.vectors[chosen], positions=positions, features=features)

    def shares(self, activation: Tensor) -> Tensor:
        """Return each channel's contribution to the read-out at each position, v_c a_c without biases, (N, C, P)."""
        values = activation.flatten(2)
        if self.autoencoder is not None:
            values = self.autoencoder.centred(values)
        return self.vectors.to(values)[:, :, None] * values

    def active(self, activation: Tensor) -> Tensor:
        """Return whether the read-out is positive at each position, (N, P).

        A feature of an autoencoder that is inactive at all positions counts as active at the position where its linear
        part is largest: few features are active in a starting picture, and the others need a position too.
        """
        active = self.map(activation) > 0
        if self.autoencoder is None or self.features is None:
            return active
        nearest = self.autoencoder.linear(activation.flatten(2), self.features).argmax(dim=1, keepdim=True)
        inactive = ~active.any(dim=1, keepdim=True)
        return active.scatter(1, nearest, active.gather(1, nearest) | inactive)

    def describe(self) -> str:
        """Return everything that the read-out depends on, as text for a hash."""
        text = f"{self.layer} {self.vectors.tolist()} {self.positions}"
        if self.span is not None:
            text += f" {self.span}"
        if self.autoencoder is not None and self.features is not None:
            text += f" {self.autoencoder.describe()} {self.features.tolist()}"
        return text


def _flat(position: Position, activation: Tensor) -> int:
    return position[0] * activation.shape[-1] + position[1]


def readout(
    targets: Sequence[Target],
    channels: int,
    vectors: Tensor | SparseAutoencoder | None = None,
    span: Span | None = None,
) -> Readout:
    """Return the read-outs of targets.

    Args:
        targets: units of one layer, or classes.
        channels: the number of the layer's channels, or of the network's classes.
        vectors: directions (K, C), or the autoencoder whose encoder holds them, for targets that are directions.
        span: the positions of the targets' tokens; None: all.
    """
    autoencoder = vectors if isinstance(vectors, SparseAutoencoder) else None
    vectors = vectors.encoder if isinstance(vectors, SparseAutoencoder) else vectors
    rows = []
    for target in targets:
        if target.is_direction:
            assert vectors is not None
            rows.append(vectors[target.index].float())
        else:
            rows.append(torch.nn.functional.one_hot(torch.tensor(target.index), channels).float())
    layer = targets[0].layer or OUTPUT
    positions = tuple(target.position for target in targets)
    features = torch.tensor([target.index for target in targets]) if autoencoder else None
    return Readout(layer, torch.stack(rows), positions, autoencoder, features, span)


def check_unit(target: Target, shape: Sequence[int], key: str = "target.index") -> None:
    """Make sure that a layer whose activation has the shape (C, ...) has a target's channel and position.

    Raises:
        UsageError: it has not; the message names the layer's channels or map.
    """
    channels, *size = shape
    if not target.is_direction and target.index >= channels:
        raise UsageError(key, target.index, f"{target.layer} has {channels} channels, 0 to {channels - 1}")
    if target.position is None:
        return
    height, width = (size[0], size[1]) if len(size) == 2 else (1, size[0])
    row, column = target.position
    if row >= height or column >= width:
        allowed = f"must be a [row, column] of the {height}x{width} map of {target.layer}, counted from 0"
        raise UsageError("target.position", [row, column], allowed)
