"""The combined table as files: CSV and JSON with all numbers, Markdown and LaTeX for people."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from vital_exp.evaluation.metrics import proxy_of
from vital_exp.evaluation.readability import number_text
from vital_exp.reporting.combined import ALL, Cell, CombinedTable, direction
from vital_exp.reporting.published import METRICS as PUBLISHED_METRICS
from vital_exp.reporting.published import NOTE, STUDY
from vital_exp.reporting.readable import ComparedMeasure, Readable

COLUMNS = (
    *("model", "method", "seed", "metric", "value", "low", "high", "n", "units", "better", "best", "worse_than_best"),
    "reason",
)
COMPARISON_COLUMNS = ("model", "metric", "a", "b", "value", "low", "high", "n", "significant")
LEGEND = (
    "Mean over units with its 95 % bootstrap interval (a unit's seeds, facets and variations are averaged first); for "
    "metrics of a whole run, such as FID, the mean over seeds. Bold: the best. *: significantly worse than the best by "
    "the paired bootstrap on the same targets and seeds, not adjusted for multiple comparisons. n: number of pictures, "
    "of runs for seconds and memory."
)


def legend(table: CombinedTable) -> str:
    """Return the legend of the table, with its machine proxies of people's answers."""
    parts: dict[str, list[str]] = {}
    for metric in table.metrics:
        if part := proxy_of(metric):
            parts.setdefault(part, []).append(metric)
    proxies = "; ".join(f"{part}: {', '.join(found)}" for part, found in sorted(parts.items()))
    return f"{LEGEND} Machine proxies of the human study: {proxies}." if proxies else LEGEND


def rows_of(table: CombinedTable) -> Iterator[dict[str, Any]]:
    """Yield the rows of table.csv: each cell over all seeds, then for each seed."""
    for cell in table.cells.values():
        better = {True: "higher", False: "lower", None: None}[direction(cell.metric)]
        known = {"model": cell.model, "method": cell.method, "metric": cell.metric, "better": better}
        numbers = {name: getattr(cell, name) for name in ("value", "low", "high", "n", "units")}
        yield {
            **known,
            "seed": ALL,
            **numbers,
            "best": cell.best,
            "worse_than_best": cell.worse,
            "reason": cell.reason,
        }
        for seed, entry in cell.per_seed.items():
            yield {**known, "seed": seed, **{name: entry.get(name) for name in ("value", "low", "high", "n", "reason")}}


def as_csv(table: CombinedTable) -> str:
    """Return CSV with a row per model, method, metric and seed, and one over all seeds."""
    return _csv(COLUMNS, rows_of(table))


def comparisons_csv(table: CombinedTable) -> str:
    """Return CSV with a row per model, metric and pair of methods a, b: the mean difference a - b."""
    return _csv(COMPARISON_COLUMNS, table.comparisons)


def _csv(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows({key: "" if value is None else value for key, value in row.items()} for row in rows)
    return out.getvalue()


def table_json(table: CombinedTable, runs: Sequence[Mapping[str, Any]] = ()) -> str:
    """Return JSON with the table, the comparisons, the paper's figures and the runs."""
    published = [{"model": line.model, "method": line.method, **line.values} for line in table.published]
    content = {
        "rows": [{column: row.get(column) for column in COLUMNS} for row in rows_of(table)],
        "comparisons": [dict(entry) for entry in table.comparisons],
        "published": {"note": NOTE, "lines": published, "study_medians": STUDY},
        "not_computed": dict(table.missing),
        "not_made": dict(table.unmade),
        "runs": list(runs),
    }
    return json.dumps(content, indent=2) + "\n"


def as_markdown(table: CombinedTable) -> str:
    """Return Markdown with a table per model, metrics as rows and methods as columns, and the paper's figures."""
    parts = []
    for model in table.models:
        methods = table.methods_of(model)
        lines = [f"## {model}", "", _line(["metric", "n", *methods]), _rule(2 + len(methods))]
        for metric in table.headlines:
            cells = [cell for cell in table.row(model, metric) if cell.method in methods]
            if any(cell.value is not None for cell in cells):
                lines.append(_line([f"{metric} {arrow(metric)}".strip(), counts(cells), *map(_markdown_cell, cells)]))
        parts.append("\n".join(lines))
    parts.append(_markdown_published(table))
    parts += [_markdown_reasons("Not made", table.unmade), _markdown_reasons("Not computed", table.missing)]
    return "\n\n".join(filter(None, (legend(table), *parts))) + "\n"


def readable_markdown(tables: Mapping[str, Readable]) -> str:
    """Return Markdown with a table of readability per model: pictures by each method, natural images, chance.

    Args:
        tables: tables of readability by model.
    """
    parts = []
    for model, table in tables.items():
        heads = ["measure", *(f"{method}{part}" for method in table.methods for part in ("", ", natural", ", chance"))]
        lines = [f"## How readable: {model}", "", _line(heads), _rule(len(heads))]
        lines += [_line([line.name, *_readable_cells(line)]) for line in table.lines]
        lines += ["", *(f"- {line.name}: {line.meaning}" for line in table.lines)]
        parts.append("\n".join(lines) + "\n")
    return "".join(f"\n{part}" for part in parts)


def _readable_cells(line: ComparedMeasure) -> Iterator[str]:
    for row in line.rows:
        yield from ("", "", "") if row is None else map(number_text, (row.pictures, row.ceiling, row.floor))


def _markdown_published(table: CombinedTable) -> str:
    if not table.published:
        return ""
    names = list(PUBLISHED_METRICS)
    heads = [f"{name}{part}" for name in names for part in (", ours", ", paper")]
    lines = ["## The paper's figures", "", NOTE, "", _line(["network", "method", *heads]), _rule(2 + len(heads))]
    for line in table.published:
        cells: list[str] = []
        for name in names:
            own = table.cells.get((line.model, line.method, name))
            cells += ["" if own is None else short(own.value), f"{short(line.values[name])} (second-hand)"]
        lines.append(_line([line.model, line.method, *cells]))
    return "\n".join(lines)


def _markdown_reasons(title: str, reasons: Mapping[str, str]) -> str:
    lines = [f"- {name}: {reason}" for name, reason in reasons.items()]
    return "\n".join([f"## {title}", "", *lines]) if lines else ""


def _markdown_cell(cell: Cell) -> str:
    text = short(cell.value)
    text = f"**{text}**" if cell.best else text
    interval = "" if cell.low is None or cell.high is None else f" ({short(cell.low)} to {short(cell.high)})"
    return f"{text}{interval}{' *' if cell.worse else ''}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _rule(columns: int) -> str:
    return "|---" * columns + "|"


def as_latex(table: CombinedTable) -> str:
    """Return LaTeX for ``\\input``: a ``tabular`` with booktabs per model, and one of the paper's figures."""
    parts = [f"% {legend(table)}", "% needs \\usepackage{booktabs}"]
    for model in table.models:
        methods = table.methods_of(model)
        heads = ["metric", "$n$", *map(_escaped, methods)]
        rows = []
        for metric in table.headlines:
            cells = [cell for cell in table.row(model, metric) if cell.method in methods]
            if any(cell.value is not None for cell in cells):
                name = f"{_escaped(metric)} {LATEX_ARROWS[direction(metric)]}".strip()
                rows.append([name, _latex_number(counts(cells)), *map(_latex_cell, cells)])
        parts.append(f"% {model}\n{_tabular(heads, rows)}")
    if table.published:
        parts.append(f"% The paper's figures. {NOTE}\n{_latex_published(table)}")
    return "\n\n".join(parts) + "\n"


LATEX_ARROWS = {True: r"$\uparrow$", False: r"$\downarrow$", None: ""}
LATEX_SPECIAL = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
}


def _latex_published(table: CombinedTable) -> str:
    names = list(PUBLISHED_METRICS)
    heads = ["network", "method", *(f"{_escaped(name)}, paper (second-hand)" for name in names)]
    rows = [
        [_escaped(line.model), _escaped(line.method), *(short(line.values[name]) for name in names)]
        for line in table.published
    ]
    return _tabular(heads, rows)


def _tabular(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [
        rf"\begin{{tabular}}{{ll{'r' * (len(heads) - 2)}}}",
        r"\toprule",
        rf"{' & '.join(heads)} \\",
        r"\midrule",
    ]
    lines += [rf"{' & '.join(row)} \\" for row in rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def _latex_cell(cell: Cell) -> str:
    if cell.value is None:
        return "--"
    value = _latex_number(short(cell.value))
    text = rf"\textbf{{{value}}}" if cell.best else value
    bounds = (
        ""
        if cell.low is None or cell.high is None
        else rf" {{\scriptsize ({_latex_number(short(cell.low))} to {_latex_number(short(cell.high))})}}"
    )
    return f"{text}{'$^{*}$' if cell.worse else ''}{bounds}"


def _latex_number(text: str) -> str:
    return text.replace("-", "$-$")


def _escaped(text: str) -> str:
    return "".join(LATEX_SPECIAL.get(character, character) for character in text)


def arrow(metric: str) -> str:
    """Return an arrow in the better direction; empty for a metric that only describes."""
    return {True: "↑", False: "↓", None: ""}[direction(metric)]


def counts(cells: Sequence[Cell]) -> str:
    """Return the n of a row's cells, as a range where the cells differ."""
    found = sorted({cell.n for cell in cells if cell.value is not None})
    return f"{found[0]} to {found[-1]}" if len(found) > 1 else str(found[0]) if found else ""


def short(value: float | None) -> str:
    """Return a number with three significant digits; a dash for None."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0 or abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:#.3g}".rstrip(".") if abs(value) >= 1e-3 else f"{value:.1e}"
