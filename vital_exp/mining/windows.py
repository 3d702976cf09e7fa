"""Windows around the strongest position of a unit's map, as wide as the layer's effective receptive field.

The first pass of mining records the position, so that windows need no second pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vital_exp.errors import UsageError
from vital_exp.mining.images import ImageFolder
from vital_exp.mining.patches import Box, grid
from vital_exp.mining.units import Units
from vital_exp.models.network import model_space
from vital_exp.references.decoding import CorruptImageError
from vital_exp.values import is_number, is_whole

AUTO = "auto"
KEY = "references.window"
# Share of the absolute gradient inside the effective receptive field (Luo et al. 2016); the theoretical receptive field
# is far wider, and its border hardly matters.
FIELD_SHARE = 0.9
FIELD_IMAGES = 8  # a layer's receptive field is the median over about so many images


def check_window(window: object, size: tuple[int, int], key: str = KEY) -> None:
    """Check the side of windows for pictures of ``size`` (height, width).

    Raises:
        UsageError: neither auto, nor a share of the shorter side, nor px; or a window larger than the input.
    """
    if window == AUTO:
        return
    if not is_whole(window, 1) and not (is_number(window, 0, 1) and window):
        allowed = f"auto, a share of the shorter side in (0, 1], or a whole number of px, 2 to {min(size)}"
        raise UsageError(key, window, f"must be {allowed}")
    if window > min(size):
        raise UsageError(key, window, f"must be at most {min(size)} px: the network's input is {size[0]}x{size[1]}")


def window_side(window: str | float, field: int | None, size: tuple[int, int], key: str = KEY) -> int:
    """Return the side of windows in px.

    Args:
        window: ``"auto"``, a share of the shorter side, or px.
        field: side of the layer's effective receptive field; None where it could not be measured.
        size: (height, width) of the pictures.
        key: the configuration key that errors blame.

    Raises:
        UsageError: see :func:`check_window`; or auto where the receptive field could not be measured.
    """
    check_window(window, size, key)
    if window == AUTO:
        if field is None:
            problem = "no gradient reaches the picture, so the layer's receptive field is unknown: give a share or px"
            raise UsageError(key, window, problem)
        return field
    side = float(window)
    return max(1, round(side * min(size))) if side <= 1 else int(side)


def place_of(position: int, shape: Sequence[int], size: tuple[int, int]) -> tuple[float, float] | None:
    """Return the centre (y, x) in px of a flat position of a layer's map.

    None where the position has no place in the image: a class token, a token outside a grid, the single position of a
    vector.
    """
    prefix, rows, columns = grid(shape, size)
    if position < prefix or rows * columns == 1:
        return None
    row, column = divmod(position - prefix, columns)
    return (row + 0.5) * size[0] / rows, (column + 0.5) * size[1] / columns


def window_around(place: tuple[float, float], size: tuple[int, int], side: int) -> Box:
    """Return the box of a window around a place (y, x), moved inside the borders of a picture (height, width)."""
    y, x = (min(max(round(centre - side / 2), 0), length - side) for centre, length in zip(place, size, strict=True))
    return x, y, x + side, y + side


def layer_field(units: Units, folder: ImageFolder, layer: str, strongest: Sequence[tuple[int, str]]) -> int | None:
    """Return a layer's :func:`receptive_field` by the strongest images of some units; None without an image.

    Args:
        units: the units that are mined.
        folder: the images.
        layer: the layer.
        strongest: the place of each unit among the layer's mined units, and the path of its strongest image.
    """
    pictures, numbers = [], []
    for unit, path in strongest[:: max(1, -(-len(strongest) // FIELD_IMAGES))]:
        try:
            pictures.append(folder.load(path))
        except CorruptImageError:  # the file was readable when it was mined and has changed since
            continue
        numbers.append(unit)
    return receptive_field(units, layer, torch.stack(pictures), numbers) if pictures else None


def receptive_field(units: Units, layer: str, pictures: Tensor, numbers: Sequence[int]) -> int | None:
    """Return the side in px of a layer's effective receptive field; None where no gradient reaches the pictures.

    For each picture, take the gradient of the sum of the layer's channels at the unit's strongest position, and the
    square around this position that holds ``FIELD_SHARE`` of the absolute gradient; the result is the median of the
    squares' sides. The sum of all channels is used because a unit at its bound (ReLU6) has no gradient. A position
    without a place counts as seeing the whole picture.

    Args:
        units: the units that are mined.
        layer: the layer.
        pictures: (n, C, H, W) in [0, 1].
        numbers: for each picture the place of a unit among the layer's mined units.
    """
    size = (pictures.shape[-2], pictures.shape[-1])
    with torch.inference_mode(False), torch.enable_grad():
        x = model_space(pictures.clone(), units.network).requires_grad_()
        activations, _ = units.network.taps([layer], "layers")(x)
        channels, rows = activations[layer].flatten(2), torch.arange(len(x))  # (n, C, P), (n,)
        positions = units.of_units(layer, channels.detach())[rows, list(numbers)].argmax(dim=1)  # (n,)
        values = units.at_positions(layer, channels)
        if not values.requires_grad:
            return None
        (gradient,) = torch.autograd.grad(values[rows, :, positions].sum(), x)
    maps = gradient.detach().abs().sum(dim=1).double().cpu()  # (n, H, W)
    places = [place_of(position, units.shapes[layer], size) for position in positions.tolist()]
    sides = sorted(_side(heat, place, size) for heat, place in zip(maps, places, strict=True) if heat.sum() > 0)
    return sides[len(sides) // 2] if sides else None


def _side(heat: Tensor, place: tuple[float, float] | None, size: tuple[int, int]) -> int:
    """Return the side in px of the square around a place that holds ``FIELD_SHARE`` of a map (H, W)."""
    if place is None:
        return min(size)
    rows, columns = (torch.arange(length) + 0.5 for length in size)
    distance = torch.maximum((rows - place[0]).abs()[:, None], (columns - place[1]).abs()[None]).flatten()
    order = distance.argsort()
    held = heat.flatten()[order].cumsum(dim=0)
    last = int((held < FIELD_SHARE * held[-1]).sum())
    return max(1, min(round(2 * float(distance[order[last]])), min(size)))
