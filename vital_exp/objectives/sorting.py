"""Sorting many rows on a CPU in a fraction of torch's time: NumPy sorts integers with vector instructions."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Fewer values are sorted by torch before threads are started (about 0.2 ms).
FEWEST_VALUES = 2**14
# Of rows this long, neighbouring values are so close that the order of equal ones changes a first gradient by 1e-7 at
# most; of shorter ones by up to 1e-3, so there it has to be torch's.
LONG_ROW = 8192
# Bytes of the integers that are made, sorted and taken apart at a time: what stays in a core's own cache.
BLOCK = 2**18
# Bytes that come from memory together: of maps that are (N, H, W, C) they are as many rows' values of one position.
CACHE_LINE = 64


@dataclass(frozen=True)
class _Keys:
    """How a value and its position make one integer.

    Attributes:
        bits: an integer as wide as a value, in torch.
        half: the same in NumPy.
        whole: an integer twice as wide.
        width: bits of a value.
        magnitude: all bits but the sign.
    """

    bits: torch.dtype
    half: type[np.signedinteger[Any]]
    whole: type[np.signedinteger[Any]]
    width: int
    magnitude: int


KEYS = {
    torch.float32: _Keys(torch.int32, np.int32, np.int64, 32, 0x7FFFFFFF),
    torch.bfloat16: _Keys(torch.int16, np.int16, np.int32, 16, 0x7FFF),
}


def sort_rows(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return the values of (N, C, P) ascending along P, and their positions, as ``features.sort(dim=-1)``.

    In float32 the order of equal values is torch's, but that zeros (behind a ReLU they have no gradient) and equal
    values of long rows may come in another; in bfloat16 equal values come in the order they have.
    """
    kind = KEYS.get(features.dtype)
    fast = features.device.type == "cpu" and sys.byteorder == "little"
    if not fast or kind is None or features.numel() < FEWEST_VALUES or features.shape[-1] > 2**kind.width:
        ordered, order = features.sort(dim=-1)
        return ordered, order
    return _sorted(features, kind, as_torch=features.dtype == torch.float32 and features.shape[-1] < LONG_ROW)


def arranged_like(values: Tensor, like: Tensor) -> Tensor:
    """Return values (N, C, P) in the memory order of ``like``, which what is added to them has.

    That of tokens and of maps that are (N, H, W, C) is another; on a CPU torch transposes matrices only fast.
    """
    if like.is_contiguous() or not like.transpose(1, 2).is_contiguous():
        return values
    count, channels, positions = values.shape
    arranged = values.new_empty(count, positions, channels).transpose(1, 2)
    for one, place in zip(values, arranged, strict=True):
        place.copy_(one)
    return arranged


def _sorted(features: Tensor, kind: _Keys, as_torch: bool) -> tuple[Tensor, Tensor]:
    """Return ascending values and their positions, equal ones in the order they have, or in torch's if ``as_torch``."""
    ordered, order = torch.empty(features.shape, dtype=features.dtype), torch.empty(features.shape, dtype=torch.int64)
    tied = torch.zeros(features.shape[:-1], dtype=torch.bool)  # (N, C)
    arrays = [one.numpy() for one in (features.view(kind.bits), ordered.view(kind.bits), order, tied)]
    count, channels, positions = features.shape
    rows = max(CACHE_LINE // features.element_size(), BLOCK // (positions * np.dtype(kind.whole).itemsize))
    places = [(n, slice(first, first + rows)) for n in range(count) for first in range(0, channels, rows)]
    blocks = [[array[place] for array in arrays] for place in places]
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(partial(_sort_block, kind, as_torch), blocks))
    order[tied] = features[tied].sort(dim=-1).indices
    return ordered, order


def _sort_block(kind: _Keys, as_torch: bool, block: list[np.ndarray]) -> None:
    """Sort some rows of bits: one integer holds a value, in its upper half, and its position."""
    bits, ordered, order, tied = block
    keys = _ascending(np.ascontiguousarray(bits), kind).astype(kind.whole)
    keys <<= kind.width
    keys |= np.arange(bits.shape[-1], dtype=kind.whole)
    keys.sort(axis=-1)
    np.bitwise_and(keys, kind.whole(2**kind.width - 1), out=order, casting="safe")
    keys >>= kind.width
    np.copyto(ordered, _ascending(keys.astype(kind.half), kind))
    if as_torch:
        values = ordered.view(np.float32)
        np.any((values[:, 1:] == values[:, :-1]) & (values[:, 1:] != 0), axis=-1, out=tied)


def _ascending(bits: np.ndarray, kind: _Keys) -> np.ndarray:
    """Return integers that ascend as the floats of these bits do, or the bits of such integers: it is its own inverse.

    As integers, negative floats ascend with their magnitude.
    """
    flipped: np.ndarray = bits ^ ((bits >> (kind.width - 1)) & kind.half(kind.magnitude))
    return flipped
