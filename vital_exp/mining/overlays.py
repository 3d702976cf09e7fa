"""Maps of where a unit is active in the images that drive it most."""

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
LARGEST_MAP = 32  # positions along a side; sheets show images at 96 px and have no use for more

Key = tuple[str, int, str]  # layer, channel, path of the image


@torch.no_grad()
def strongest_maps(
    index: Index, units: Units, folder: ImageFolder, shown: Sequence[tuple[str, int]], count: int
) -> dict[Key, Tensor]:
    """Return maps of where units are active in their strongest images: (rows, columns) in [0, 1], by unit and image.

    A map is divided by its maximum; negative values become 0. Each image passes through the network once, for all units
    that show it. Layers of a single position have no maps; class and register tokens are left out.

    Args:
        index: the mining index of the units.
        units: the mined units.
        folder: the folder of the images.
        shown: (layer, channel) of each unit.
        count: number of images per unit.
    """
    units_of: dict[str, list[tuple[str, int]]] = {}  # by path of an image
    for layer, channel in shown:
        _, rows, columns = grid(units.shapes[layer], folder.preprocessing.size)
        if rows * columns > 1:
            for row in index.top(layer, channel, count):
                units_of.setdefault(row.image, []).append((layer, channel))
    places = {layer: {channel: at for at, channel in enumerate(units.channels[layer])} for layer in units.layers}
    heat: dict[Key, Tensor] = {}
    paths = sorted(units_of)
    for start in range(0, len(paths), IMAGES_AT_ONCE):
        images = _read(folder, paths[start : start + IMAGES_AT_ONCE])
        if not images:
            continue
        maps = units.maps(torch.stack(list(images.values())))
        for number, path in enumerate(images):
            for layer, channel in units_of[path]:
                values = maps[layer][number, places[layer][channel]].float()
                heat[layer, channel, path] = _on_grid(values, grid(units.shapes[layer], folder.preprocessing.size))
    return heat


def _read(folder: ImageFolder, paths: Sequence[str]) -> dict[str, Tensor]:
    """Return the readable images by path."""
    images = {}
    for path in paths:
        try:
            images[path] = folder.load(path)
        except CorruptImageError:  # the file was readable when it was mined and has changed since
            continue
    return images


def _on_grid(values: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Return the values (P,) of a layer's positions as a map in [0, 1], at most LARGEST_MAP along a side."""
    prefix, rows, columns = shape
    heat = values[prefix:].view(1, 1, rows, columns).clamp(min=0)
    small = functional.adaptive_max_pool2d(heat, (min(rows, LARGEST_MAP), min(columns, LARGEST_MAP)))[0, 0]
    return (small / small.max().clamp(min=torch.finfo(torch.float32).tiny)).half().cpu()
