"""The nearest units of each unit: in its layer by activation; in layers before and after by weights if possible."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from vital_exp.atlases.edges import Edge
from vital_exp.atlases.profiles import Profile, most_alike
from vital_exp.atlases.store import INPUT, KEY, OUTPUT, SIMILAR, NeighbourRow

COUNT = 8  # of each kind and layer


@dataclass(frozen=True)
class _Nearest:
    """Units of one other layer that are nearest to each unit of a layer.

    Attributes:
        kind: similar, input or output.
        other: the other layer.
        values, numbers: (U, up to COUNT), the nearest first.
        signed: whether values are weights, below 0 too.
    """

    kind: str
    other: str
    values: Tensor
    numbers: Tensor
    signed: bool = False

    def of(self, unit: int) -> list[tuple[float, str, int]]:
        """Return value, layer and number of those of a unit that say something."""
        pairs = zip(self.values[unit].tolist(), self.numbers[unit].tolist(), strict=True)
        return [(value, self.other, number) for value, number in pairs if value > 0 or (self.signed and value != 0)]


def neighbour_rows(folder: Path, layer: str, units: Iterable[int], edges: Sequence[Edge]) -> Iterator[NeighbourRow]:
    """Return all neighbours of some units of a layer, unit by unit; they are found before the first is returned.

    Similar units are those of the layer whose activations over the images correlate most. Inputs and outputs are units
    of the layers that lead to it and that it leads to: by the size of the weight that joins them, else by correlation.
    Of units whose activation never changes, and by correlations that are not above 0, there are none.
    """
    own = Profile.open(folder, layer, KEY)
    found = [_Nearest(SIMILAR, layer, *most_alike(own, own, COUNT, itself=True))]
    found += [_joined(folder, own, INPUT, edge) for edge in edges if edge.end == layer]
    found += [_joined(folder, own, OUTPUT, edge) for edge in edges if edge.source == layer]
    return _ranked(layer, units, found)


def _ranked(layer: str, units: Iterable[int], found: Sequence[_Nearest]) -> Iterator[NeighbourRow]:
    for unit in units:
        for kind in (SIMILAR, INPUT, OUTPUT):
            nearest = [one for part in found if part.kind == kind for one in part.of(unit)]
            nearest.sort(key=lambda one: -abs(one[0]))  # several layers may lead to one
            for rank, (value, other, number) in enumerate(nearest, start=1):
                yield NeighbourRow(layer, unit, kind, rank, other, number, value)


def _joined(folder: Path, own: Profile, kind: str, edge: Edge) -> _Nearest:
    other = edge.source if kind == INPUT else edge.end
    if edge.weights is None:
        return _Nearest(kind, other, *most_alike(own, Profile.open(folder, other, KEY), COUNT))
    weights = edge.weights if kind == INPUT else edge.weights.T
    order = weights.abs().sort(dim=1, descending=True, stable=True).indices[:, :COUNT]
    return _Nearest(kind, other, weights.gather(1, order), order, signed=True)
