"""Checks of single values: each returns the value, or raises a mistake with the key and the allowed values.

Booleans, infinity and NaN do not count as numbers.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from typing import TypeGuard

from vital_exp.errors import UsageError

SIDES = "a side of at least 1 px, or [height, width]"


def is_whole(value: object, least: float = -math.inf, most: float = math.inf) -> TypeGuard[int]:
    """Return whether a value is a whole number in [least, most]."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def is_number(value: object, least: float = -math.inf, most: float = math.inf) -> TypeGuard[float]:
    """Return whether a value is a finite number, an int or a float, in [least, most]."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) <= sys.float_info.max and least <= value <= most


def number_or_none(value: object) -> float | None:
    """Return a finite number as a float; None for anything else."""
    return float(value) if is_number(value) else None


def is_text_or_none(value: object) -> TypeGuard[str | None]:
    """Return whether a value is a text, or None."""
    return value is None or isinstance(value, str)


def whole_number(
    key: str, value: object, least: float = 0, most: float = math.inf, *, allowed: str | None = None
) -> int:
    """Return a whole number in [least, most].

    Args:
        key: the configuration key or argument that holds the value.
        value: the value to check.
        least: the smallest allowed value.
        most: the largest allowed value.
        allowed: the message's description of allowed values; None: the bounds.

    Raises:
        UsageError: anything else.

    Examples:
        >>> from vital_exp.values import whole_number
        >>> whole_number("steps", 200, 1)
        200
        >>> whole_number("steps", 0.5, 1)
        Traceback (most recent call last):
            ...
        vital_exp.errors.UsageError: steps=0.5: a whole number of at least 1
    """
    if not is_whole(value, least, most):
        raise UsageError(key, value, allowed or f"a whole number{_between(least, most)}")
    return value


def number(
    key: str,
    value: object,
    least: float = -math.inf,
    most: float = math.inf,
    *,
    above: float = -math.inf,
    below: float = math.inf,
    allowed: str | None = None,
) -> float:
    """Return a finite number in [least, most] and in the open interval (above, below).

    Args:
        key, value, least, most, allowed: as for :func:`whole_number`; the message's bounds are least and most.
        above, below: exclusive bounds; the text ``allowed`` must name them.

    Raises:
        UsageError: anything else.
    """
    if not is_number(value, least, most) or not above < value < below:
        raise UsageError(key, value, allowed or f"a number{_between(least, most)}")
    return float(value)


def numbers(
    key: str, values: object, least: float = -math.inf, most: float = math.inf, *, each: str | None = None
) -> tuple[float, ...]:
    """Return a non-empty list of finite numbers in [least, most], as a tuple.

    Args:
        key, least, most: as for :func:`whole_number`.
        values: a list or another sequence.
        each: the message's description of an allowed entry; None: a number and the bounds.

    Raises:
        UsageError: not a list, an empty list, or an entry that is not such a number.
    """
    if not _is_list(values) or not values:
        raise UsageError(key, values, f"a list of numbers{_between(least, most)}")
    return tuple(number(key, value, least, most, allowed=each) for value in values)


def interval(
    key: str, values: object, least: float = -math.inf, most: float = math.inf, *, allowed: str | None = None
) -> tuple[float, float]:
    """Return [low, high] with least <= low <= high <= most.

    Args:
        key, least, most, allowed: as for :func:`whole_number`.
        values: a list or another sequence of two numbers.

    Raises:
        UsageError: anything else.

    Examples:
        >>> from vital_exp.values import interval
        >>> interval("image.values_range", [-2, 2])
        (-2.0, 2.0)
    """
    if not _is_list(values) or len(values) != 2 or (allowed and not all(map(is_number, values))):
        raise UsageError(key, values, allowed or f"[low, high]{_between(least, most)}")
    low, high = (number(key, value, least, most) for value in values)
    if low > high:
        raise UsageError(key, values, "[low, high], the lower number first")
    return low, high


def side(key: str, value: object) -> int:
    """Return a side in px; raises UsageError unless the value is a whole number of at least 1."""
    return whole_number(key, value, 1, allowed="a side of at least 1 px")


def sides(key: str, value: object) -> tuple[int, int]:
    """Return (height, width) in px from one side or from [height, width]; raises UsageError for anything else.

    Examples:
        >>> from vital_exp.values import sides
        >>> sides("image.size", 224), sides("image.size", [224, 160])
        ((224, 224), (224, 160))
    """
    pair = tuple(value) if _is_list(value) else (value, value)
    if len(pair) != 2:
        raise UsageError(key, value, SIDES)
    height, width = pair
    if not is_whole(height, 1) or not is_whole(width, 1):
        raise UsageError(key, value, SIDES)
    return height, width


def one_of(key: str, value: object, options: Iterable[str]) -> str:
    """Return one of the options.

    Raises:
        UsageError: anything else; the message lists the options and suggests the nearest.

    Examples:
        >>> from vital_exp.values import one_of
        >>> one_of("mask", "folowed", ["followed", "published"])
        Traceback (most recent call last):
            ...
        vital_exp.errors.UsageError: mask=folowed: one of followed, published (did you mean followed?)
    """
    options = tuple(options)
    if not isinstance(value, str) or value not in options:
        raise UsageError(key, value, f"one of {', '.join(options)}", options)
    return value


def flag(key: str, value: object) -> bool:
    """Return true or false; raises UsageError for anything else."""
    if not isinstance(value, bool):
        raise UsageError(key, value, "true or false")
    return value


def _is_list(value: object) -> TypeGuard[Sequence[object]]:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _between(least: float, most: float) -> str:
    if math.isinf(most):
        return "" if math.isinf(least) else f" of at least {_bound(least)}"
    return f" between {_bound(least)} and {_bound(most)}"


def _bound(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"
