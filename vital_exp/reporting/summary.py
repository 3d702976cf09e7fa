"""The closing table of a run on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from vital_exp.visualization.outcome import Outcome

ROWS_SHOWN = 40  # a longer table scrolls away what comes after it; the gallery has all


def print_summary(pictures: Outcome, gallery: Path) -> None:
    """Print target, loss, activation, recognised or not (if that was asked), seconds; metrics; the gallery's path."""
    table = Table()
    hidden = pictures.targets[0].layer is not None
    judged = hidden or any(column.startswith("top1") for row in pictures.rows for column in row)
    opinion = ["of largest natural" if hidden else "recognised"] if pictures.rows and judged else []
    table.add_column("target", overflow="fold")
    if not hidden:
        table.add_column("label")
    for column in ("loss", "activation", *opinion, "seconds"):
        table.add_column(column, justify="right")
    opinions = {row["target"]: row for row in pictures.rows}
    for result in pictures.results[:ROWS_SHOWN]:
        named = [result["target"]] if hidden else [result["target"], result["label"]]
        if result["status"] == "failed":
            table.add_row(*named, result["error"], style="red")
            continue
        row = opinions.get(result["target"], {})
        said = _share(row) if hidden else ", ".join(_verdict(c, v) for c, v in row.items() if c.startswith("top1"))
        table.add_row(
            *named,
            f"{result['loss']['total']:.4g}",
            "" if result["activation"] is None else f"{result['activation']:.2f}",
            *([said] if opinion else []),
            f"{result['seconds']:.1f}",
        )
    console = Console()
    console.print(table)
    if len(pictures.results) > ROWS_SHOWN:
        console.print(f"and {len(pictures.results) - ROWS_SHOWN} more")
    for name, metric in pictures.metrics.items():
        console.print(f"{name}: {_told(metric)}", highlight=False, markup=False)
    console.print(f"gallery: {gallery}", highlight=False, markup=False, soft_wrap=True)


def _told(metric: Mapping[str, Any]) -> str:
    """A metric's value with its interval, or why there is none."""
    if metric["value"] is None:
        return str(metric.get("reason"))
    low, high = metric["low"], metric["high"]
    interval = "" if low is None else f"{low:.3f} to {high:.3f}, "
    return f"{metric['value']:.3f} ({interval}n = {metric['n']})"


def _share(row: Mapping[str, object]) -> str:
    ratio = row.get("activation_ratio")
    return f"{ratio:.0%}" if isinstance(ratio, float) else ""


def _verdict(column: str, value: object) -> str:
    """Yes or no, with the judge's name if it is a judge's: top1[name]."""
    _, _, judge = column.partition("[")
    verdict = "yes" if value else "no"
    return f"{judge.rstrip(']')}: {verdict}" if judge else verdict
