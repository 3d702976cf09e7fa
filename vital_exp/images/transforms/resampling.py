"""Pictures read between their pixels, each picture at places of its own, with the same gradient on every run.

Pixel centres are at whole numbers: a side of W pixels reaches from -0.5 to W - 0.5.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def sample(pictures: Tensor, x: Tensor, y: Tensor, outside: str) -> Tensor:
    """Return pictures (N, C, H, W) read at positions x, y (N, h, w) in pixels, bilinear: (N, C, h, w).

    Beyond the border there is 0 (``"grey"``), the mirrored picture (``"reflect"``) or the border (``"edge"``).
    """
    height, width = pictures.shape[-2:]
    x, y = _folded(x, width, outside), _folded(y, height, outside)
    if pictures.device.type == "cpu":  # four times as fast as the gather; on CUDA its gradient adds up in any order
        grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)  # (N, h, w, 2) in [-1, 1]
        return functional.grid_sample(pictures, grid, align_corners=False)
    return gathered(pictures, x, y)


def gathered(pictures: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return what :func:`sample` does with a grey outside, from the four pixels around each position."""
    height, width = pictures.shape[-2:]
    table = pictures.permute(0, 2, 3, 1)  # (N, H, W, C)
    each = torch.arange(len(pictures), device=pictures.device)[:, None, None]
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
    """Return where to read instead along an axis."""
    if outside == "grey":
        return position
    if outside == "reflect":
        position = side - (side - (position + 0.5) % (2 * side)).abs() - 0.5  # period 2 W, mirrored at W - 0.5
    return position.clamp(0, side - 1)


def affine(pictures: Tensor, inverse: Tensor, outside: str) -> Tensor:
    """Return pictures (N, C, H, W) under one affine map each, about their centres.

    Args:
        pictures: (N, C, H, W).
        inverse: (N, 2, 3) from a place in the result to its place in the picture, (x, y, 1) in pixels, y downwards.
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
    """Return one box of each picture at a size, (N, C, *size), bilinear; grey beyond the border.

    Args:
        pictures: (N, C, H, W).
        top, left: (N,) the boxes' upper left corners from the pictures', in pixels.
        shape: heights (N,) and widths (N,) of the boxes in pixels.
        size: (height, width) of the result.
    """
    y, x = (
        start[:, None] + length[:, None] / count * (torch.arange(count).to(start) + 0.5) - 0.5
        for start, length, count in zip((top, left), shape, size, strict=True)
    )  # (N, h), (N, w)
    whole = (len(pictures), *size)
    return sample(pictures, x[:, None, :].expand(whole), y[:, :, None].expand(whole), "grey")


def antialiased_boxes(
    pictures: Tensor, top: Tensor, left: Tensor, shape: tuple[Tensor, Tensor], size: tuple[int, int]
) -> Tensor:
    """Return :func:`boxes`, averaged over what a pixel of the result covers where it covers more than one."""
    height, width = pictures.shape[-2:]
    rows = axis_weights(top, shape[0], size[0], height)  # (N, h, H)
    columns = axis_weights(left, shape[1], size[1], width)  # (N, w, W)
    return along_axes(pictures, rows, columns)


def axis_weights(start: Tensor, length: Tensor, count: int, side: int) -> Tensor:
    """Return the weights of an axis's pixels in each of ``count`` pixels of an interval of it, (N, count, side).

    A triangle as wide as a pixel of the result, two pixels of the axis at least; weights sum to 1, or to 0 where the
    triangle does not touch the axis.
    """
    step = (length / count)[:, None, None]
    centre = start[:, None, None] + (torch.arange(count).to(start)[:, None] + 0.5) * step - 0.5  # (N, count, 1)
    distance = (torch.arange(side).to(start) - centre).abs() / step.clamp(min=1)  # (N, count, side)
    weights = (1 - distance).clamp(min=0)
    return weights / weights.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)


def along_axes(pictures: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return rows @ picture @ columns^T for pictures (N, C, H, W), (N, h, H) and (N, w, W): (N, C, h, w)."""
    return rows[:, None] @ pictures @ columns[:, None].transpose(-1, -2)
