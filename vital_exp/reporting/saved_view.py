"""A saved view of Weights & Biases: a W&B Report that shows the jobs of a sweep side by side, by method."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vital_exp.engine.callbacks import loss_kind
from vital_exp.recorded_config import recorded_config
from vital_exp.reporting.combined import PER_RUN, direction
from vital_exp.reporting.facets import labelled
from vital_exp.reporting.metric_words import metric_title
from vital_exp.reporting.report import Report
from vital_exp.reporting.sweep import SweepRun
from vital_exp.run_folders import wandb_id
from vital_exp.visualization.loggers import sweep_name

LIBRARY = "wandb_workspaces"
METHOD = "method.name"  # the configuration key by which panels group the jobs
TARGETS = 24  # most targets with a panel: views with hundreds of panels do not open
WIDE, HALF, TALL = 24, 12, 8  # sizes of panels, in units of the grid, which is 24 wide


def project_of(runs: Sequence[SweepRun]) -> str | None:
    """Return the project that the jobs were logged to; None where there is none or more than one."""
    logged = [run.folder for run in runs if wandb_id(run.folder)]
    loggers = [recorded_config(folder, "runs").get("logger") or {} for folder in logged]
    projects = {str(logger["project"]) for logger in loggers if logger.get("project")}
    return projects.pop() if len(projects) == 1 else None


def save(report: Report, run: Any) -> str:
    """Save the view; return a line with its address, or why there is none and how to see the same by hand.

    Args:
        report: the report whose jobs are shown.
        run: the run of Weights & Biases that holds the report's tables and plots.
    """
    if importlib.util.find_spec(LIBRARY) is None:
        return f'wandb: no saved view without wandb-workspaces (pip install "vital-exp[workspaces]"); {by_hand(report)}'
    if run.offline:
        return f"wandb: no saved view without a login and the server; {by_hand(report)}"
    try:
        view = build(report, run.entity, run.project, run.id)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            view.save()
    except Exception as error:  # the library raises plain Exception; tables and plots are logged already
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        return f"wandb: no saved view ({reason}); {by_hand(report)}"
    return f"wandb: saved view: {view.url}"


def by_hand(report: Report) -> str:
    """Return words on how to see the jobs by method without a saved view."""
    logged = [run for run in report.runs if wandb_id(run.folder)]
    if not logged:
        return "the jobs themselves were not logged (logger=wandb)"
    sweeps = dict.fromkeys(filter(None, (sweep_name(run.folder) for run in logged)))
    chosen = f"filter Group = {' or '.join(sweeps)} and " if sweeps else ""
    return f"in the project {project_of(logged)} {chosen}group by {METHOD}"


def build(report: Report, entity: str, project: str, report_run: str) -> Any:
    """Return the view as an object of wandb-workspaces, not yet saved.

    Panels of the report's run: the table of pictures with a column per method, and the plots of metrics with intervals.
    Panels of the jobs that were logged: each target's pictures by job, each metric by method and against seconds, and
    the loss of each kind of target.

    Args:
        report: the report to show.
        entity: the owner of the project.
        project: the project of the jobs, of the report's run and of the view.
        report_run: the id of the report's run.
    """
    wr = _library()
    jobs = [run for run in report.runs if wandb_id(run.folder)]
    tables = [wr.WeavePanelSummaryTable(table_name="pictures", layout=wr.Layout(w=WIDE, h=2 * TALL))]
    plots: list[Any] = [
        wr.MediaBrowser(title=path.stem, media_keys=[f"plots/{path.stem}"], layout=layout)
        for path, layout in zip(report.plots, _layouts(wr, WIDE), strict=False)
    ]
    own, of_jobs = [report_run], [str(wandb_id(run.folder)) for run in jobs]
    sections: list[tuple[str, list[str], list[Any]]] = [
        ("Pictures of the methods side by side", own, tables),
        ("Metrics with their intervals", own, plots),
        ("Pictures during the run", of_jobs, list(_pictures(wr, jobs))),
        ("Metrics and losses of the jobs", of_jobs, list(_charts(wr, report, jobs)) if jobs else []),
    ]
    shown = [(wr.H2(words), _grid(wr, ids, panels)) for words, ids, panels in sections if panels]
    blocks = [block for section in shown for block in section]
    title = f"{', '.join(report.table.models)}: {', '.join(report.table.methods)}"[:128]
    return wr.Report(entity=entity, project=project, title=title, width="fluid", blocks=blocks)


def _library() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library uses deprecated parts of pydantic
        import wandb_workspaces.reports.v2 as library
    return library


def _grid(wr: Any, ids: Sequence[str], panels: Sequence[Any]) -> Any:
    """Panels of the runs with these ids, in the view's project."""
    runs = wr.Runset(name="runs", filters=f"Metric('ID') in {list(ids)}")
    return wr.PanelGrid(runsets=[runs], panels=list(panels))


def _layouts(wr: Any, width: int) -> Iterator[Any]:
    """Yield the places of panels of a width, row by row from the top."""
    row = 0
    while True:
        for x in range(0, WIDE, width):
            yield wr.Layout(x=x, y=row * TALL, w=width, h=TALL)
        row += 1


def _pictures(wr: Any, jobs: Sequence[SweepRun]) -> Iterator[Any]:
    """Yield a panel per target with its pictures by all jobs and a slider over steps."""
    labels: dict[str, str] = {}
    for run in jobs:
        for result in run.run.results:
            labels.setdefault(result["target"], labelled(result))
    for (name, label), layout in zip([*labels.items()][:TARGETS], _layouts(wr, HALF), strict=False):
        yield wr.MediaBrowser(title=label, media_keys=[f"pictures/{name}"], gallery_axis="run", layout=layout)


def _charts(wr: Any, report: Report, jobs: Sequence[SweepRun]) -> Iterator[Any]:
    """Yield panels of each metric by method and against seconds, and of the loss by kind of target."""
    places = _layouts(wr, HALF)
    by_method: Mapping[str, Any] = {"groupby": wr.Config(METHOD), "groupby_aggfunc": "mean"}
    for name in (name for name in report.table.headlines if name not in PER_RUN):
        value, words = f"metric/{name}", metric_title(name)
        yield wr.BarPlot(title=words, metrics=[value], **by_method, groupby_rangefunc="minmax", layout=next(places))
        if direction(name) is not None:
            title, x, y = f"{words} against seconds", wr.SummaryMetric("seconds"), wr.SummaryMetric(value)
            yield wr.ScatterPlot(title=title, x=x, y=y, layout=next(places))
    kinds = (loss_kind(curve.terms) for run in jobs for curve in run.run.curves.values() if curve.points)
    for kind in dict.fromkeys(kinds):
        title, y = f"loss of {kind}", [f"loss/{kind}/total"]
        yield wr.LinePlot(title=title, x="trainer/global_step", y=y, **by_method, layout=next(places))
