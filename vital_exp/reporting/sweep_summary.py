"""The closing text of a sweep on the terminal: methods by metrics, failed jobs, and the next command."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vital_exp.errors import UsageError
from vital_exp.recorded_config import MISTAKE_FILE
from vital_exp.reporting.combined import CombinedTable, combine
from vital_exp.reporting.report import PAGE
from vital_exp.reporting.sweep import SweepRun, read_sweep
from vital_exp.run_folders import RESULTS, by_number, wandb_id
from vital_exp.terminal_tables import WIDTH, Column, table_text, wrapped

LABEL = 40  # letters of a method's name that keep their room before a further metric is shown
TARGETS_SHOWN = 5
UNITS = {
    "seconds": "seconds: per picture, the time of a batch divided by its pictures",
    "memory": "memory: MiB, the largest that a job held",
}


def sweep_text(place: Path) -> str:
    """Return the closing text of the sweep in a folder."""
    jobs = sorted(filter(_is_job, place.iterdir()), key=by_number) if place.is_dir() else []
    began = [job for job in jobs if (job / RESULTS).is_file()]
    lines = [f"sweep: {len(jobs)} {'job' if len(jobs) == 1 else 'jobs'} in {place}"]
    try:
        runs = read_sweep(began) if began else []
    except UsageError as error:
        runs = []
        lines.append(wrapped(str(error)))
    if runs:
        lines.append(methods_text(runs))
    failures: dict[str, list[str]] = {}
    for job in jobs:
        if reason := _failure(job, runs):
            failures.setdefault(reason, []).append(job.name)
    for reason, names in failures.items():
        lines.append(wrapped(f"{'job' if len(names) == 1 else 'jobs'} {', '.join(names)} failed: {reason}"))
    logged = " wandb=true" if any(wandb_id(run.folder) for run in runs) else ""
    return "\n".join([*lines, *([f"next: vital-report runs={place}{logged}"] if runs else [])])


def _is_job(path: Path) -> bool:
    """Whether a path in a sweep's folder is a job's folder, and not the folder of a report."""
    return path.is_dir() and ((path / RESULTS).is_file() or not (path / PAGE).is_file())


def methods_text(runs: Sequence[SweepRun]) -> str:
    """Return a table with a row per method (and network, if there are several), and as many metrics as fit."""
    table = combine(runs)
    several = len(table.models) > 1
    groups = list(dict.fromkeys((run.model, run.method) for run in runs))
    columns = [Column("method", flexible=True), Column("jobs", right=True), Column("pictures", right=True)]
    rows = []
    for model, method in groups:
        own = [run for run in runs if (run.model, run.method) == (model, method)]
        count = sum(len(run.run.done) for run in own)
        rows.append([f"{method}, {model}" if several else method, str(len(own)), str(count)])
    room = WIDTH - min(LABEL, max(len(row[0]) for row in rows)) - sum(len(column.title) + 2 for column in columns[1:])
    left = list(table.headlines)
    while left:
        title = left[0].replace("[", "\n[")
        cells = [_value(table, model, method, left[0]) for model, method in groups]
        width = max(len(line) for text in (title, *cells) for line in text.split("\n")) + 2
        if width > room:
            break
        room -= width
        columns.append(Column(title, right=True))
        for row, cell in zip(rows, cells, strict=True):
            row.append(cell)
        left.pop(0)
    shown = [note for name, note in UNITS.items() if name in table.headlines and name not in left]
    more = [f"{len(left)} more {'metric' if len(left) == 1 else 'metrics'} in the report"] if left else []
    return "\n".join([table_text(columns, rows), *shown, *more])


def _value(table: CombinedTable, model: str, method: str, metric: str) -> str:
    cell = table.cells.get((model, method, metric))
    return "" if cell is None or cell.value is None else f"{cell.value:.3f}"


def _failure(job: Path, runs: Sequence[SweepRun]) -> str:
    """Words on the failure of a job; empty where nothing failed."""
    run = next((run for run in runs if run.folder == job.resolve() or run.folder == job), None)
    results = run.run.results if run else []
    failed = [result["target"] for result in results if result.get("status") == "failed"]
    if failed:
        more = f" and {len(failed) - TARGETS_SHOWN} more" if len(failed) > TARGETS_SHOWN else ""
        return f"{len(failed)} of {len(results)} targets, {', '.join(failed[:TARGETS_SHOWN])}{more}"
    if results:
        return ""
    mistake = job / MISTAKE_FILE
    return mistake.read_text(encoding="utf-8", errors="replace").strip() if mistake.is_file() else "it made nothing"
