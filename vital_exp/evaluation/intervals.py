"""95 % intervals: bootstrap intervals, and Wilson's for shares."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
COVERAGE = 0.95
NORMAL_QUANTILE = 1.959963984540054  # of the standard normal distribution at (1 + COVERAGE) / 2


def bootstrap_mean(values: Sequence[float], seed: int = 0) -> dict[str, float | int]:
    """Return the mean of values with its 95 % percentile bootstrap interval.

    Args:
        values: one per picture; at least one.
        seed: of the resampling.

    Returns:
        ``{"value", "low", "high", "n"}``.

    Examples:
        >>> from vital_exp.evaluation.intervals import bootstrap_mean
        >>> bootstrap_mean([1.0, 1.0, 1.0])
        {'value': 1.0, 'low': 1.0, 'high': 1.0, 'n': 3}
        >>> entry = bootstrap_mean([0.0, 1.0] * 50)
        >>> entry["value"], entry["low"] < 0.5 < entry["high"]
        (0.5, True)
    """
    array = np.asarray(values, dtype=np.float64)
    means = array[resamples(len(array), seed)].mean(axis=1)
    low, high = interval(means)
    return {"value": float(array.mean()), "low": low, "high": high, "n": len(array)}


def resamples(n: int, seed: int = 0, count: int = RESAMPLES) -> NDArray[np.int64]:
    """Return the indices of ``count`` samples of n out of n with replacement, (count, n)."""
    return np.random.default_rng(seed).integers(0, n, (count, n))


def interval(statistics: NDArray[np.float64]) -> tuple[float, float]:
    """Return the middle 95 % of a statistic's bootstrap values."""
    low, high = np.quantile(statistics, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return float(low), float(high)


def interval_around(value: float, statistics: NDArray[np.float64]) -> tuple[float, float]:
    """Return the middle 95 % of a statistic's bootstrap values, shifted so that their mean is ``value``.

    It is for statistics of sets, such as FID, which repeated pictures in a resample bias.
    """
    low, high = interval(statistics - statistics.mean())
    return value + low, value + high


def share_interval(successes: int, n: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share (Wilson 1927), which has a width for 0 and n out of n too.

    (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n), p = successes / n.

    Args:
        successes: number of successes, 0 to n.
        n: number of trials, at least 1.

    Examples:
        >>> from vital_exp.evaluation.intervals import share_interval
        >>> low, high = share_interval(0, 8)
        >>> low, round(high, 3)
        (0.0, 0.324)
    """
    share, square = successes / n, NORMAL_QUANTILE**2
    middle = share + square / (2 * n)
    half = NORMAL_QUANTILE * (share * (1 - share) / n + square / (4 * n**2)) ** 0.5
    low, high = ((middle + sign * half) / (1 + square / n) for sign in (-1, 1))
    return max(0.0, low) if successes else 0.0, min(1.0, high) if successes < n else 1.0
