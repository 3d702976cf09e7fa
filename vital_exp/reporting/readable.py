"""The table "How readable" of galleries and reports: the measures of pictures of hidden units, by method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vital_exp.evaluation.readability import MEASURES, Entry, Measured, readable


@dataclass(frozen=True)
class ComparedMeasure:
    """One measure of the table.

    Attributes:
        name: its name in metrics.json.
        title, meaning: a short title and a sentence for people.
        rows: one per method; None for a method without this measure.
    """

    name: str
    title: str
    meaning: str
    rows: Sequence[Measured | None]


@dataclass(frozen=True)
class Readable:
    """The table: measures as rows, methods as columns."""

    methods: Sequence[str]
    lines: Sequence[ComparedMeasure]


def side_by_side(metrics: Mapping[str, Mapping[str, Entry]]) -> Readable:
    """Return the table of one method or several.

    Args:
        metrics: by method, the content of metrics.json.
    """
    found = {method: {row.name: row for row in readable(entries)} for method, entries in metrics.items()}
    known = {name: row for rows in found.values() for name, row in rows.items()}
    ordered = sorted(known.values(), key=lambda row: MEASURES.index(row.measure))
    lines = [
        ComparedMeasure(row.name, row.measure.title, row.meaning, [rows.get(row.name) for rows in found.values()])
        for row in ordered
    ]
    return Readable(list(found), lines)
