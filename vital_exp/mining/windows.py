"""Windows around the strongest position of a unit's map, as wide as the layer sees, without a pass of their own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vital_exp.errors import UsageError
from vital_exp.mining.patches import Box, grid
from vital_exp.mining.units import Units
from vital_exp.models.network import model_space
from vital_exp.values import is_number, is_whole

AUTO = "auto"
KEY = "references.window"
# Share of the absolute gradient that the effective receptive field holds (Luo et al. 2016): the theoretical one is far
# wider, and its border hardly matters.
FIELD_SHARE = 0.9
# Images that a layer's receptive field is the median over.
FIELD_IMAGES = 8


def check_window(window: object, size: tuple[int, int], key: str = KEY) -> None:
    """Make sure that pictures of (height, width) have windows of a side.

    Raises:
        UsageError: neither auto, nor a share of the shorter side, nor px; a window larger than the input.
    """
    if window == AUTO:
        return
    if not is_whole(window, 1) and not (is_number(window, 0, 1) and window):
        allowed = f"auto, a share of the shorter side in (0, 1], or a whole number of px, 2 to {min(size)}"
        raise UsageError(key, window, allowed)
    if window > min(size):
        raise UsageError(key, window, f"a window larger than the network's input of {size[0]}x{size[1]} px")


def window_side(window: str | float, field: int | None, size: tuple[int, int], key: str = KEY) -> int:
    """Return the side in px of windows of pictures of (height, width).

    Args:
        window: ``"auto"``, a share of the shorter side, or px.
        field: side of the layer's effective receptive field; None where it could not be measured.
        size: of the pictures.
        key: the configuration key to blame.

    Raises:
        UsageError: see :func:`check_window`; auto where the receptive field could not be measured.
    """
    check_window(window, size, key)
    if window == AUTO:
        if field is None:
            problem = (
                "the layer's receptive field could not be measured (no gradient reaches the picture): give a share"
            )
            raise UsageError(key, window, problem)
        return field
    side = float(window)
    return max(1, round(side * min(size))) if side <= 1 else int(side)


def place_of(position: int, shape: Sequence[int], size: tuple[int, int]) -> tuple[float, float] | None:
    """Return the centre (y, x) in px of a flat position of a layer's map; None where it has no place in the picture.

    A class token has none, nor has a token of no grid, nor the one position of a vector.
    """
    prefix, rows, columns = grid(shape, size)
    if position < prefix or rows * columns == 1:
        return None
    row, column = divmod(position - prefix, columns)
    return (row + 0.5) * size[0] / rows, (column + 0.5) * size[1] / columns


def window_around(place: tuple[float, float], size: tuple[int, int], side: int) -> Box:
    """Return the box of a window around a place (y, x), moved inside the border of a picture of (height, width)."""
    y, x = (min(max(round(centre - side / 2), 0), length - side) for centre, length in zip(place, size, strict=True))
    return x, y, x + side, y + side


def receptive_field(units: Units, layer: str, pictures: Tensor, numbers: Sequence[int]) -> int | None:
    """Return the side in px of a layer's effective receptive field; None where no gradient reaches the pictures.

    It is the median, over pictures, of the side of the square around the unit's strongest position that holds
    ``FIELD_SHARE`` of the absolute gradient of the sum of the layer's channels there: a unit that is strongest may be
    cut off (ReLU6), and have none of its own. Positions without a place see the whole picture.

    Args:
        units: what is mined.
        layer: of the units.
        pictures: (n, 3, H, W) RGB.
        numbers: for each picture the place of a unit among those mined of the layer.
    """
    size = (pictures.shape[-2], pictures.shape[-1])
    with torch.inference_mode(False), torch.enable_grad():
        x = model_space(pictures.clone(), units.network).requires_grad_()
        activations, _ = units.network.taps([layer], "layers")(x)
        every, pictured = activations[layer].flatten(2), torch.arange(len(x))  # (n, C, P)
        positions = units.of_units(layer, every.detach())[pictured, list(numbers)].argmax(dim=1)  # (n,)
        values = units.at_positions(layer, every)
        if not values.requires_grad:
            return None
        (gradient,) = torch.autograd.grad(values[pictured, :, positions].sum(), x)
    reach = gradient.detach().abs().sum(dim=1).double().cpu()  # (n, H, W)
    places = [place_of(position, units.shapes[layer], size) for position in positions.tolist()]
    found = [_side(one, place, size) for one, place in zip(reach, places, strict=True) if one.sum() > 0]
    return sorted(found)[len(found) // 2] if found else None


def _side(reach: Tensor, place: tuple[float, float] | None, size: tuple[int, int]) -> int:
    """Return the side of the square around a place that holds ``FIELD_SHARE`` of a map (H, W)."""
    if place is None:
        return min(size)
    rows, columns = (torch.arange(length) + 0.5 for length in size)
    distance = torch.maximum((rows - place[0]).abs()[:, None], (columns - place[1]).abs()[None]).flatten()
    order = distance.argsort()
    held = reach.flatten()[order].cumsum(dim=0)
    last = int((held < FIELD_SHARE * held[-1]).sum())
    return max(1, min(round(2 * float(distance[order[last]])), min(size)))
