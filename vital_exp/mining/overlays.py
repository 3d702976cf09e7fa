"""Maps that show where a unit fires in the images that drive it most."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from vital_exp.mining.images import ImageFolder
from vital_exp.mining.index import Index
from vital_exp.mining.patches import grid
from vital_exp.mining.units import Units
from vital_exp.references.decoding import CorruptImageError

IMAGES_AT_ONCE = 16
LARGEST_MAP = 32  # positions along a side that are kept: sheets show images at 96 px

Key = tuple[str, int, str]  # layer, channel, path of the image


@torch.no_grad()
def strongest_maps(
    index: Index, units: Units, folder: ImageFolder, shown: Sequence[tuple[str, int]], count: int
) -> dict[Key, Tensor]:
    """Return maps of where units fire in their strongest images: (rows, columns) in [0, 1], by unit and image.

    A map is divided by its maximum, negative values become 0. Each image passes through the network once, for all units
    that show it. Layers without a map have no such maps, nor have tokens that are not patch tokens.

    Args:
        index: the mining index of the units.
        units: the mined units.
        folder: the folder of the images.
        shown: (layer, channel) of each unit.
        count: number of images per unit.
    """
    asked: dict[str, list[tuple[str, int]]] = {}
    for layer, channel in shown:
        _, rows, columns = grid(units.shapes[layer], folder.preprocessing.size)
        if rows * columns > 1:
            for row in index.top(layer, channel, count):
                asked.setdefault(row.image, []).append((layer, channel))
    places = {layer: {channel: at for at, channel in enumerate(units.channels[layer])} for layer in units.layers}
    found: dict[Key, Tensor] = {}
    paths = sorted(asked)
    for start in range(0, len(paths), IMAGES_AT_ONCE):
        read = _read(folder, paths[start : start + IMAGES_AT_ONCE])
        if not read:
            continue
        maps = units.maps(torch.stack(list(read.values())))
        for number, path in enumerate(read):
            for layer, channel in asked[path]:
                values = maps[layer][number, places[layer][channel]].float()
                found[layer, channel, path] = _on_grid(values, grid(units.shapes[layer], folder.preprocessing.size))
    return found


def _read(folder: ImageFolder, paths: Sequence[str]) -> dict[str, Tensor]:
    """Return the images that can be read, by path."""
    read = {}
    for path in paths:
        try:
            read[path] = folder.load(path)
        except CorruptImageError:  # sound when it was mined
            continue
    return read


def _on_grid(values: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Return the values (P,) of a layer's positions as a map in [0, 1], at most LARGEST_MAP along a side."""
    prefix, rows, columns = shape
    heat = values[prefix:].view(1, 1, rows, columns).clamp(min=0)
    small = functional.adaptive_max_pool2d(heat, (min(rows, LARGEST_MAP), min(columns, LARGEST_MAP)))[0, 0]
    return (small / small.max().clamp(min=torch.finfo(torch.float32).tiny)).half().cpu()
