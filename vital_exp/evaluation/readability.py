"""How readable pictures of hidden units are: a table of metrics, each with its ceiling, its floor and its meaning."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vital_exp.evaluation.artefacts import WHITE_NOISE

Entry = Mapping[str, Any]  # a metric in metrics.json: value, low, high, n and, where there is one, reason
ANY_JUDGE = "another network"


@dataclass(frozen=True)
class Bound:
    """A ceiling or a floor: the name of another metric, or a known value, and a note on its origin."""

    source: str | float
    note: str


@dataclass(frozen=True)
class ReadableMeasure:
    """One line of the table.

    Attributes:
        number: the pictures' name in metrics.json, without the judge in brackets.
        metric: the name of the metric that computes it.
        title: a short title for people.
        meaning: one sentence; ``{judge}`` stands for the judge.
        ceiling: the value of natural images; None: there is none.
        floor: the value of chance, or of natural images of other units; None: there is none.
    """

    number: str
    metric: str
    title: str
    meaning: str
    ceiling: Bound | None
    floor: Bound | None

    @property
    def judged(self) -> bool:
        """Whether it is computed for each judge."""
        return "{judge}" in self.meaning


MEASURES = (
    ReadableMeasure(
        *("correspondence_auc", "correspondence", "resemblance"),
        "{judge} compares the picture with a natural image of its own unit and one of another unit: how often the "
        "picture is more similar to the one of its own unit.",
        Bound("correspondence_auc_natural", "own images, each left out in turn"),
        Bound(0.5, "by construction"),
    ),
    ReadableMeasure(
        *("mis_pictures", "mis", "told apart (MIS)"),
        "From the units' pictures alone, as {judge} sees them: how surely a machine tells a natural image that drives "
        "the unit from one that does not.",
        Bound("mis_natural", "in place of the pictures"),
        Bound(0.5, "by construction"),
    ),
    ReadableMeasure(
        *("activation_ratio", "activation_ratio", "activation"),
        "The picture's activation in its unit, as a share of the strongest natural image's.",
        Bound(1.0, "by definition"),
        Bound("activation_ratio_others", "other units' images"),
    ),
    ReadableMeasure(
        *("own_unit_first", "own_unit_first", "own unit first"),
        "How often, of all units of the run, the picture drives its own unit most; each activation is taken as a share "
        "of the unit's largest on natural images.",
        Bound("own_unit_first_natural", "each unit's strongest image"),
        Bound("own_unit_first_chance", "1 / number of units"),
    ),
    ReadableMeasure(
        *("path_similarity", "path_similarity", "path through the network"),
        "How similarly the network's layers process the picture and natural images of its unit.",
        Bound(1.0, "two images of one unit"),
        Bound(0.0, "images of two units"),
    ),
    ReadableMeasure(
        *("high_frequency_ratio", "high_frequency", "fine grain"),
        "The picture's high-frequency energy over that of its own natural images: above 1 is noise, below 1 is blur.",
        Bound(1.0, "by definition"),
        None,
    ),
    ReadableMeasure(
        *("high_frequency", "high_frequency", "high-frequency energy"),
        "The share of the picture's energy in details finer than four pixels.",
        Bound("high_frequency_natural", "median of own images"),
        Bound(WHITE_NOISE, "white noise"),
    ),
)


@dataclass(frozen=True)
class Measured:
    """One line of the table with its numbers.

    Attributes:
        measure: the line's measure.
        judge: the judge's name; empty for a measure without a judge.
        pictures: the pictures' entry; where its value is None, it has a reason.
        ceiling, floor: the entries of the bounds; where the value is None, there is no bound.
    """

    measure: ReadableMeasure
    judge: str
    pictures: Entry
    ceiling: Entry
    floor: Entry

    @property
    def name(self) -> str:
        """The number's name in metrics.json."""
        return f"{self.measure.number}[{self.judge}]" if self.judge else self.measure.number

    @property
    def meaning(self) -> str:
        """The meaning of the number, in one sentence."""
        sentence = self.measure.meaning.format(judge=self.judge or ANY_JUDGE)
        return sentence if self.judge else sentence[0].upper() + sentence[1:]


def readable(metrics: Mapping[str, Entry]) -> list[Measured]:
    """Return the lines of the table that have a number, or a reason why there is none.

    Args:
        metrics: the content of metrics.json.
    """
    return [_row(measure, judge, metrics) for measure in MEASURES for judge in _judges(measure, metrics)]


def numbers_of(rows: Sequence[Measured]) -> set[str]:
    """Return the names in metrics.json of all numbers that the lines show."""
    found = set()
    for row in rows:
        found |= {row.name, _with_judge(row.measure.metric, row.judge)}
        bounds = (row.measure.ceiling, row.measure.floor)
        found |= {_with_judge(one.source, row.judge) for one in bounds if one and isinstance(one.source, str)}
    return found


def _judges(measure: ReadableMeasure, metrics: Mapping[str, Entry]) -> list[str]:
    """The judges that have a number, then those that have a reason; "" for a measure without a judge."""
    if not measure.judged:
        return [""] if {measure.number, measure.metric} & set(metrics) else []
    parts = [name.partition("[") for name in metrics]
    known = [judge.rstrip("]") for base, _, judge in parts if base == measure.number]
    lacking = [judge.rstrip("]") for base, _, judge in parts if base == measure.metric]
    return list(dict.fromkeys([*known, *(judge for judge in lacking if judge or not known)]))


def _row(measure: ReadableMeasure, judge: str, metrics: Mapping[str, Entry]) -> Measured:
    found = metrics.get(_with_judge(measure.number, judge))
    if found is None:  # a metric that could not be computed has one entry, under its own name, with the reason
        lacking = metrics.get(_with_judge(measure.metric, judge), {})
        found = {"value": None, "reason": lacking.get("reason")}
    bounds = [_bound(one, judge, metrics) for one in (measure.ceiling, measure.floor)]
    return Measured(measure, judge, found, *bounds)


def _bound(bound: Bound | None, judge: str, metrics: Mapping[str, Entry]) -> Entry:
    if bound is None:
        return {"value": None, "note": ""}
    if isinstance(bound.source, float):
        return {"value": bound.source, "note": bound.note}
    found = metrics.get(_with_judge(bound.source, judge)) or {"value": None}
    return {**found, "note": bound.note if found.get("value") is not None else ""}


def _with_judge(name: str, judge: str) -> str:
    return f"{name}[{judge}]" if judge else name


def number_text(entry: Entry, digits: int = 3) -> str:
    """Return a number with its interval as text, "0.71 (0.63 to 0.80)"; empty where there is no number.

    Args:
        entry: a metric's entry in metrics.json.
        digits: number of digits after the point.

    Examples:
        >>> from vital_exp.evaluation.readability import number_text
        >>> number_text({"value": 0.712, "low": 0.63, "high": 0.8})
        '0.712 (0.630 to 0.800)'
    """
    value, low, high = (entry.get(part) for part in ("value", "low", "high"))
    if value is None or not math.isfinite(value):
        return ""
    if low is None or high is None:
        return f"{value:.{digits}f}"
    return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
