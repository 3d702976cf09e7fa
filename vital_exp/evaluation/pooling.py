"""Means of a metric over targets and seeds, with intervals over units; differences of two methods, paired by unit."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from vital_exp.evaluation.comparison import paired_difference
from vital_exp.evaluation.intervals import bootstrap_mean

# (target, seed) -> value; a metric of the whole run has ``WHOLE`` as its target.
Values = Mapping[tuple[str, int], float]
WHOLE = ""
# Fewer pairs are never significant: the smallest p of a sign test of n pairs is 2^(1-n), 0.03 for 6.
LEAST_PAIRS = 6


def pooled(values: Values) -> dict[str, float | int]:
    """Return the mean over units of each unit's mean over seeds, facets and variations, with its 95 % interval.

    The bootstrap resamples units, because pictures of one unit are similar. Of a single unit, it resamples pictures.

    Args:
        values: at least one must be finite.

    Returns:
        ``{"value", "low", "high", "n", "units"}``; n is the number of finite values.
    """
    finite = {key: value for key, value in values.items() if math.isfinite(value)}
    groups = _by_unit(finite)
    return {**bootstrap_mean(list(groups.values())), "n": len(finite), "units": len(groups)}


def pooled_ratios(values: Values) -> dict[str, float | int]:
    """Return :func:`pooled` for ratios: the geometric mean, which is 1 for 2 and 1/2, with its interval.

    Args:
        values: positive; at least one must be finite.
    """
    found = pooled({key: math.log(value) for key, value in values.items() if math.isfinite(value)})
    return {**found, **{part: math.exp(found[part]) for part in ("value", "low", "high")}}


def compared(a: Values, b: Values) -> dict[str, float | int | bool | None]:
    """Return the mean difference a - b on the targets and seeds that both have, with its paired bootstrap interval.

    Returns:
        See :func:`paired_difference`. n is the number of units (of a single unit, of its pictures); a difference of
        fewer than ``LEAST_PAIRS`` is never significant.
    """
    shared = [key for key in a if key in b and math.isfinite(a[key]) and math.isfinite(b[key])]
    first, second = _by_unit({key: a[key] for key in shared}), _by_unit({key: b[key] for key in shared})
    found = paired_difference(first, second)
    return {**found, "significant": bool(found["significant"]) and int(found["n"] or 0) >= LEAST_PAIRS}


def _by_unit(values: Values) -> dict[str, float]:
    """Each unit's mean over facets, variations (``class-0_f1_v2``) and seeds; of a single unit, each value."""
    groups: dict[str, list[float]] = {}
    for (target, _seed), value in values.items():
        groups.setdefault(re.sub(r"(_f\d+)?(_v\d+)?$", "", target), []).append(value)
    if len(groups) == 1:
        return {f"{target} {seed}": value for (target, seed), value in values.items()}
    return {unit: sum(found) / len(found) for unit, found in groups.items()}
