"""Can pictures of hidden units be read? The numbers that say so, each with its ceiling, its floor and its meaning."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vital_exp.evaluation.artefacts import WHITE_NOISE

Entry = Mapping[str, Any]  # of a metric: value, low, high, n and, if there is one, reason
ANY_JUDGE = "another network"


@dataclass(frozen=True)
class Bound:
    """What a number is set beside: the name of another number, or one known beforehand, and where that comes from."""

    source: str | float
    note: str


@dataclass(frozen=True)
class ReadableMeasure:
    """One line of the table.

    Attributes:
        number: name of what pictures reach, in metrics.json; of a judged one without its judge.
        metric: name of the metric that computes it.
        title: for people.
        meaning: one sentence; ``{judge}`` stands for the network that judges.
        ceiling: what natural images reach by the same measure; None: there is none.
        floor: what chance reaches, or natural images of other units; None: there is none.
    """

    number: str
    metric: str
    title: str
    meaning: str
    ceiling: Bound | None
    floor: Bound | None

    @property
    def judged(self) -> bool:
        """Whether there is one number for each judge."""
        return "{judge}" in self.meaning


MEASURES = (
    ReadableMeasure(
        *("correspondence_auc", "correspondence", "resemblance"),
        "{judge} sees the picture, a natural image of its own unit and one of another unit: how often the own one is "
        "more like the picture.",
        Bound("correspondence_auc_natural", "own images, each left out in turn"),
        Bound(0.5, "by construction"),
    ),
    ReadableMeasure(
        *("mis_pictures", "mis", "told apart (MIS)"),
        "Knowing only the units' pictures, as {judge} sees them, how surely a machine tells a natural image that "
        "drives the unit from one that does not.",
        Bound("mis_natural", "explained by natural images"),
        Bound(0.5, "by construction"),
    ),
    ReadableMeasure(
        *("activation_ratio", "activation_ratio", "activation"),
        "How far the picture drives its unit, as a share of the strongest natural image.",
        Bound(1.0, "by definition"),
        Bound("activation_ratio_others", "other units' images"),
    ),
    ReadableMeasure(
        *("own_unit_first", "own_unit_first", "own unit first"),
        "How often the picture's own unit, of all units of the run, comes nearest to its own natural maximum.",
        Bound("own_unit_first_natural", "each unit's strongest image"),
        Bound("own_unit_first_chance", "one in all units"),
    ),
    ReadableMeasure(
        *("path_similarity", "path_similarity", "path through the network"),
        "How much the network's layers treat the picture as they treat natural images of its unit.",
        Bound(1.0, "two images of one unit"),
        Bound(0.0, "of two units"),
    ),
    ReadableMeasure(
        *("high_frequency_ratio", "high_frequency", "fine grain"),
        "How many times the high-frequency energy of its own natural images the picture has: above 1 is noise, below "
        "is blur.",
        Bound(1.0, "by definition"),
        None,
    ),
    ReadableMeasure(
        *("high_frequency", "high_frequency", "high-frequency energy"),
        "The share of the picture's energy in details of less than four pixels.",
        Bound("high_frequency_natural", "median of own images"),
        Bound(WHITE_NOISE, "white noise"),
    ),
)


@dataclass(frozen=True)
class Measured:
    """One line with its numbers.

    Attributes:
        measure: what it is.
        judge: the network that judges; empty where none does.
        pictures: what pictures reach; a value of None has a reason.
        ceiling, floor: what they are set beside; a value of None is not there.
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
        """What the number says, in one sentence."""
        sentence = self.measure.meaning.format(judge=self.judge or ANY_JUDGE)
        return sentence if self.judge else sentence[0].upper() + sentence[1:]


def readable(metrics: Mapping[str, Entry]) -> list[Measured]:
    """Return the lines for which there is a number, or a reason why there is none.

    Args:
        metrics: as in metrics.json.
    """
    return [_row(measure, judge, metrics) for measure in MEASURES for judge in _judges(measure, metrics)]


def numbers_of(rows: Sequence[Measured]) -> set[str]:
    """Return the names in metrics.json of all that the lines show."""
    found = set()
    for row in rows:
        found |= {row.name, _with_judge(row.measure.metric, row.judge)}
        bounds = (row.measure.ceiling, row.measure.floor)
        found |= {_with_judge(one.source, row.judge) for one in bounds if one and isinstance(one.source, str)}
    return found


def _judges(measure: ReadableMeasure, metrics: Mapping[str, Entry]) -> list[str]:
    """The judges that a number is there of, then those that lack something; "" for a number without a judge."""
    if not measure.judged:
        return [""] if {measure.number, measure.metric} & set(metrics) else []
    parts = [name.partition("[") for name in metrics]
    known = [judge.rstrip("]") for base, _, judge in parts if base == measure.number]
    lacking = [judge.rstrip("]") for base, _, judge in parts if base == measure.metric]
    return list(dict.fromkeys([*known, *(judge for judge in lacking if judge or not known)]))


def _row(measure: ReadableMeasure, judge: str, metrics: Mapping[str, Entry]) -> Measured:
    found = metrics.get(_with_judge(measure.number, judge))
    if found is None:  # what could not be computed has the metric's name and a reason
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
    """Return a number with its interval as text, "0.71 (0.63 to 0.8)"; empty where there is none.

    Args:
        entry: of a metric.
        digits: after the point.

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
