"""The score of a metric: a number with its interval and n, per target or of the whole set, or why there is none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vital_exp.evaluation.intervals import bootstrap_mean


class NotComputed(Exception):
    """A metric cannot be computed; the message says what it needs."""


@dataclass(frozen=True)
class Score:
    """One number of the table.

    Attributes:
        value: None where it could not be computed.
        low, high: the 95 % bootstrap interval; None where there is none.
        n: the number of values, or of pictures, behind it.
        reason: why there is no value or no interval, or a remark for readers.
        values: one per target, NaN where a target has none; None for a number of the whole set.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    reason: str | None = None
    values: tuple[float, ...] | None = None

    @classmethod
    def mean(cls, values: Sequence[float], groups: Sequence[int] | None = None, reason: str | None = None) -> Score:
        """Return the mean over targets with its interval.

        Args:
            values: one per target; NaN where a target has none.
            groups: the unit of each target, for values of units rather than pictures: the targets of a unit count once,
                with their mean.
            reason: a remark for readers.

        Raises:
            NotComputed: no target has a value.

        Examples:
            >>> from vital_exp.evaluation.score import Score
            >>> score = Score.mean([0.0, 1.0, 1.0, 0.0])
            >>> score.value, score.n
            (0.5, 4)
        """
        keys = range(len(values)) if groups is None else groups
        by_key: dict[int, list[float]] = {}
        for key, value in zip(keys, values, strict=True):
            if math.isfinite(value):
                by_key.setdefault(key, []).append(value)
        if not by_key:
            raise NotComputed("no target has a value of it")
        entry = bootstrap_mean([sum(found) / len(found) for found in by_key.values()])
        return cls(**entry, reason=reason, values=tuple(values))  # type: ignore[arg-type]

    @classmethod
    def geometric_mean(cls, values: Sequence[float]) -> Score:
        """Return the geometric mean over targets with its interval, for ratios: that of 2 and 1/2 is 1.

        Args:
            values: one per target, positive; NaN where a target has none.

        Raises:
            NotComputed: no target has a value.
        """
        logarithms = [math.log(value) for value in values if math.isfinite(value)]
        if not logarithms:
            raise NotComputed("no target has a value of it")
        found = bootstrap_mean(logarithms)
        value, low, high = (math.exp(found[part]) for part in ("value", "low", "high"))
        return cls(value, low, high, len(logarithms), values=tuple(values))

    @classmethod
    def missing(cls, reason: str) -> Score:
        """Return the score of a metric that could not be computed."""
        return cls(None, reason=f"not computed: {reason}")

    def entry(self) -> dict[str, float | int | str | None]:
        """Return its entry in metrics.json: value, low, high, n and, where there is one, the reason."""
        found: dict[str, float | int | str | None] = {
            "value": _finite(self.value),
            "low": _finite(self.low),
            "high": _finite(self.high),
            "n": self.n,
        }
        return found if self.reason is None else {**found, "reason": self.reason}


def _finite(value: float | None) -> float | None:
    """None for NaN and infinity, which JSON does not have."""
    return value if value is not None and math.isfinite(value) else None
