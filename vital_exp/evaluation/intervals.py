"""Bootstrap intervals: every number comes with how far it can be trusted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RESAMPLES = 1000
COVERAGE = 0.95


def bootstrap_mean(values: Sequence[float], seed: int = 0) -> dict[str, float | int]:
    """Return the mean of values with its 95 % percentile bootstrap interval.

    Args:
        values: one per picture; at least one.
        seed: of the resampling.

    Returns:
        ``{"value", "low", "high", "n"}``.
    """
    array = np.asarray(values, dtype=np.float64)
    generator = np.random.default_rng(seed)
    means = array[generator.integers(0, len(array), (RESAMPLES, len(array)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return {"value": float(array.mean()), "low": float(low), "high": float(high), "n": len(array)}
