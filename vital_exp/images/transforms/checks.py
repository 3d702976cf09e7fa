"""Checks of the options of transforms."""

from __future__ import annotations

import math

from vital_exp.errors import UsageError

OUTSIDE = ("grey", "reflect", "edge")


def number(value: object, key: str, least: float = -math.inf, most: float = math.inf) -> float:
    """Return a number in [least, most]; raises UsageError for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise UsageError(key, value, f"a number{_between(least, most)}")
    return float(value)


def whole(value: object, key: str) -> int:
    """Return a whole number of at least 0; raises UsageError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise UsageError(key, value, "a whole number of at least 0")
    return value


def numbers(values: object, key: str, least: float = -math.inf, most: float = math.inf) -> tuple[float, ...]:
    """Return a list of numbers in [least, most], at least one; raises UsageError for anything else."""
    if not isinstance(values, (list, tuple)) or not values:
        raise UsageError(key, values, f"a list of numbers{_between(least, most)}")
    return tuple(number(value, key, least, most) for value in values)


def interval(values: object, key: str, least: float = -math.inf, most: float = math.inf) -> tuple[float, float]:
    """Return [low, high] with least <= low <= high <= most; raises UsageError for anything else."""
    if not isinstance(values, (list, tuple)) or len(values) != 2:
        raise UsageError(key, values, f"[low, high]{_between(least, most)}")
    low, high = numbers(values, key, least, most)
    if low > high:
        raise UsageError(key, values, "[low, high], the lower number first")
    return low, high


def choice(value: object, key: str, options: tuple[str, ...]) -> str:
    """Return one of the options; raises UsageError for anything else."""
    if value not in options:
        raise UsageError(key, value, f"one of {', '.join(options)}", options)
    return str(value)


def flag(value: object, key: str) -> bool:
    """Return true or false; raises UsageError for anything else."""
    if not isinstance(value, bool):
        raise UsageError(key, value, "true or false")
    return value


def sides(value: object, key: str) -> tuple[int, int]:
    """Return (height, width) of a side or of [height, width]; raises UsageError for anything else."""
    pair = (value, value) if isinstance(value, int) else tuple(value) if isinstance(value, (list, tuple)) else ()
    if len(pair) != 2 or any(isinstance(side, bool) or not isinstance(side, int) or side < 1 for side in pair):
        raise UsageError(key, value, "a side of at least 1 px, or [height, width]")
    return pair[0], pair[1]


def _between(least: float, most: float) -> str:
    if math.isinf(most):
        return "" if math.isinf(least) else f" of at least {least:g}"
    return f" between {least:g} and {most:g}"
