"""The nearest units of each unit: in its layer by activation; in layers before and after by weights if possible."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from vital_exp.atlases.edges import Edge
from vital_exp.atlases.profiles import Profile, most_alike
from vital_exp.atlases.store import INPUT, KEY, OUTPUT, SIMILAR, NeighbourRow

COUNT = 8  # of each kind


def neighbour_rows(folder: Path, layer: str, edges: Sequence[Edge]) -> list[NeighbourRow]:
    """Return all neighbours of a layer's units.

    Similar units are those of the layer whose activations over the images correlate most. Inputs and outputs are units
    of the layers that lead to it and that it leads to: by the size of the weight that joins them, else by correlation.
    Of units whose activation never changes, and by correlations that are not above 0, there are none.
    """
    own = Profile.open(folder, layer, KEY)
    rows = _rows(layer, SIMILAR, layer, *most_alike(own, own, COUNT, itself=True))
    for kind in (INPUT, OUTPUT):
        for edge in edges:
            at, other = (edge.end, edge.source) if kind == INPUT else (edge.source, edge.end)
            if at == layer:
                rows += _joined(folder, own, kind, edge, other)
    return _ranked(rows)


def _joined(folder: Path, own: Profile, kind: str, edge: Edge, other: str) -> list[NeighbourRow]:
    layer = edge.end if kind == INPUT else edge.source
    if edge.weights is None:
        return _rows(layer, kind, other, *most_alike(own, Profile.open(folder, other, KEY), COUNT))
    weights = edge.weights if kind == INPUT else edge.weights.T
    order = weights.abs().sort(dim=1, descending=True, stable=True).indices[:, :COUNT]
    return _rows(layer, kind, other, weights.gather(1, order), order, signed=True)


def _rows(
    layer: str, kind: str, other: str, values: Tensor, numbers: Tensor, signed: bool = False
) -> list[NeighbourRow]:
    return [
        NeighbourRow(layer, unit, kind, rank, other, number, value)
        for unit, (own, units) in enumerate(zip(values.tolist(), numbers.tolist(), strict=True))
        for rank, (value, number) in enumerate(zip(own, units, strict=True), start=1)
        if value > 0 or (signed and value != 0)
    ]


def _ranked(rows: Sequence[NeighbourRow]) -> list[NeighbourRow]:
    """Return the rows with ranks from 1 for each unit and kind: several layers may lead to one."""
    counts: dict[tuple[int, str], int] = {}
    found = []
    for row in sorted(rows, key=lambda row: -abs(row.value)):
        rank = counts[row.unit, row.kind] = counts.get((row.unit, row.kind), 0) + 1
        found.append(NeighbourRow(row.layer, row.unit, row.kind, rank, row.other_layer, row.other_unit, row.value))
    return found
