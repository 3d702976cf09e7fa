"""One number over targets and seeds, and whether two methods differ in it: intervals over units, pairs by unit."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from vital_exp.evaluation.comparison import paired_difference
from vital_exp.evaluation.intervals import bootstrap_mean

# (target, seed) -> value; a number of the whole run has one target, ``WHOLE``.
Values = Mapping[tuple[str, int], float]
WHOLE = ""
# With fewer, differences that all have one sign may be chance: a sign test of n pairs gives 2^(1-n) at best, 0.03 at 6.
LEAST_PAIRS = 6


def pooled(values: Values) -> dict[str, float | int]:
    """Return the mean over units of each unit's mean over seeds, facets and variations, with its 95 % interval.

    Units are resampled, not pictures: those of one unit are alike. With one unit its pictures are resampled.

    Args:
        values: at least one finite value.

    Returns:
        ``{"value", "low", "high", "n", "units"}``, n the values.
    """
    finite = {key: value for key, value in values.items() if math.isfinite(value)}
    groups = _by_unit(finite)
    return {**bootstrap_mean(list(groups.values())), "n": len(finite), "units": len(groups)}


def pooled_ratios(values: Values) -> dict[str, float | int]:
    """Return :func:`pooled` of ratios: the geometric mean, for which 2 and 1/2 make 1, with its interval.

    Args:
        values: above 0; at least one finite.
    """
    found = pooled({key: math.log(value) for key, value in values.items() if math.isfinite(value)})
    return {**found, **{part: math.exp(found[part]) for part in ("value", "low", "high")}}


def compared(a: Values, b: Values) -> dict[str, float | int | bool | None]:
    """Return the mean difference a - b on the targets and seeds both have, with its paired bootstrap interval.

    Returns:
        See :func:`paired_difference`; n counts the units (or the seeds of one unit), and fewer than ``LEAST_PAIRS`` are
        never significant.
    """
    shared = [key for key in a if key in b and math.isfinite(a[key]) and math.isfinite(b[key])]
    first, second = _by_unit({key: a[key] for key in shared}), _by_unit({key: b[key] for key in shared})
    found = paired_difference(first, second)
    return {**found, "significant": bool(found["significant"]) and int(found["n"] or 0) >= LEAST_PAIRS}


def _by_unit(values: Values) -> dict[str, float]:
    """The mean of each unit, whatever its facets, variations (``class-0_f1_v2``) and seeds; of one unit each value."""
    groups: dict[str, list[float]] = {}
    for (target, _seed), value in values.items():
        groups.setdefault(re.sub(r"(_f\d+)?(_v\d+)?$", "", target), []).append(value)
    if len(groups) == 1:
        return {f"{target} {seed}": value for (target, seed), value in values.items()}
    return {unit: sum(found) / len(found) for unit, found in groups.items()}
