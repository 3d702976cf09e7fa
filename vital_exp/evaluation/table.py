"""The outcome of an evaluation: a table to print, metrics.json and metrics.csv."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from vital_exp.evaluation.metrics import higher_is_better, proxy_of
from vital_exp.evaluation.readability import Row, number_text, numbers_of, readable
from vital_exp.evaluation.score import Score
from vital_exp.targets.unit import Target
from vital_exp.whole_files import write_json, write_table

WIDTH = 120  # of the printed table
METRICS, ROWS = "metrics.json", "metrics.csv"
METRICS_IN_A_LINE = 4
# Columns of metrics.csv have no words that say what they are the mean of: top1[judge], not transfer_top1[judge].
PREFIXES = ("accuracy_", "transfer_")


@dataclass
class Evaluation:
    """What was found.

    Attributes:
        targets: of the pictures.
        scores: by name.
        activations: what each target's unit reads of its picture; None where it has no unit.
        unreadable: file and reason of pictures that are missing or broken.
        forward_passes: pictures and natural images passed through each view.
    """

    targets: Sequence[Target]
    scores: Mapping[str, Score]
    activations: Sequence[float] | None = None
    unreadable: Mapping[str, str] = field(default_factory=dict)
    forward_passes: Mapping[str, int] = field(default_factory=dict)

    @property
    def metrics(self) -> dict[str, dict[str, float | int | str | None]]:
        """What metrics.json holds: value, low, high, n and, where there is one, the reason, by name."""
        return {name: score.entry() for name, score in self.scores.items()}

    @property
    def rows(self) -> list[dict[str, float | int | str]]:
        """What metrics.csv holds: a row per target; what a target has no value of is left out."""
        rows: list[dict[str, float | int | str]] = [{"target": target.name} for target in self.targets]
        columns: dict[str, Sequence[float]] = {} if self.activations is None else {"activation": self.activations}
        columns |= {column_of(name): score.values for name, score in self.scores.items() if score.values is not None}
        for name, values in columns.items():
            for row, value in zip(rows, values, strict=True):
                if math.isfinite(value):
                    row[name] = value
        return rows

    def save(self, folder: Path) -> None:
        """Write metrics.json and metrics.csv, each whole; metrics of an earlier evaluation that were not asked stay."""
        metrics = {**_earlier_metrics(folder / METRICS), **self.metrics}
        asked = {column_of(name) for name in self.scores}  # a value that cannot be computed any more goes, too
        earlier = _earlier_rows(folder / ROWS)
        kept = [{column: cell for column, cell in row.items() if column not in asked} for row in earlier]
        write_scores(folder, metrics, _merged(kept, self.rows))

    def line(self) -> str:
        """Return the first metrics that have a value, in one line."""
        known = [f"{name} {score.value:.3f}" for name, score in self.scores.items() if score.value is not None]
        more = f" and {len(known) - METRICS_IN_A_LINE} more" if len(known) > METRICS_IN_A_LINE else ""
        return f"{', '.join(known[:METRICS_IN_A_LINE])}{more}" if known else "no metric could be computed"

    def __str__(self) -> str:
        """Return the table: metric, value, interval, n, what to mind; of hidden units also how readable they are."""
        rows = readable(self.metrics) if any(target.layer for target in self.targets) else []
        told = numbers_of(rows)
        others = {name: score for name, score in self.scores.items() if name not in told}
        tables = [*([_readable(rows)] if rows else []), *([_metrics(others)] if others else [])]
        return "\n".join(map(_printed, tables))


def write_scores(folder: Path, metrics: Mapping[str, object], rows: Sequence[Mapping[str, object]]) -> None:
    """Write metrics.json and metrics.csv into a folder, each whole."""
    write_json(folder / METRICS, metrics)
    write_table(folder / ROWS, rows)


def _metrics(scores: Mapping[str, Score]) -> Table:
    table = Table(width=WIDTH)
    for column in ("metric", "value", "95 %", "n", "better", "note"):
        right = column in ("value", "95 %", "n")
        table.add_column(column, justify="right" if right else "left", no_wrap=right, overflow="fold")
    for name, score in scores.items():
        table.add_row(*_cells(name, score))
    return table


def _readable(rows: Sequence[Row]) -> Table:
    """What pictures of hidden units reach, beside what natural images and chance reach."""
    table = Table(title="How readable", title_justify="left", width=WIDTH)
    for column in ("measure", "pictures", "n", "natural images", "chance"):
        table.add_column(column, overflow="fold")
    for row in rows:
        reached = number_text(row.pictures) or str(row.pictures.get("reason") or "")
        count = str(row.pictures.get("n") or "")
        name = f"{row.name}\nproxy of study {part}" if (part := proxy_of(row.name)) else row.name
        table.add_row(name, reached, count, *(_bound_text(one) for one in (row.ceiling, row.floor)))
    return table


def _printed(table: Table) -> str:
    out = io.StringIO()
    console = Console(file=out, width=WIDTH, color_system=None, markup=False, highlight=False, force_jupyter=False)
    console.print(table)
    return out.getvalue().rstrip("\n")


def _bound_text(entry: Mapping[str, Any]) -> str:
    """A ceiling or floor with what it is of."""
    number = number_text(entry)
    return f"{number}, {entry['note']}" if number else ""


def _cells(name: str, score: Score) -> tuple[str, ...]:
    if score.value is None:
        return name, "", "", "", "", score.reason or ""
    interval = "" if score.low is None or score.high is None else f"{score.low:.3f} to {score.high:.3f}"
    direction = {True: "higher", False: "lower", None: ""}[higher_is_better(name)]
    proxy = f"proxy of study {part}" if (part := proxy_of(name)) else ""
    return name, f"{score.value:.3f}", interval, str(score.n), direction, score.reason or proxy


def column_of(name: str) -> str:
    """Return the column of metrics.csv that has a metric's value of each target."""
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
    """Rows by target, the new values over the earlier ones."""
    found: dict[object, dict[str, object]] = {row["target"]: dict(row) for row in earlier if row.get("target")}
    for row in rows:
        found[row["target"]] = {**found.get(row["target"], {}), **row}
    return list(found.values())
