"""Checks of single values: what passes, and the message of what does not."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from omegaconf import OmegaConf

from vital_exp import values
from vital_exp.errors import UsageError

Check = Callable[..., object]

PASS: tuple[tuple[Check, tuple[object, ...], object], ...] = (
    (values.whole_number, (0,), 0),
    (values.whole_number, (3, 3), 3),
    (values.whole_number, (3, 1, 3), 3),
    (values.number, (2,), 2.0),
    (values.number, (0.5, 0, 1), 0.5),
    (values.numbers, ([1, 2.5],), (1.0, 2.5)),
    (values.numbers, (OmegaConf.create([1, 2]),), (1.0, 2.0)),
    (values.interval, ([0, 1], 0, 1), (0.0, 1.0)),
    (values.interval, ((1, 1),), (1.0, 1.0)),
    (values.side, (7,), 7),
    (values.sides, (7,), (7, 7)),
    (values.sides, ([7, 9],), (7, 9)),
    (values.sides, (OmegaConf.create([7, 9]),), (7, 9)),
    (values.one_of, ("a", ("a", "b")), "a"),
    (values.one_of, ("a", {"a": 1}), "a"),
    (values.flag, (False,), False),
)
REFUSED: tuple[tuple[Check, tuple[object, ...], str], ...] = (
    *((values.whole_number, (value, 2), "a whole number of at least 2") for value in (1, True, 2.0, "2", None)),
    (values.whole_number, (9, 1, 8), "a whole number between 1 and 8"),
    (values.whole_number, (10**400, 1, 8), "a whole number between 1 and 8"),
    *((values.number, (value,), "a number") for value in (True, "1", None, math.nan, math.inf, -math.inf)),
    *((values.number, (value, 0), "a number of at least 0") for value in (-0.1, math.inf, math.nan)),
    (values.number, (1.5, 0, 1), "a number between 0 and 1"),
    *((values.numbers, (value,), "a list of numbers") for value in ("12", 1, [], None, {1: 2})),
    *((values.interval, (value, 0), "[low, high] of at least 0") for value in (1, [1], [1, 2, 3], "12")),
    (values.interval, ([2, 1],), "[low, high], the lower number first"),
    *((values.side, (value,), "a side of at least 1 px") for value in (0, True, 1.5, None)),
    *((values.sides, (value,), values.SIDES) for value in (0, True, [1], [1, 2, 3], [1, True], "12", [1, 0], None)),
    *((values.one_of, (value, ("a", "b")), "one of a, b") for value in ("c", None, 1, ["a"])),
    *((values.flag, (value,), "true or false") for value in (0, 1, "true", None)),
)


@pytest.mark.parametrize(("check", "given", "returned"), PASS)
def test_what_is_allowed_is_returned(check: Check, given: tuple[object, ...], returned: object) -> None:
    found = check("a.key", *given)
    assert found == returned
    assert type(found) is type(returned)


@pytest.mark.parametrize(("check", "given", "message"), REFUSED)
def test_anything_else_is_a_mistake_that_names_key_and_value(
    check: Check, given: tuple[object, ...], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        check("a.key", *given)
    assert str(caught.value) == f"a.key={given[0]}: {message}"


def test_of_a_list_the_entry_is_named() -> None:
    with pytest.raises(UsageError, match=r"^k=3: a number between 0 and 2$"):
        values.numbers("k", [1, 3], 0, 2)
    with pytest.raises(UsageError, match=r"^k=nan: a number$"):
        values.interval("k", [0, math.nan])


def test_bounds_that_are_not_allowed_themselves() -> None:
    allowed = "a number above 0, below 1"
    assert values.number("k", 0.5, above=0, below=1, allowed=allowed) == 0.5
    for value in (0, 1):
        with pytest.raises(UsageError, match=allowed):
            values.number("k", value, above=0, below=1, allowed=allowed)


def test_a_message_of_the_callers() -> None:
    for check in (values.whole_number, values.number, values.interval):
        with pytest.raises(UsageError, match=r"^k=x: other words$"):
            check("k", "x", allowed="other words")
    with pytest.raises(UsageError, match=r"^k=x: a finite number$"):
        values.numbers("k", ["x"], each="a finite number")


def test_the_nearest_option_is_suggested() -> None:
    with pytest.raises(UsageError, match=r"one of alpha, beta \(did you mean alpha\?\)"):
        values.one_of("k", "alfa", ("alpha", "beta"))
    assert values.one_of("k", "alpha", (name for name in ("alpha", "beta"))) == "alpha"


@pytest.mark.parametrize("value", [True, 1.0, "1", None, 10**400])
def test_what_counts_as_a_whole_number(value: object) -> None:
    assert values.is_whole(value) is (value == 10**400)
    assert values.is_whole(3, 3, 3)
    assert not values.is_whole(4, most=3)


def test_what_counts_as_a_number() -> None:
    assert values.is_number(1)
    assert values.is_number(0.5, 0, 1)
    assert not values.is_number(2, 0, 1)
    assert not any(map(values.is_number, (True, 10**400, math.nan, math.inf, -math.inf, "1", None)))
    assert values.is_text_or_none(None)
    assert values.is_text_or_none("")
    assert not values.is_text_or_none(1)
