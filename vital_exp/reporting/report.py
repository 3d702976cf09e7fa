"""The report of a sweep: tables, plots, and a page of all pictures as thumbnails."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from markupsafe import Markup
from tqdm import tqdm

from vital_exp.evaluation.table import column_of
from vital_exp.models.heads import Head
from vital_exp.models.network_names import network_title
from vital_exp.progress_bars import hidden
from vital_exp.reporting import formats
from vital_exp.reporting.charts import Curve, line_colour, loss_chart, undrawn
from vital_exp.reporting.combined import CombinedTable, combine, direction
from vital_exp.reporting.facets import labelled
from vital_exp.reporting.metric_words import metric_meaning, metric_title
from vital_exp.reporting.pages import environment
from vital_exp.reporting.plots import colours, interval_plot, scatter_plot, standalone
from vital_exp.reporting.published import METRICS as PUBLISHED_METRICS
from vital_exp.reporting.published import NOTE
from vital_exp.reporting.readable import Readable, side_by_side
from vital_exp.reporting.sweep import SweepRun, find_runs, read_sweep
from vital_exp.reporting.thumbnails import copied, thumbnail, tiles
from vital_exp.values import is_number
from vital_exp.whole_files import write_whole

PAGE = "report.html"
USUAL_HEAD = Head().words  # the usual way of recognition, which the page does not mention
TARGETS_PER_FILE = 50  # targets whose curves are in one file, which one click loads
SCATTERS = 4  # number of headlines that are plotted against seconds; all are plotted by method
COSTS = ("seconds", "memory")  # metrics that are not plotted against seconds
ALWAYS = ("activation", "seconds")  # values of a target that are no metrics
# The value that the page shows with each picture at first: the first of these that the runs have.
FIRST_SHOWN = ("transfer_top1", "accuracy_top1", "activation_ratio", "correspondence_auc", "activation")


@dataclass(frozen=True)
class Report:
    """The report that was written.

    Attributes:
        folder: the folder of the page and the tables.
        page: the path of report.html.
        table: all numbers.
        runs: the run folders.
        unreadable: pictures that are missing or broken.
    """

    folder: Path
    page: Path
    table: CombinedTable
    runs: Sequence[SweepRun]
    unreadable: Sequence[str]

    @property
    def plots(self) -> list[Path]:
        """The files of the plots, SVG."""
        return sorted((self.folder / "plots").glob("*.svg"))


def write_report(
    runs: Sequence[str | Path],
    out: Path,
    metrics: Sequence[str] | str | None = None,
    title: str | None = None,
    progress: bool = False,
) -> Report:
    """Gather run folders into one table and one page.

    Args:
        runs: folders that hold run folders, at any depth.
        out: the folder for table.csv, table.md, table.tex, table.json, comparisons.csv, plots and report.html.
        metrics: the metrics that the table shows first; "all"; None: the usual ones.
        title: the page's title; None: the networks' names.
        progress: whether a progress bar is shown on a terminal.

    Raises:
        UsageError: there are no runs, no run has a finished picture, or no run has one of the metrics.
    """
    sweep = read_sweep(find_runs(runs))
    table = combine(sweep, metrics)
    for folder in ("pictures", "references", "details", "plots"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    described = [_described(run, out) for run in sweep]
    write_whole(out / "table.csv", [formats.as_csv(table)])
    write_whole(out / "comparisons.csv", [formats.comparisons_csv(table)])
    readable = _readable(sweep, table)
    write_whole(out / "table.md", [formats.as_markdown(table), formats.readable_markdown(readable)])
    write_whole(out / "table.tex", [formats.as_latex(table)])
    write_whole(out / "table.json", [formats.table_json(table, described)])
    plots = _plots(table, out / "plots")
    data, unreadable = _page_data(sweep, table, out, described, progress)
    _write_details(sweep, out / "details")
    page = _write_page(out, sweep, table, readable, plots, data, described, title)
    return Report(out, page, table, sweep, unreadable)


def _described(run: SweepRun, out: Path) -> dict[str, Any]:
    """A run in the report: its links, names and counts."""
    link = Path(os.path.relpath(run.folder, out)).as_posix()
    page = "/report.html" if (run.folder / "report.html").is_file() else ""
    done = len(run.run.done)
    known = {"model": run.model, "method": run.method, "seed": run.seed, "pictures": done}
    return {"folder": link, "link": link + page, **known, "failed": len(run.run.results) - done}


def _readable(sweep: Sequence[SweepRun], table: CombinedTable) -> dict[str, Readable]:
    """The table of readability of each network that has pictures of hidden units."""
    found = {}
    for model in dict.fromkeys(run.model for run in sweep if run.run.of_hidden_units):
        by_method = {method: table.entries(model, method) for method in table.methods_of(model)}
        if (one := side_by_side(by_method)).lines:
            found[model] = one
    return found


def _plots(table: CombinedTable, folder: Path) -> dict[str, list[list[Markup]]]:
    """Write each plot as a file; return the plots by model for the page: by method, then against seconds."""
    found: dict[str, list[list[Markup]]] = {}
    for model in table.models:
        timed = [name for name in table.headlines if name not in COSTS and direction(name) is not None]
        by_method = {name: interval_plot(table, model, name) for name in table.headlines}
        against = {f"{name} against seconds": scatter_plot(table, model, name) for name in islice(timed, SCATTERS)}
        for drawn in (by_method, against):
            if svgs := {name: svg for name, svg in drawn.items() if svg}:
                for name, svg in svgs.items():
                    write_whole(folder / f"{_safe(f'{model} {name}')}.svg", [standalone(svg)])
                # The plots escape all text from files themselves.
                found.setdefault(model, []).append([Markup(svg) for svg in svgs.values()])
    return found


def _safe(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).strip("-")


def _page_data(
    sweep: Sequence[SweepRun],
    table: CombinedTable,
    out: Path,
    described: Sequence[Mapping[str, Any]],
    progress: bool,
) -> tuple[dict[str, Any], list[str]]:
    """Write the thumbnails; return the data of the page's script, and the pictures that could not be read."""
    shown = _shown_metrics(sweep, table)
    targets = _targets(sweep)
    places = {name: number for number, name in enumerate(targets)}
    pictures: list[dict[str, Any]] = []
    unreadable: list[str] = []
    references: dict[int, dict[int, list[str | int]]] = {}
    every = [(number, run, order) for number, run in enumerate(sweep) for order in range(len(run.run.results))]
    disable = hidden(progress)
    with tqdm(every, desc="pictures", unit="picture", leave=False, disable=disable, dynamic_ncols=True) as bar:
        for number, run, order in bar:
            model, result = table.models.index(run.model), run.run.results[order]
            one = _picture(run, number, order, result, shown, out)
            if "error" not in one and one["thumb"] is None:
                unreadable.append(f"{described[number]['folder']}/images/{result['target']}.png")
            pictures.append({**one, "target": places[result["target"]]})
            strips = references.setdefault(model, {})
            if places[result["target"]] not in strips and (strip := _strip(run, model, result["target"], out)):
                strips[places[result["target"]]] = strip
    names = [name for name, _ in shown]
    first = next((n for base in FIRST_SHOWN for n in names if n.partition("[")[0] == base), names[0] if names else "")
    data = {
        "models": list(map(network_title, table.models)),
        "methods": list(table.methods),
        "colours": list(colours(table.methods).values()),
        "metrics": [{"name": name, "title": metric_title(name), "better": _better(name)} for name in names],
        "metric": names.index(first) if first else 0,
        "targets": list(targets.values()),
        "runs": [
            {**known, "model": table.models.index(run.model), "method": table.methods.index(run.method)}
            for run, known in zip(sweep, described, strict=True)
        ],
        "pictures": pictures,
        "references": references,
    }
    return data, unreadable


def _better(name: str) -> int:
    if name in ALWAYS:
        return -1 if name == "seconds" else 1
    return {True: 1, False: -1, None: 0}[direction(name)]


def _shown_metrics(sweep: Sequence[SweepRun], table: CombinedTable) -> list[tuple[str, str]]:
    """The metrics with a value per picture: name, and column of metrics.csv or key of results.jsonl."""
    columns = {column for run in sweep for row in run.values.values() for column in row}
    names = [*table.headlines, *table.metrics]
    found = {name: column_of(name) for name in names if column_of(name) in columns and name not in ALWAYS}
    return [*found.items(), *((name, name) for name in ALWAYS)]


def _targets(sweep: Sequence[SweepRun]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for run in sweep:
        for result in run.run.results:
            label = labelled(result)
            known = {"name": result["target"], "label": label}
            found.setdefault(result["target"], known)
    return dict(sorted(found.items(), key=lambda item: _natural(item[0])))


def _natural(name: str) -> list[tuple[bool, int, str]]:
    parts = re.split(r"(\d+)", name)
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]


def _picture(
    run: SweepRun,
    number: int,
    order: int,
    result: Mapping[str, Any],
    shown: Sequence[tuple[str, str]],
    out: Path,
) -> dict[str, Any]:
    """One picture in the page's data."""
    name = str(result["target"])
    if result.get("status") == "failed":
        return {"run": number, "error": str(result.get("error") or "no reason was recorded")}
    source = run.folder / "images" / f"{name}.png"
    masked = source.with_name(f"{name}_masked.png")
    inside = Path(name).name == name  # a name never leads out of the folder
    thumb = thumbnail(source, out / "pictures", f"{number:03d}-{name}") if inside else None
    row = run.values.get(name, {})
    values = [_rounded(result.get(key) if key in ALWAYS else row.get(key)) for _, key in shown]
    return {
        "run": number,
        "thumb": None if thumb is None else f"pictures/{thumb}",
        "full": Path(os.path.relpath(source, out)).as_posix() if inside else "",
        "masked": Path(os.path.relpath(masked, out)).as_posix() if inside and masked.is_file() else "",
        "details": f"{number:03d}-{order // TARGETS_PER_FILE}",
        "values": values,
    }


def _rounded(value: object) -> float | None:
    return float(f"{value:.4g}") if is_number(value) else None


def _strip(run: SweepRun, model: int, target: str, out: Path) -> list[str | int] | None:
    """The path of a target's strip of reference images, copied beside the page, and its number of images."""
    source = run.folder / "references" / f"{target}.jpg"
    if Path(target).name != target or (count := tiles(source)) is None:
        return None
    return [f"references/{copied(source, out / 'references' / f'{model}-{target}.jpg')}", count]


def _write_details(sweep: Sequence[SweepRun], folder: Path) -> None:
    """Write curves and configurations as scripts, because a page that is opened as a file may load scripts alone."""
    for number, run in enumerate(sweep):
        names = [str(result["target"]) for result in run.run.results]
        for chunk, start in enumerate(range(0, len(names), TARGETS_PER_FILE)):
            part = names[start : start + TARGETS_PER_FILE]
            name = f"{number:03d}-{chunk}"
            content = {"config": run.run.config, "targets": dict(_curves(run, part))}
            write_whole(folder / f"{name}.js", [f"vitalDetails({as_json(name)},{as_json(content)});\n"])


def _curves(run: SweepRun, names: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name in names:
        curve: Curve | None = run.run.curves.get(name)
        if curve is not None and curve.points:
            notes = undrawn(curve)
            terms = [(term, line_colour(curve, term, notes), notes.get(term, "")) for term in curve.series()]
            yield name, {"chart": loss_chart(curve, f"Loss of {name} by step"), "terms": terms}


def as_json(content: object) -> str:
    """Return JSON that is safe inside a script element: no text in it can close the element."""
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _write_page(
    out: Path,
    sweep: Sequence[SweepRun],
    table: CombinedTable,
    readable: Mapping[str, Readable],
    plots: Mapping[str, Sequence[Sequence[Markup]]],
    data: Mapping[str, Any],
    described: Sequence[Mapping[str, Any]],
    title: str | None,
) -> Path:
    made = environment()
    made.filters.update(short=formats.short, arrow=formats.arrow, counts=formats.counts)
    made.filters.update(words=metric_title, meaning=metric_meaning)
    chunks = made.get_template("report.html").generate(
        title=title or ", ".join(map(network_title, table.models)),
        table=table,
        readable=readable,
        plots=plots,
        data=Markup(as_json(data)),
        runs=described,
        shades=colours(table.methods),
        count=sum(run["pictures"] for run in described),
        failed=sum(run["failed"] for run in described),
        targets=len(data["targets"]),
        seeds=sorted({run.seed for run in sweep}),
        heads=list(_heads(sweep)),
        notes=list(_notes(sweep, table)),
        legend=formats.legend(table),
        published_note=NOTE,
        published_metrics=list(PUBLISHED_METRICS),
    )
    return write_whole(out / PAGE, chunks)


def _heads(sweep: Sequence[SweepRun]) -> Iterator[str]:
    """Lines on how networks recognise pictures, for those without a softmax over their classes."""
    for model, words in dict.fromkeys((run.model, run.run.recognised_by) for run in sweep if run.run.recognised):
        if words and words.partition(";")[0] != USUAL_HEAD:  # behind the semicolon is the output with the logits
            yield f"{network_title(model)}: recognised by the {words}"


def _notes(sweep: Sequence[SweepRun], table: CombinedTable) -> Iterator[str]:
    if table.unscored:
        yield f"{len(table.unscored)} of {len(sweep)} runs have no metrics: vital-evaluate run=folder scores one"
    for run in sweep:
        yield from (f"{run.folder.name}: {note}" for note in run.run.notes)
