"""Comparison of two methods by their differences on the same targets and seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from vital_exp.evaluation.intervals import bootstrap_mean

Values = Mapping[Any, float] | Sequence[float]  # by any hashable key


def paired_difference(a: Values, b: Values, seed: int = 0) -> dict[str, float | int | bool | None]:
    """Return the mean difference a - b over the keys that both have, with its 95 % paired bootstrap interval.

    Args:
        a, b: values by target, or by (target, seed); two sequences are paired by their order. Pairs with a value that
            is not finite are left out.
        seed: of the resampling.

    Returns:
        ``{"value", "low", "high", "n", "significant"}``. The difference is significant if the interval excludes 0 and
        there are at least two pairs. Without a pair, value, low and high are None and n is 0.

    Raises:
        ValueError: the sequences differ in length, or a mapping is compared with a sequence.

    Examples:
        >>> from vital_exp.evaluation.comparison import paired_difference
        >>> better = paired_difference({"cat": 0.9, "dog": 0.8}, {"cat": 0.5, "dog": 0.5, "fish": 0.1})
        >>> round(better["value"], 3), better["n"]
        (0.35, 2)
    """
    pairs = _pairs(a, b)
    differences = [x - y for x, y in pairs if math.isfinite(x) and math.isfinite(y)]
    if not differences:
        return {"value": None, "low": None, "high": None, "n": 0, "significant": False}
    entry = bootstrap_mean(differences, seed)
    outside = entry["low"] > 0 or entry["high"] < 0
    return {**entry, "significant": outside and len(differences) > 1}


def _pairs(a: Values, b: Values) -> list[tuple[float, float]]:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return [(a[key], b[key]) for key in a if key in b]
    if isinstance(a, Mapping) or isinstance(b, Mapping):
        raise ValueError("two mappings or two sequences are compared, not one of each")
    return list(zip(a, b, strict=True))
