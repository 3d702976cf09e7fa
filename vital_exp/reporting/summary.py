"""The closing table of a run on the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vital_exp.evaluation.recognition import PREDICTED, first_predicted
from vital_exp.evaluation.table import metrics_text
from vital_exp.terminal_tables import Column, table_text, wrapped
from vital_exp.visualization.outcome import Outcome

ROWS_SHOWN = 40  # targets in the table; the gallery shows all
JUDGES_SHOWN = 2  # judges with a column each; more judges share one, with the number of those that recognise the class
RECOGNISED = "top1"
OWN = "recognised"  # the column of the network itself


def print_summary(
    outcome: Outcome,
    gallery: Path,
    provenance: Mapping[str, Any],
    alone: bool = True,
    judges: Sequence[object] = (),
) -> None:
    """Print a line per target, the meaning of the columns, the metrics, the page, and the next command.

    Args:
        outcome: the run's outcome.
        gallery: the run's page.
        provenance: the content of provenance.json.
        alone: whether the run is outside a sweep; a sweep prints the next command itself.
        judges: the run's judges, for the next command; those that are not named configurations are left out.
    """
    for part in _parts(outcome, provenance):
        print(part)
    print(f"gallery: {gallery}")
    if alone:
        named = ",".join(judge for judge in judges if isinstance(judge, str))
        print(f"next: vital-evaluate run={gallery.parent} metrics=all{f' judges=[{named}]' if named else ''}")


def _parts(outcome: Outcome, provenance: Mapping[str, Any]) -> Iterator[str]:
    hidden = outcome.targets[0].layer is not None
    yield _table(outcome, hidden)
    if len(outcome.results) > ROWS_SHOWN:
        yield f"and {len(outcome.results) - ROWS_SHOWN} more"
    for result in outcome.results:
        if result["status"] == "failed":
            yield wrapped(f"{result['target']} failed: {result['error']}")
    if any(result["status"] != "failed" for result in outcome.results):
        yield _loss_line(str(provenance.get("objective") or ""))
        yield _seconds_line(outcome.results, int(provenance.get("batch_size") or 1))
    if outcome.metrics:
        yield f"\n{metrics_text(outcome.metrics, hidden)}\n"


def _table(outcome: Outcome, hidden: bool) -> str:
    rows = {str(row["target"]): row for row in outcome.rows}
    judges = [] if hidden else _judges(outcome.rows)
    opinions = ["of largest natural"] if hidden and rows else _titles(judges)
    columns = [Column("target", flexible=hidden)]
    columns += [] if hidden else [Column("label", flexible=True)]
    columns += [Column("loss", right=True), Column("activation", right=True)]
    columns += [Column(title, right=hidden, flexible=not hidden) for title in opinions]
    cells = []
    for result in outcome.results[:ROWS_SHOWN]:
        row = rows.get(result["target"], {})
        said = [_share(row)] if hidden else _opinions(row, judges)
        named = [result["target"]] if hidden else [result["target"], str(result["label"] or "")]
        failed = result["status"] == "failed"
        numbers = ["failed", ""] if failed else [f"{result['loss']['total']:.4g}", _number(result["activation"])]
        cells.append([*named, *numbers, *(said if opinions else [])])
    return table_text(columns, cells)


def _judges(rows: Sequence[Mapping[str, object]]) -> list[str]:
    """The suffixes of columns with recognition: "" for the network itself, [name] for a judge."""
    columns = dict.fromkeys(column for row in rows for column in row)
    return [column.removeprefix(RECOGNISED) for column in columns if column.startswith(RECOGNISED)]


def _titles(judges: Sequence[str]) -> list[str]:
    own = [OWN] if "" in judges else []
    others = [judge.strip("[]") for judge in judges if judge]
    return own + ([f"by {judge}" for judge in others] if len(others) <= JUDGES_SHOWN else ["by judges"])


def _opinions(row: Mapping[str, object], judges: Sequence[str]) -> list[str]:
    own = [_verdict(row, "")] if "" in judges else []
    others = [judge for judge in judges if judge]
    if len(others) <= JUDGES_SHOWN:
        return own + [_verdict(row, judge) for judge in others]
    return [*own, f"{sum(bool(row.get(RECOGNISED + judge)) for judge in others)} of {len(others)}"]


def _verdict(row: Mapping[str, object], judge: str) -> str:
    """Yes, or the most probable class: "as bell cote, 0.41"."""
    found, text = row.get(f"{RECOGNISED}{judge}"), str(row.get(f"{PREDICTED}{judge}") or "")
    if found or not text:
        return "" if found is None else "yes" if found else "no"
    name, probability = first_predicted(text)
    return f"as {name}, {float(probability):.2f}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _loss_line(objective: str) -> str:
    """A line that explains the columns loss and activation, which are measured on different images."""
    of = f" ({objective})" if objective else ""
    return wrapped(f"loss: the objective{of} on the views of the last step; activation: of the finished picture")


def _seconds_line(results: Sequence[Mapping[str, Any]], batch_size: int) -> str:
    """A line with the seconds of all pictures; per picture only where each was made alone."""
    seconds = sum(result["seconds"] for result in results)
    count = f"{len(results)} {'picture' if len(results) == 1 else 'pictures'}"
    made = "one at a time" if batch_size == 1 else f"in batches of {batch_size}"
    each = f", {seconds / len(results):.1f} each" if batch_size == 1 and len(results) > 1 else ""
    return wrapped(f"seconds: {seconds:.1f} for {count} made {made}{each}")


def _share(row: Mapping[str, object]) -> str:
    ratio = row.get("activation_ratio")
    return f"{ratio:.0%}" if isinstance(ratio, float) else ""
