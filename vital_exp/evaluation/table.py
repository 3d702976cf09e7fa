"""The outcome of an evaluation: a table to print, metrics.json and metrics.csv."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vital_exp.evaluation.metrics import higher_is_better, proxy_of
from vital_exp.evaluation.readability import Entry, Measured, numbers_of, readable
from vital_exp.evaluation.score import Score
from vital_exp.notebook_html import table
from vital_exp.targets.unit import Target
from vital_exp.terminal_tables import Column, note_text, table_text, wrapped
from vital_exp.whole_files import write_json, write_table

NATURAL, CHANCE = "natural images", "chance"
METRIC_COLUMNS = (
    *(Column("metric", flexible=True), Column("value", right=True), Column("95 %", right=True)),
    *(Column("n", right=True), Column("better")),
)
READABLE_COLUMNS = (
    *(Column("measure", flexible=True), Column("pictures", right=True), Column("n", right=True)),
    *(Column(NATURAL, right=True), Column(CHANCE, right=True)),
)
METRICS, ROWS = "metrics.json", "metrics.csv"
METRICS_IN_A_LINE = 4
PREFIXES = ("accuracy_", "transfer_")  # of metrics, not of columns: transfer_top1[judge] has the column top1[judge]


@dataclass
class Evaluation:
    """The result of an evaluation.

    Attributes:
        targets: the targets of the pictures.
        scores: the scores by name.
        activations: the activation of each picture in its own unit; None where there are no units.
        unreadable: by file, why a picture could not be read.
        forward_passes: the number of images passed through each view.
        predictions: by column of metrics.csv, the most probable classes of each picture, in words.
    """

    targets: Sequence[Target]
    scores: Mapping[str, Score]
    activations: Sequence[float] | None = None
    unreadable: Mapping[str, str] = field(default_factory=dict)
    forward_passes: Mapping[str, int] = field(default_factory=dict)
    predictions: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def metrics(self) -> dict[str, dict[str, float | int | str | None]]:
        """The content of metrics.json: by name value, low, high, n and, where there is one, reason."""
        return {name: score.entry() for name, score in self.scores.items()}

    @property
    def rows(self) -> list[dict[str, float | int | str]]:
        """The content of metrics.csv: a row per target, without the columns in which the target has no value."""
        rows: list[dict[str, float | int | str]] = [{"target": target.name} for target in self.targets]
        columns: dict[str, Sequence[float]] = {} if self.activations is None else {"activation": self.activations}
        columns |= {column_of(name): score.values for name, score in self.scores.items() if score.values is not None}
        for name, values in columns.items():
            for row, value in zip(rows, values, strict=True):
                if math.isfinite(value):
                    row[name] = value
        for name, texts in self.predictions.items():
            for row, text in zip(rows, texts, strict=True):
                if text:
                    row[name] = text
        return rows

    def __repr__(self) -> str:
        """The scores in one line."""
        found = ", ".join(f"{name} {score.value:.3g}" for name, score in self.scores.items() if score.value is not None)
        return f"Evaluation({len(self.targets)} pictures: {found or 'no scores'})"

    def _repr_html_(self) -> str:
        return table([{"metric": name, **entry} for name, entry in self.metrics.items()])

    def save(self, folder: Path) -> None:
        """Write metrics.json and metrics.csv; other metrics of an earlier evaluation are kept."""
        metrics = {**_earlier_metrics(folder / METRICS), **self.metrics}
        asked = {column_of(name) for name in self.scores}  # with those that can no longer be computed
        earlier = _earlier_rows(folder / ROWS)
        kept = [{column: cell for column, cell in row.items() if column not in asked} for row in earlier]
        write_scores(folder, metrics, _merged(kept, self.rows))

    def line(self) -> str:
        """Return the first metrics that have a value, in one line."""
        known = [f"{name} {score.value:.3f}" for name, score in self.scores.items() if score.value is not None]
        more = f" and {len(known) - METRICS_IN_A_LINE} more" if len(known) > METRICS_IN_A_LINE else ""
        return f"{', '.join(known[:METRICS_IN_A_LINE])}{more}" if known else "no metric could be computed"

    def __str__(self) -> str:
        """Return the tables: how readable pictures of hidden units are; other metrics; remarks."""
        return metrics_text(self.metrics, any(target.layer for target in self.targets))


def write_scores(folder: Path, metrics: Mapping[str, object], rows: Sequence[Mapping[str, object]]) -> None:
    """Write metrics.json and metrics.csv into a folder."""
    write_json(folder / METRICS, metrics)
    write_table(folder / ROWS, rows)


def metrics_text(metrics: Mapping[str, Entry], hidden: bool) -> str:
    """Return metrics as tables of 80 columns, with remarks below them.

    Args:
        metrics: the content of metrics.json.
        hidden: whether the targets are hidden units, which have a table of readability.
    """
    rows = readable(metrics) if hidden else []
    in_rows = numbers_of(rows)
    others = {name: entry for name, entry in metrics.items() if name not in in_rows}
    parts = [_readable_text(rows) if rows else "", _others_text(others) if others else ""]
    return "\n\n".join(part for part in parts if part)


def _others_text(metrics: Mapping[str, Entry]) -> str:
    rows, notes = [], _Notes()
    for name, entry in metrics.items():
        notes.add(name, str(entry.get("reason") or ""))
        notes.add(name, f"proxy of study {part}" if (part := proxy_of(name)) else "")
        if entry["value"] is not None:
            direction = {True: "higher", False: "lower", None: ""}[higher_is_better(name)]
            rows.append([name, f"{entry['value']:.3f}", _interval(entry), str(entry["n"]), direction])
    table = table_text(METRIC_COLUMNS, rows) if rows else ""
    return "\n".join(part for part in (table, notes.text()) if part)


def _readable_text(rows: Sequence[Measured]) -> str:
    """The table of readability: pictures of hidden units beside natural images and chance, intervals below numbers."""
    cells, notes = [], _Notes()
    for row in rows:
        notes.add(row.name, str(row.pictures.get("reason") or ""))
        if _number(row.pictures):
            cells.append(_readable_cells(row))
            notes.add(row.name, f"proxy of study {part}" if (part := proxy_of(row.name)) else "")
    table = table_text(READABLE_COLUMNS, cells, "How readable") if cells else "How readable"
    beside = dict.fromkeys(filter(None, (_note_of_bounds(row) for row in rows if _number(row.pictures))))
    return "\n".join(part for part in (table, *beside, notes.text()) if part)


def _readable_cells(row: Measured) -> list[str]:
    """The cells of a line, each a number with its interval below."""
    numbers = (row.pictures, row.ceiling, row.floor)
    value, *bounds = map(_number, numbers)
    interval, *others = map(_interval, numbers)
    above = [row.measure.number, value, str(row.pictures.get("n") or ""), *bounds]
    below = [f"by {row.judge}" if row.judge else "", interval, "", *others]
    return [f"{one}\n{two}" if any(below) else one for one, two in zip(above, below, strict=True)]


def _note_of_bounds(row: Measured) -> str:
    """A line with the notes of a measure's ceiling and floor."""
    bounds = ((NATURAL, row.ceiling), (CHANCE, row.floor))
    notes = [f"{title}: {bound['note']}" for title, bound in bounds if _number(bound) and bound.get("note")]
    return wrapped(f"{row.measure.number}, {'; '.join(notes)}") if notes else ""


class _Notes:
    """Notes below a table, each once, with the names of all metrics that have it."""

    def __init__(self) -> None:
        self.found: dict[str, list[str]] = {}

    def add(self, name: str, note: str) -> None:
        if note:
            self.found.setdefault(note, []).append(name)

    def text(self) -> str:
        return note_text(self.found)


def _number(entry: Entry) -> str:
    value = entry.get("value")
    return "" if value is None or not math.isfinite(value) else f"{value:.3f}"


def _interval(entry: Entry) -> str:
    low, high = entry.get("low"), entry.get("high")
    return "" if low is None or high is None else f"{low:.3f} to {high:.3f}"


def column_of(name: str) -> str:
    """Return the column of metrics.csv that holds a metric's values by target."""
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _earlier_metrics(path: Path) -> dict[str, object]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _earlier_rows(path: Path) -> list[dict[str, object]]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [{key: cell for key, cell in row.items() if key and cell} for row in csv.DictReader(file)]


def _merged(earlier: Sequence[Mapping[str, object]], rows: Sequence[Mapping[str, object]]) -> list[dict[str, object]]:
    """Earlier and new rows merged by target; new values replace earlier ones."""
    found: dict[object, dict[str, object]] = {row["target"]: dict(row) for row in earlier if row.get("target")}
    for row in rows:
        found[row["target"]] = {**found.get(row["target"], {}), **row}
    return list(found.values())
