"""Numbers that users give as options of terms."""

from __future__ import annotations

from vital_exp.errors import UsageError


def not_negative(number: object, key: str) -> float:
    """Return a number of at least 0; raises UsageError for anything else."""
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not number >= 0:
        raise UsageError(key, number, "a number of at least 0")
    return float(number)


def whole_number(number: object, least: int, key: str) -> int:
    """Return a whole number of at least ``least``; raises UsageError for anything else."""
    if isinstance(number, bool) or not isinstance(number, int) or number < least:
        raise UsageError(key, number, f"a whole number of at least {least}")
    return number
