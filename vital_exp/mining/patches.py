"""Windows of a picture, their boxes and what they look like to the network (METHODS 1.4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vital_exp.errors import UsageError
from vital_exp.images.output import resized

Box = tuple[int, int, int, int]
# METHODS 1.4: windows of 64 px of a picture of 224 px; other inputs take the same share.
PUBLISHED_SIDE, PUBLISHED_INPUT = 64, 224


def default_side(size: tuple[int, int]) -> int:
    """Return the side of a window in px for an input (height, width): 64 of 224."""
    return max(1, round(min(size) * PUBLISHED_SIDE / PUBLISHED_INPUT))


def window_boxes(size: tuple[int, int], side: int, overlap: float) -> list[Box]:
    """Return the boxes (x0, y0, x1, y1) of all windows of a picture, row by row; x1 and y1 are outside.

    Args:
        size: (height, width) of the picture in px.
        side: of a window in px.
        overlap: share of its side that a window has in common with the next, in [0, 1); the last window of a row or
            column ends at the border, and may overlap more.

    Raises:
        UsageError: a side or an overlap that is not allowed.
    """
    if isinstance(side, bool) or not isinstance(side, int) or not 1 <= side <= min(size):
        allowed = f"a whole number of px, 1 to {min(size)}, the network's input"
        raise UsageError("patch.size", side, allowed)
    if isinstance(overlap, bool) or not isinstance(overlap, (int, float)) or not 0 <= overlap < 1:
        raise UsageError("patch.overlap", overlap, "a number of at least 0 and below 1")
    stride = max(1, round(side * (1 - overlap)))
    rows, columns = (_starts(length, side, stride) for length in size)
    return [(x, y, x + side, y + side) for y in rows for x in columns]


def _starts(length: int, side: int, stride: int) -> list[int]:
    starts = list(range(0, length - side + 1, stride))
    return starts if starts[-1] == length - side else [*starts, length - side]


def cut(pictures: Tensor, boxes: Sequence[Box], size: tuple[int, int]) -> Tensor:
    """Return the boxes of pictures (N, 3, H, W), all of one size, enlarged to (height, width): (N * boxes, 3, ...).

    The windows of a picture follow one another.
    """
    windows = torch.stack([pictures[:, :, y0:y1, x0:x1] for x0, y0, x1, y1 in boxes], dim=1)  # (N, W, 3, side, side)
    return resized(windows.flatten(0, 1), size)
