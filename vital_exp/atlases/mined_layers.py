"""Mines the layers of an atlas: several layers in one pass over the images, a wide layer in several passes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from vital_exp.atlases.profiles import ProfileWriter
from vital_exp.atlases.request import AtlasRequest
from vital_exp.mining.index import NAME as INDEX
from vital_exp.mining.index import Index
from vital_exp.mining.joined import join_indices
from vital_exp.mining.mine import Mining
from vital_exp.mining.windows import layer_field

MINING = "mining"
UNITS_PER_PASS = 16384  # mined together: some 200 MB

Pass = Mapping[str, range]  # the units of each layer that are mined together


def passes(counts: Mapping[str, int], most: int = UNITS_PER_PASS) -> list[Pass]:
    """Return layers by pass, since mining holds the strongest images of all units of a pass in memory.

    A layer of more than ``most`` units has passes of its own.

    Examples:
        >>> from vital_exp.atlases.mined_layers import passes
        >>> passes({"a": 2, "b": 2, "c": 5, "d": 1}, most=4)
        [{'a': range(0, 2), 'b': range(0, 2)}, {'c': range(0, 4)}, {'c': range(4, 5)}, {'d': range(0, 1)}]
    """
    found: list[dict[str, range]] = []
    left = 0  # units for which the last pass has room
    for layer, count in counts.items():
        if count > left:
            found += [{layer: range(start, min(count, start + most))} for start in range(0, count, most)]
            left = most - count
        else:
            found[-1][layer] = range(count)
            left -= count
    return list(found)


class LayersMining:
    """Mines layers into the folder of an atlas, with the profiles of their units.

    Args:
        asked: network, images, units.
        out: the atlas's folder.
        begin: called with the description of each mining before the mining begins.
    """

    def __init__(self, asked: AtlasRequest, out: Path, begin: Callable[[dict[str, object]], None]) -> None:
        self.asked, self.out, self.begin = asked, out, begin

    def run(self, layers: Sequence[str]) -> dict[str, str]:
        """Mine layers that were not mined; return the folder of each one's index, relative to the atlas."""
        counts = {layer: self.asked.parts[layer].count for layer in layers}
        wide = {layer: self._mining({layer: range(count)}) for layer, count in counts.items() if count > UNITS_PER_PASS}
        parts: dict[str, list[Index]] = {layer: [] for layer in wide}
        places = {layer: _place(mining) for layer, mining in wide.items()}
        for units in passes(counts, UNITS_PER_PASS):
            (first, *_) = units
            if first in wide and (self.out / places[first] / INDEX).is_file():
                continue  # joined before
            mining = self._mining(units)
            self.begin(mining.meta)
            with torch.no_grad():
                index = mining.run(self.out / _place(mining))
            if first in wide:
                parts[first].append(index)
            else:
                places |= dict.fromkeys(units, _place(mining))
        for layer, indices in parts.items():
            if indices:
                self._join(wide[layer], layer, indices)
        return places

    def _mining(self, units: Pass) -> Mining:
        asked, config = self.asked, self.asked.config
        counts = {layer: asked.parts[layer].count for layer in units}
        writer = ProfileWriter(self.out, counts, len(asked.folder.paths), units)
        counted = (config.batch_size, config.workers, config.progress, config.save_every)
        return Mining(asked.units(units), asked.folder, asked.k, None, *counted, watch=writer)

    def _join(self, mining: Mining, layer: str, parts: Sequence[Index]) -> None:
        """Join the indices of a wide layer's units to the index that mining all at once would write."""
        strongest = [image for part in parts for image in part.strongest_images(layer)]
        field = layer_field(mining.units, mining.folder, layer, strongest)
        join_indices(parts, self.out / _place(mining) / INDEX, {**mining.meta, "fields": {layer: field}})
        for part in parts:
            shutil.rmtree(part.path.parent, ignore_errors=True)


def _place(mining: Mining) -> str:
    return f"{MINING}/{mining.key}"
