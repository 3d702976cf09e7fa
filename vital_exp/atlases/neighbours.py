"""The nearest units of each unit: in its layer by activation; in layers before and after by weights if possible."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from vital_exp.atlases.edges import Edge
from vital_exp.atlases.profiles import UNITS_AT_ONCE, Profile, most_alike_of
from vital_exp.atlases.store import INPUT, KEY, OUTPUT, SIMILAR, NeighbourRow

COUNT = 8  # of each kind and layer


@dataclass(frozen=True)
class _Nearest:
    """The units of one other layer that are nearest to each unit of a block.

    Attributes:
        kind: similar, input or output.
        other: the other layer.
        values, numbers: (units of the block, up to COUNT), the nearest first.
        signed: whether values are weights, which may be negative.
    """

    kind: str
    other: str
    values: Tensor
    numbers: Tensor
    signed: bool = False

    def of(self, place: int) -> list[tuple[float, str, int]]:
        """Return value, layer and number of the nearest units of a unit, as far as the values say anything."""
        pairs = zip(self.values[place].tolist(), self.numbers[place].tolist(), strict=True)
        return [(value, self.other, number) for value, number in pairs if value > 0 or (self.signed and value != 0)]


def neighbour_blocks(folder: Path, layer: str, edges: Sequence[Edge]) -> Iterator[tuple[range, list[NeighbourRow]]]:
    """Yield the neighbours of a layer's units, block by block: the numbers of the block's units, and the rows.

    Similar units are the units of the layer whose activations over the images correlate most. Inputs and outputs are
    units of the layers before and after it: those with the largest weights, or without weights those that correlate
    most. A unit whose activation never changes has no neighbours; a correlation that is not above 0 makes none.
    """
    own = Profile.open(folder, layer, KEY)
    before = [edge for edge in edges if edge.end == layer]
    after = [edge for edge in edges if edge.source == layer]
    for start in range(0, len(own), UNITS_AT_ONCE):
        units = range(start, min(start + UNITS_AT_ONCE, len(own)))
        found = [_Nearest(SIMILAR, layer, *most_alike_of(own, start, own, COUNT, itself=True))]
        found += [_joined(folder, own, units, INPUT, edge) for edge in before]
        found += [_joined(folder, own, units, OUTPUT, edge) for edge in after]
        yield units, list(_ranked(layer, units, found))


def _ranked(layer: str, units: range, found: Sequence[_Nearest]) -> Iterator[NeighbourRow]:
    for place, unit in enumerate(units):
        for kind in (SIMILAR, INPUT, OUTPUT):
            nearest = [one for part in found if part.kind == kind for one in part.of(place)]
            nearest.sort(key=lambda one: -abs(one[0]))  # several layers may lead to one
            for rank, (value, other, number) in enumerate(nearest, start=1):
                yield NeighbourRow(layer, unit, kind, rank, other, number, value)


def _joined(folder: Path, own: Profile, units: range, kind: str, edge: Edge) -> _Nearest:
    other = edge.source if kind == INPUT else edge.end
    if not edge.has_weights:
        return _Nearest(kind, other, *most_alike_of(own, units.start, Profile.open(folder, other, KEY), COUNT))
    weights = edge.weights_into(units) if kind == INPUT else edge.weights_out_of(units)
    order = weights.abs().sort(dim=1, descending=True, stable=True).indices[:, :COUNT]
    return _Nearest(kind, other, weights.gather(1, order), order, signed=True)
