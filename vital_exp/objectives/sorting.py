"""Sort matching of many rows: differences between sorted values and quantiles, brought back to the values' positions.

torch sorts slowly on a CPU. There each block of rows is sorted, compared and scattered while it is in a core's own
cache, by NumPy, which sorts integers with vector instructions (docs/performance.md).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Fewer values are sorted by torch before threads are started (about 0.2 ms).
FEWEST_VALUES = 2**14
# Of rows this long, neighbouring values are so close that the order of equal ones changes a first gradient by 1e-7 at
# most; of shorter ones by up to 1e-3, so there it has to be torch's.
LONG_ROW = 8192
# Values that are sorted at a time: with all that is made of them they stay in a core's own cache.
SORTED_TOGETHER = 2**16
# Bytes that come from memory together: of maps that are (N, H, W, C) they are as many rows' values of one position.
CACHE_LINE = 64
# Positions that are copied at a time between orders in memory.
COPIED_TOGETHER = 512


@dataclass(frozen=True)
class _Keys:
    """How a value and its position make one integer: the value in the upper half, the position in the lower.

    Attributes:
        bits: an integer as wide as a value, in torch.
        half: the same in NumPy.
        whole: an integer twice as wide.
        magnitude: all bits of a value but the sign.
    """

    bits: torch.dtype
    half: type[np.signedinteger[Any]]
    whole: type[np.signedinteger[Any]]
    magnitude: int

    @property
    def width(self) -> int:
        """Bits of a value."""
        return 8 * np.dtype(self.half).itemsize


KEYS = {
    torch.float32: _Keys(torch.int32, np.int32, np.int64, 0x7FFFFFFF),
    torch.bfloat16: _Keys(torch.int16, np.int16, np.int32, 0x7FFF),
}


def match_sorted(features: Tensor, quantiles: Tensor, factors: Tensor) -> tuple[Tensor, Tensor]:
    """Compare each row's sorted values with quantiles.

    Args:
        features: (N, C, P) activations.
        quantiles: (N, C, P) or (C, P), ascending, of a precision in which differences do not cancel.
        factors: (N, C), in the quantiles' precision.

    Returns:
        (N, C) sums of squared differences, in the quantiles' precision, and (N, C, P) factor times the difference at
        the rank of each feature, arranged in memory like the features; in bfloat16 where they are.

    Of equal features torch decides which ranks before which; zeros (behind a ReLU they have no gradient), equal values
    of long rows and those in bfloat16 rank in the order they have.
    """
    kind = KEYS.get(features.dtype)
    fast = features.device.type == "cpu" and sys.byteorder == "little" and quantiles.dtype == torch.float32
    if not fast or kind is None or features.numel() < FEWEST_VALUES or features.shape[-1] > 2**kind.width:
        return match_by_torch(features, quantiles, factors)
    matching = _Blocks(features, quantiles.expand(features.shape), factors, kind)
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(matching.run, [matching.places[first::threads] for first in range(threads)]))
    squares, slopes, tied = matching.squares, matching.slopes, matching.tied
    if tied.any():
        rows = features[tied], quantiles.expand(features.shape)[tied], factors[tied]  # (K, P), (K, P), (K,)
        slopes[tied] = match_by_torch(*rows)[1]
    return squares, slopes


def match_by_torch(features: Tensor, quantiles: Tensor, factors: Tensor) -> tuple[Tensor, Tensor]:
    """Do the same by torch's own sort, on any device; rows may have any dimensions before them."""
    ordered, order = features.sort(dim=-1)
    difference = ordered.to(quantiles.dtype).sub_(quantiles)
    squares = torch.linalg.vecdot(difference, difference)
    slopes = difference.mul_(factors[..., None])
    if features.dtype == torch.bfloat16:  # half as much to move; float16 would lose small ones
        slopes = slopes.bfloat16()
    return squares, torch.empty_like(slopes).scatter_(-1, order, slopes)


class _Blocks:
    """Rows of (N, C, P) features, matched block by block.

    Attributes:
        places: the blocks: a picture's number and a slice of its channels.
        squares: (N, C), as what follows filled in by :meth:`run`.
        slopes: (N, C, P).
        tied: (N, C), rows with equal values whose order has to be torch's.
    """

    def __init__(self, features: Tensor, quantiles: Tensor, factors: Tensor, kind: _Keys) -> None:
        count, channels, positions = features.shape
        self.kind = kind
        self.tells_ties = features.dtype == torch.float32 and positions < LONG_ROW
        self.squares = torch.empty(count, channels)
        self.slopes = torch.empty_like(features)  # in the same order in memory, if the features are dense
        self.tied = torch.zeros(count, channels, dtype=torch.bool)
        self._features, self._slopes = features.view(kind.bits).numpy(), self.slopes.view(kind.bits).numpy()
        self._quantiles, self._factors = quantiles.numpy(), factors.numpy()
        self._squares, self._tied = self.squares.numpy(), self.tied.numpy()
        self.together = max(1, SORTED_TOGETHER // positions)  # rows
        self.rows = min(channels, max(CACHE_LINE // features.element_size(), self.together))
        self.places = [(n, slice(c, c + self.rows)) for n in range(count) for c in range(0, channels, self.rows)]

    def run(self, places: Sequence[tuple[int, slice]]) -> None:
        """Match some blocks, in memory that is theirs in turn."""
        positions = self._features.shape[-1]
        block = np.empty((self.rows, positions), self.kind.half)
        own = _Rows(self.kind, self.together, positions)
        for place in places:
            bits = block[: len(self._features[place])]
            _copy(bits, self._features[place])
            for first in range(0, len(bits), self.together):
                some = bits[first : first + self.together]
                begin = place[1].start + first
                with np.errstate(over="ignore", invalid="ignore"):  # infinite values and losses are reported as losses
                    self._match(own.first(len(some)), (place[0], slice(begin, begin + len(some))), some)
            _copy(self._slopes[place], bits)

    def _match(self, own: _Rows, rows: tuple[int, slice], bits: np.ndarray) -> None:
        """Put the slopes of some rows in the place of their bits."""
        own.sort(bits)
        values, spare = own.values, own.spare
        if self.tells_ties:
            equal = values[:, 1:] == values[:, :-1]
            equal &= values[:, 1:] != 0
            self._tied[rows] = equal.any(axis=-1)
        values -= self._quantiles[rows]
        self._squares[rows] = np.multiply(values, values, out=spare).sum(axis=-1)
        values *= self._factors[rows][:, None]
        own.scatter(bits)


@dataclass
class _Rows:
    """Memory for rows while they are sorted and scattered.

    Attributes:
        kind: of their values.
        rows: how many there is room for.
        positions: of each.
    """

    kind: _Keys
    rows: int
    positions: int

    def __post_init__(self) -> None:
        shape = self.rows, self.positions
        self.keys = np.empty(shape, self.kind.whole)
        self.halves = np.empty(shape, self.kind.half)
        self.index = np.empty(shape, np.int64)
        self.values = np.empty(shape, np.float32)
        self.spare = np.empty(shape, np.float32)
        self.place = np.arange(self.positions).astype(f"u{self.halves.itemsize}").view(self.kind.half)

    def first(self, rows: int) -> _Rows:
        """Return the same memory for the first of the rows."""
        if rows == len(self.keys):
            return self
        part = copy(self)
        for name in ("keys", "halves", "index", "values", "spare"):
            setattr(part, name, getattr(self, name)[:rows])
        return part

    def sort(self, bits: np.ndarray) -> None:
        """Put ascending values into ``values``, where they were among all rows' values into ``index``."""
        lower, upper = (self.keys.view(self.kind.half)[:, half::2] for half in (0, 1))
        np.copyto(upper, self._ascending(bits))
        np.copyto(lower, self.place)
        self.keys.sort(axis=-1)
        np.copyto(self.index, lower.view(f"u{self.halves.itemsize}"))
        self.index += self.positions * np.arange(len(bits))[:, None]
        np.copyto(self.halves, upper)
        whole = self.values.view(np.uint32)
        np.copyto(whole, self._ascending(self.halves).view(f"u{self.halves.itemsize}"))
        if self.kind.width < 32:
            whole <<= 32 - self.kind.width  # a bfloat16 is the upper half of a float32

    def _ascending(self, bits: np.ndarray) -> np.ndarray:
        """Return integers that ascend as the floats of these bits do, or the bits of such integers.

        As integers, negative floats ascend with their magnitude.
        """
        if bits.min() < 0:
            flips = bits >> (self.kind.width - 1)
            flips &= self.kind.half(self.kind.magnitude)
            bits ^= flips
        return bits

    def scatter(self, bits: np.ndarray) -> None:
        """Write ``values`` to the positions of ``index``, as bits of the rows' dtype."""
        whole, odd = self.values.view(np.uint32), self.spare.view(np.uint32)
        if self.kind.width < 32:  # to the nearest bfloat16, halfway to the even one
            np.right_shift(whole, 16, out=odd)
            odd &= 1
            odd += 0x7FFF
            whole += odd
            whole >>= 16
        np.copyto(self.halves, whole, casting="unsafe")
        bits.reshape(-1)[self.index.reshape(-1)] = self.halves.reshape(-1)


def _copy(into: np.ndarray, source: np.ndarray) -> None:
    """Copy rows, a few positions at a time: those far apart in memory would drive each other out of the cache."""
    for first in range(0, source.shape[-1], COPIED_TOGETHER):
        some = slice(first, first + COPIED_TOGETHER)
        np.copyto(into[:, some], source[:, some])
