"""Sorting many rows on a CPU in a third of torch's time: NumPy sorts integers with vector instructions."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# Fewer values are sorted by torch before threads are started (about 0.2 ms).
FEWEST_VALUES = 2**14
# Of rows this long, neighbouring values are so close that the order of equal ones changes a first gradient by 1e-7 at
# most; of shorter ones by up to 1e-3, so there it has to be torch's.
LONG_ROW = 8192


@dataclass(frozen=True)
class _Keys:
    """How a value and its position make one integer.

    Attributes:
        half: an integer as wide as a value.
        whole: an integer twice as wide.
        sign: the place of the sign bit.
        magnitude: all bits but the sign.
        longest: a row with positions that ``half`` can tell apart.
    """

    half: torch.dtype
    whole: torch.dtype
    sign: int
    magnitude: int
    longest: int


KEYS = {
    torch.float32: _Keys(torch.int32, torch.int64, 31, 0x7FFFFFFF, 2**31),
    torch.bfloat16: _Keys(torch.int16, torch.int32, 15, 0x7FFF, 2**16),
}


def sort_rows(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return the values of (N, C, P) ascending along P, and their positions, as ``features.sort(dim=-1)``.

    In float32 the order of equal values is torch's, but that zeros (behind a ReLU they have no gradient) and equal
    values of long rows may come in another; in bfloat16 equal values come in the order they have.
    """
    kind = KEYS.get(features.dtype)
    fast = features.device.type == "cpu" and sys.byteorder == "little"
    if not fast or kind is None or features.numel() < FEWEST_VALUES or features.shape[-1] > kind.longest:
        ordered, order = features.sort(dim=-1)
        return ordered, order
    features = rows_together(features)
    order = _positions(features, kind)
    ordered = features.gather(-1, order)
    if features.dtype == torch.float32 and features.shape[-1] < LONG_ROW:
        equal = (ordered[..., 1:] == ordered[..., :-1]).logical_and_(ordered[..., 1:] != 0)
        tied = equal.any(dim=-1)  # (N, C)
        order[tied] = features[tied].sort(dim=-1).indices
    return ordered, order


def rows_together(features: Tensor) -> Tensor:
    """Return features (N, C, P) with the values of a row side by side in memory.

    Tokens and maps that are (N, H, W, C) in memory are transposed; on a CPU torch does that fast for matrices only.
    """
    if features.is_contiguous() or features.device.type != "cpu":
        return features.contiguous()
    return _copied(features, torch.empty(features.shape, dtype=features.dtype))


def arranged_like(values: Tensor, like: Tensor) -> Tensor:
    """Return values (N, C, P) in the memory order of ``like``, which what is added to them has."""
    if like.is_contiguous() or not like.transpose(1, 2).is_contiguous():
        return values
    count, channels, positions = values.shape
    return _copied(values, values.new_empty(count, positions, channels).transpose(1, 2))


def _copied(source: Tensor, target: Tensor) -> Tensor:
    for one, place in zip(source, target, strict=True):
        place.copy_(one)
    return target


def _positions(features: Tensor, kind: _Keys) -> Tensor:
    """Return the positions of ascending values, equal ones in the order they have: one integer holds both."""
    bits, positions = features.view(kind.half), features.shape[-1]
    keys = torch.empty(*features.shape, 2, dtype=kind.half)  # the lower and the upper half of an integer
    keys[..., 0] = torch.arange(positions).to(kind.half)
    keys[..., 1] = bits ^ ((bits >> kind.sign) & kind.magnitude)  # as integers, negative floats ascend with magnitude
    rows = keys.view(kind.whole).view(-1, positions).numpy()
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(_sort_in_place, np.array_split(rows, threads)))
    return keys[..., 0].long() & (kind.longest - 1)


def _sort_in_place(rows: np.ndarray) -> None:
    rows.sort(axis=-1)
