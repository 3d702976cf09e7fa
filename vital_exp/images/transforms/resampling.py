"""Bilinear interpolation of pictures at positions of their own, with the same gradient, bit for bit, on every run.

Pixel centres are at whole numbers: a side of W pixels reaches from -0.5 to W - 0.5.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def sample(pictures: Tensor, x: Tensor, y: Tensor, outside: str) -> Tensor:
    """Return pictures (N, C, H, W) interpolated at positions x, y (N, h, w) in pixels, (N, C, h, w).

    Beyond the border the values are 0 (``"grey"``), the mirrored picture (``"reflect"``) or the nearest pixel of the
    border (``"edge"``).
    """
    height, width = pictures.shape[-2:]
    x, y = _folded(x, width, outside), _folded(y, height, outside)
    # On a CPU grid_sample is four times as fast as the gather; on CUDA its gradient adds values in random order.
    if pictures.device.type == "cpu":
        grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)  # (N, h, w, 2) in [-1, 1]
        return functional.grid_sample(pictures, grid, align_corners=False)
    return gathered(pictures, x, y)


class _Windows(torch.autograd.Function):
    """:func:`sample` with ``"grey"``, for crops of large pictures; it reads and writes only the windows that it needs.

    Each view reads the window of its picture that its positions touch, and adds its gradient to this window. A picture
    of 1280 px has 20 MB, and a gradient of this size for each of several crops would take longer than the crops.
    """

    @staticmethod
    def forward(ctx, pictures: Tensor, x: Tensor, y: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.views = [_Window(pictures, one, two) for one, two in zip(x, y, strict=True)]
        owners = (number % len(pictures) for number in range(len(x)))
        read = [view.of(pictures[owner]) for view, owner in zip(ctx.views, owners, strict=True)]
        ctx.save_for_backward(pictures)
        return torch.cat([functional.grid_sample(window, view.grid, align_corners=False)
                          for window, view in zip(read, ctx.views, strict=True)])  # fmt: skip

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[no-untyped-def]
        (pictures,) = ctx.saved_tensors
        total = torch.zeros_like(pictures)
        for number, (view, one) in enumerate(zip(ctx.views, gradient, strict=True)):
            owner = number % len(pictures)
            # In half precision autocast unifies the types in the forward pass, but not here, in the backward pass.
            read, arrived = view.of(pictures[owner]).to(view.grid), one[None].to(view.grid)
            of_window, _ = torch.ops.aten.grid_sampler_2d_backward(arrived, read, view.grid, 0, 0, False, [True, False])
            view.of(total[owner])[...] += of_window
        return total, None, None


class _Window:
    """The part of a picture (C, H, W) around some positions, and the positions in this part for grid_sample."""

    def __init__(self, pictures: Tensor, x: Tensor, y: Tensor) -> None:
        (self.top, height), (self.left, width) = (
            _extent(places, side) for places, side in ((y, pictures.shape[-2]), (x, pictures.shape[-1]))
        )
        self.bottom, self.right = self.top + height, self.left + width
        along = [(2 * (x - self.left) + 1) / width - 1, (2 * (y - self.top) + 1) / height - 1]
        self.grid = torch.stack(along, dim=-1)[None]  # (1, h, w, 2) in [-1, 1]

    def of(self, picture: Tensor) -> Tensor:
        """Return the window (1, C, height, width) of a picture (C, H, W), without a copy."""
        return picture[None, :, self.top : self.bottom, self.left : self.right]


def _extent(places: Tensor, side: int) -> tuple[int, int]:
    """Return the first pixel that positions along an axis touch, and the number of pixels: at least 1, all inside."""
    first = min(max(int(places.min().floor()), 0), side - 1)
    last = min(max(int(places.max().floor()) + 1, first), side - 1)
    return first, last + 1 - first


def gathered(pictures: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return :func:`sample` with ``"grey"``, computed from the four pixels around each position."""
    height, width = pictures.shape[-2:]
    table = pictures.permute(0, 2, 3, 1)  # (N, H, W, C)
    each = torch.arange(len(x), device=pictures.device)[:, None, None] % len(pictures)
    total: Tensor | None = None
    for down in (0, 1):
        for right in (0, 1):
            column, row = x.floor() + right, y.floor() + down  # (N, h, w)
            within = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            weight = (1 - (x - column).abs()) * (1 - (y - row).abs()) * within
            taps = table[each, row.clamp(0, height - 1).long(), column.clamp(0, width - 1).long()]  # (N, h, w, C)
            share = weight[..., None] * taps
            total = share if total is None else total + share
    assert total is not None
    return total.permute(0, 3, 1, 2).contiguous()


def _folded(position: Tensor, side: int, outside: str) -> Tensor:
    """Return positions along an axis with those beyond the border moved inside, as ``outside`` says."""
    if outside == "grey":
        return position
    if outside == "reflect":
        position = side - (side - (position + 0.5) % (2 * side)).abs() - 0.5  # period 2 W, mirrored at W - 0.5
    return position.clamp(0, side - 1)


def affine(pictures: Tensor, inverse: Tensor, outside: str) -> Tensor:
    """Return pictures (N, C, H, W), each transformed by its own affine map about its centre.

    Args:
        pictures: (N, C, H, W).
        inverse: (N, 2, 3), from a position (x, y, 1) in the result to its position in the picture, in pixels from the
            centre, y downwards.
        outside: as for :func:`sample`.
    """
    height, width = pictures.shape[-2:]
    middle_x, middle_y = (width - 1) / 2, (height - 1) / 2
    u = torch.arange(width, device=pictures.device, dtype=pictures.dtype)[None, None, :] - middle_x
    v = torch.arange(height, device=pictures.device, dtype=pictures.dtype)[None, :, None] - middle_y
    entries = inverse.to(pictures)[:, :, :, None, None]  # (N, 2, 3, 1, 1)
    x, y = (entries[:, i, 0] * u + entries[:, i, 1] * v + entries[:, i, 2] for i in (0, 1))  # (N, H, W)
    return sample(pictures, x + middle_x, y + middle_y, outside)


def boxes(pictures: Tensor, top: Tensor, left: Tensor, shape: tuple[Tensor, Tensor], size: tuple[int, int]) -> Tensor:
    """Return boxes of the pictures resized to one size, (M, C, *size), bilinear; grey beyond the border.

    Args:
        pictures: (N, C, H, W); M is a multiple of N, and box i is of picture i modulo N.
        top, left: (M,) distances of the boxes' upper left corners from the pictures', in pixels.
        shape: heights (M,) and widths (M,) of the boxes in pixels.
        size: (height, width) of the result.
    """
    y, x = (
        start[:, None] + length[:, None] / count * (torch.arange(count).to(start) + 0.5) - 0.5
        for start, length, count in zip((top, left), shape, size, strict=True)
    )  # (N, h), (N, w)
    whole = (len(top), *size)
    x, y = x[:, None, :].expand(whole), y[:, :, None].expand(whole)
    if pictures.device.type != "cpu":
        return gathered(pictures, x, y)
    found: Tensor = _Windows.apply(pictures, x, y)
    return found


def antialiased_boxes(
    pictures: Tensor, top: Tensor, left: Tensor, shape: tuple[Tensor, Tensor], size: tuple[int, int]
) -> Tensor:
    """Return :func:`boxes` with antialiasing: a pixel of the result averages over all pixels that it covers."""
    height, width = pictures.shape[-2:]
    rows = axis_weights(top, shape[0], size[0], height)  # (N, h, H)
    columns = axis_weights(left, shape[1], size[1], width)  # (N, w, W)
    return along_axes(pictures, rows, columns)


def axis_weights(start: Tensor, length: Tensor, count: int, side: int) -> Tensor:
    """Return the weights (N, count, side) that resize intervals of an axis of ``side`` pixels to ``count`` pixels.

    The weights are a triangle around the centre of a pixel of the result. Half its width is the size of that pixel, and
    at least 1. The weights sum to 1, or to 0 where the triangle does not touch the axis.
    """
    step = (length / count)[:, None, None]
    centre = start[:, None, None] + (torch.arange(count).to(start)[:, None] + 0.5) * step - 0.5  # (N, count, 1)
    distance = (torch.arange(side).to(start) - centre).abs() / step.clamp(min=1)  # (N, count, side)
    weights = (1 - distance).clamp(min=0)
    return weights / weights.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)


def along_axes(pictures: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return rows @ picture @ columns^T, (M, C, h, w), for pictures (N, C, H, W), rows (M, h, H), columns (M, w, W).

    M is a multiple of N, and entry i belongs to picture i modulo N. One entry is applied to all N pictures.
    """
    if len(rows) > len(pictures):
        pictures = pictures.repeat(len(rows) // len(pictures), 1, 1, 1)
    return rows[:, None] @ pictures @ columns[:, None].transpose(-1, -2)
