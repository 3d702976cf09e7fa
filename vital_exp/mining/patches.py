"""Windows of an image: the regular grid of patches, the windows that hold a position, and their content."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt

import torch
from torch import Tensor

from vital_exp.images.output import resized
from vital_exp.values import number, one_of, whole_number

Box = tuple[int, int, int, int]
SEARCHES = ("all", "strongest")
# VITAL (arXiv 2503.22399): windows of 64 px in an image of 224 px; neighbours overlap by half.
PUBLISHED_SIDE, PUBLISHED_INPUT, PUBLISHED_OVERLAP = 64, 224, 0.5
# At most so many tokens (class, distillation, registers) come before the grid of patch tokens.
MOST_PREFIX_TOKENS = 8


@dataclass(frozen=True)
class PatchSettings:
    """Which windows of an image are tried.

    Attributes:
        size: side of a window in px of the network's input; None: 64/224 of the input's shorter side.
        overlap: share of its side by which a window overlaps the next, in [0, 1); the last window of a row or column
            ends at the border, and may overlap more.
        search: ``"all"`` windows, or for each unit the windows that hold the ``"strongest"`` position of its map.
    """

    size: int | None = None
    overlap: float = PUBLISHED_OVERLAP
    search: str = "all"

    def check(self, size: tuple[int, int], key: str = "patch") -> None:
        """Check the settings for images of ``size`` (height, width); errors blame ``key``.

        Raises:
            UsageError: a window larger than the image, an overlap outside [0, 1), or an unknown search.
        """
        most = min(size)
        allowed = f"a whole number of px, 1 to {most}: the network's input is {size[0]}x{size[1]}"
        whole_number(f"{key}.size", self.side(*size), 1, most, allowed=allowed)
        number(f"{key}.overlap", self.overlap, 0, below=1, allowed="a number of at least 0 and below 1")
        one_of(f"{key}.search", self.search, SEARCHES)

    def side(self, height: int, width: int) -> int:
        """Return the side of a window of an image (height, width), in px."""
        return max(1, round(min(height, width) * PUBLISHED_SIDE / PUBLISHED_INPUT)) if self.size is None else self.size

    def windows(self, height: int, width: int) -> list[Box]:
        """Return the boxes (x0, y0, x1, y1) of all windows of an image, row by row; x1 and y1 are outside.

        Examples:
            >>> from vital_exp.mining.patches import PatchSettings
            >>> PatchSettings(size=4).windows(4, 8)  # each overlaps the next by half
            [(0, 0, 4, 4), (2, 0, 6, 4), (4, 0, 8, 4)]
        """
        side = self.side(height, width)
        stride = max(1, round(side * (1 - self.overlap)))
        rows, columns = (_starts(length, side, stride) for length in (height, width))
        return [(x, y, x + side, y + side) for y in rows for x in columns]


PUBLISHED = PatchSettings()


def _starts(length: int, side: int, stride: int) -> list[int]:
    starts = list(range(0, length - side + 1, stride))
    return starts if starts[-1] == length - side else [*starts, length - side]


def crops(pictures: Tensor, boxes: Sequence[Box]) -> Tensor:
    """Cut W boxes of one size (height, width) out of images (N, C, H, W): (N, W, C, height, width)."""
    return torch.stack([pictures[:, :, y0:y1, x0:x1] for x0, y0, x1, y1 in boxes], dim=1)


def cut(picture: Tensor, box: Box) -> Tensor:
    """Cut a box out of an image (C, H, W), without resizing it."""
    left, top, right, bottom = box
    return picture[:, top:bottom, left:right].contiguous()


def enlarged(picture: Tensor, box: Box) -> Tensor:
    """Cut a box out of an image (C, H, W) and enlarge it to (C, H, W), as mining showed it to the network."""
    size = (picture.shape[-2], picture.shape[-1])
    return resized(crops(picture[None], [box])[:, 0], size)[0]


def windows_over(strongest: Tensor, shape: Sequence[int], boxes: Sequence[Box], size: tuple[int, int]) -> Tensor:
    """Return which windows hold a position of a layer's map, as booleans (..., W).

    A position without a place in the image (a class token, or tokens that form no grid) counts as held by every window.

    Args:
        strongest: (...) int64, flat positions in the map.
        shape: the map's shape, (rows, columns), or (tokens,) whose patch tokens form a grid.
        boxes: the W windows.
        size: (height, width) of the image in px.
    """
    prefix, rows, columns = grid(shape, size)
    place = strongest - prefix
    y = (place.div(columns, rounding_mode="floor") + 0.5) * size[0] / rows
    x = (place % columns + 0.5) * size[1] / columns
    x0, y0, x1, y1 = torch.tensor(boxes, device=strongest.device).T
    held = (x0 <= x[..., None]) & (x[..., None] < x1) & (y0 <= y[..., None]) & (y[..., None] < y1)
    holding: Tensor = held | (place < 0)[..., None]
    return holding


def grid(shape: Sequence[int], size: tuple[int, int]) -> tuple[int, int, int]:
    """Return the number of positions before a layer's grid (class and register tokens), the grid's rows and columns.

    Patch tokens form a grid with the aspect ratio of the image (height, width). If no grid fits, all positions count as
    before the grid, and the grid is 1 x 1.
    """
    if len(shape) == 2:
        return 0, shape[0], shape[1]
    positions = int(torch.Size(shape).numel())
    for prefix in range(min(MOST_PREFIX_TOKENS + 1, positions - 1)):
        rows = isqrt((positions - prefix) * size[0] // size[1])
        columns, rest = divmod(positions - prefix, max(rows, 1))
        if rest == 0 and rows * size[1] == columns * size[0]:
            return prefix, rows, columns
    return positions, 1, 1
