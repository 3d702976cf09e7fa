"""Crops of pictures. Methods that optimise crops, such as MACO, spread many small objects over a large picture.

A network that sees the whole picture at its input size sees each of these objects small. A crop shows what the
optimisation saw.
"""

from __future__ import annotations

from torch import Tensor

from vital_exp.evaluation.score import NotComputed

# MACO's crops have a quarter of the picture's side on average (Fel et al. 2023).
CROPS_PER_SIDE = 4


def crops_of(pictures: Tensor, per_side: int = CROPS_PER_SIDE) -> Tensor:
    """Return a grid of crops of each picture, without overlap, that covers the picture.

    Args:
        pictures: (N, C, H, W). Where a side is no multiple of ``per_side``, the rows or columns left over are omitted
            at both ends.
        per_side: crops along each side.

    Returns:
        (N, per_side ** 2, C, H // per_side, W // per_side), from left to right, from top to bottom.

    Raises:
        NotComputed: a side has fewer pixels than crops.

    Examples:
        >>> import torch
        >>> from vital_exp.evaluation.crops import crops_of
        >>> crops_of(torch.arange(16).view(1, 1, 4, 4), per_side=2)[0, 1, 0]
        tensor([[2, 3],
                [6, 7]])
    """
    count, channels, *sides = pictures.shape
    height, width = (side // per_side for side in sides)
    if not height or not width:
        raise NotComputed(f"needs pictures of at least {per_side} px a side, and these have {sides[0]} x {sides[1]}")
    top, left = (side % per_side // 2 for side in sides)
    kept = pictures[..., top : top + height * per_side, left : left + width * per_side]
    grid = kept.reshape(count, channels, per_side, height, per_side, width)
    return grid.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
