"""Sort matching of many rows: differences between sorted values and quantiles, scattered to the values' positions.

torch sorts slowly on a CPU. Here NumPy, which sorts integers with vector instructions, sorts and compares blocks of
rows that fit into the cache of a core (docs/performance.md).
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

# torch sorts fewer values in less time than threads need to start (about 0.2 ms).
FEWEST_VALUES = 2**14
# The order of equal values changes the first gradient by at most 1e-7 in rows of this length, where neighbouring
# quantiles are close, and by up to 1e-3 in shorter rows, whose equal values must have torch's order.
LONG_ROW = 8192
# Values that are sorted at a time; with all buffers they fit into the cache of a core.
SORTED_TOGETHER = 2**16
# Bytes that are read from memory together. With channels last in memory they hold one position of several rows.
CACHE_LINE = 64
# Positions that are copied at a time between different orders in memory.
COPIED_TOGETHER = 512


@dataclass(frozen=True)
class _Keys:
    """Integer types for keys that hold a value in the upper half and its position in the lower half.

    Attributes:
        bits: torch's integer type of a value's width.
        half: NumPy's integer type of a value's width.
        whole: NumPy's integer type of twice this width.
        magnitude: a mask of all bits of a value but the sign.
    """

    bits: torch.dtype
    half: type[np.signedinteger[Any]]
    whole: type[np.signedinteger[Any]]
    magnitude: int

    @property
    def width(self) -> int:
        """Number of bits of a value."""
        return 8 * np.dtype(self.half).itemsize


KEYS = {
    torch.float32: _Keys(torch.int32, np.int32, np.int64, 0x7FFFFFFF),
    torch.bfloat16: _Keys(torch.int16, np.int16, np.int32, 0x7FFF),
}


def match_sorted(features: Tensor, quantiles: Tensor, factors: Tensor) -> tuple[Tensor, Tensor]:
    """Compare each row's sorted features with quantiles.

    Equal features rank as torch sorts them. Exceptions, which rank by position: zeros (they have no gradient after a
    ReLU), equal features of long rows, and equal features in bfloat16.

    Args:
        features: (N, C, P) activations.
        quantiles: (N, C, P) or (C, P), ascending, float32 or float64.
        factors: (N, C), of the quantiles' dtype.

    Returns:
        The sums of squared differences, (N, C), of the quantiles' dtype; and the factor times the difference at the
        rank of each feature, (N, C, P), laid out in memory like the features, in bfloat16 for bfloat16 features.
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
    """Return :func:`match_sorted`, computed by torch's sort, on any device, for rows with any leading dimensions."""
    ordered, order = features.sort(dim=-1)
    difference = ordered.to(quantiles.dtype).sub_(quantiles)
    squares = torch.linalg.vecdot(difference, difference)
    slopes = difference.mul_(factors[..., None])
    if features.dtype == torch.bfloat16:  # half the memory traffic; float16 would lose small slopes
        slopes = slopes.bfloat16()
    return squares, torch.empty_like(slopes).scatter_(-1, order, slopes)


class _Blocks:
    """Rows of features (N, C, P), matched block by block.

    Attributes:
        places: the blocks, each a picture's number and a slice of its channels.
        squares: (N, C), the sums of squared differences; :meth:`run` fills in this and the following attributes.
        slopes: (N, C, P), the factors times the differences.
        tied: (N, C) bool, rows with equal values that torch must rank.
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
        """Match some blocks, one after another in the same buffers."""
        positions = self._features.shape[-1]
        block = np.empty((self.rows, positions), self.kind.half)
        own = _Rows(self.kind, self.together, positions)
        for place in places:
            bits = block[: len(self._features[place])]
            _copy(bits, self._features[place])
            for first in range(0, len(bits), self.together):
                some = bits[first : first + self.together]
                begin = place[1].start + first
                with np.errstate(over="ignore", invalid="ignore"):  # losses that are not finite are reported later
                    self._match(own.first(len(some)), (place[0], slice(begin, begin + len(some))), some)
            _copy(self._slopes[place], bits)

    def _match(self, own: _Rows, rows: tuple[int, slice], bits: np.ndarray) -> None:
        """Replace the bits of some rows' values by the bits of their slopes."""
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
    """Buffers for rows that are sorted and scattered.

    Attributes:
        kind: the integer types for the dtype of the values.
        rows: number of rows that fit.
        positions: number of positions of each row.
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
        """Return the same buffers, limited to the first ``rows`` rows."""
        if rows == len(self.keys):
            return self
        part = copy(self)
        for name in ("keys", "halves", "index", "values", "spare"):
            setattr(part, name, getattr(self, name)[:rows])
        return part

    def sort(self, bits: np.ndarray) -> None:
        """Write each row's ascending values to ``values``, and their indices in the flattened rows to ``index``."""
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
        """Convert, in place, bits of floats to integers of the same order, or such integers back to bits of floats.

        The bits of negative floats, read as integers, ascend with the magnitude; so these bits are flipped.
        """
        if bits.min() < 0:
            flips = bits >> (self.kind.width - 1)
            flips &= self.kind.half(self.kind.magnitude)
            bits ^= flips
        return bits

    def scatter(self, bits: np.ndarray) -> None:
        """Write ``values``, converted to the dtype of the rows, to the indices ``index`` of ``bits``."""
        whole, odd = self.values.view(np.uint32), self.spare.view(np.uint32)
        if self.kind.width < 32:  # round to the nearest bfloat16, ties to even
            np.right_shift(whole, 16, out=odd)
            odd &= 1
            odd += 0x7FFF
            whole += odd
            whole >>= 16
        np.copyto(self.halves, whole, casting="unsafe")
        bits.reshape(-1)[self.index.reshape(-1)] = self.halves.reshape(-1)


def _copy(into: np.ndarray, source: np.ndarray) -> None:
    """Copy rows, a few positions at a time: positions far apart in memory would evict each other from the cache."""
    for first in range(0, source.shape[-1], COPIED_TOGETHER):
        some = slice(first, first + COPIED_TOGETHER)
        np.copyto(into[:, some], source[:, some])
