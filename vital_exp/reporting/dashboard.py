"""A report as one run of Weights & Biases: the table, all methods' pictures side by side, and the plots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vital_exp.reporting import saved_view
from vital_exp.reporting.formats import COLUMNS, COMPARISON_COLUMNS, rows_of
from vital_exp.reporting.report import Report
from vital_exp.visualization import wandb_server

ROWS_WITH_PICTURES = 200  # dashboards with thousands of pictures do not open
JOB_TYPE = "report"
PROJECT = "vital_exp"  # the project of a report whose jobs were not logged


def log_report(report: Report, project: str | None, offline: bool) -> Iterator[str]:
    """Log a report as one run and save a view of report and jobs; yield lines that say where they are.

    The run has the tables ``comparison`` (all cells), ``pairs`` (all pairs of methods) and ``pictures`` (a row per
    network, target and seed, with the references and a column per method), the plots, and in its summary each pooled
    value.

    Args:
        report: the report to log.
        project: the run's project; None: the project of the jobs, or else vital_exp.
        offline: whether to send nothing and only write the run to disk.

    Raises:
        UsageError: online, without a login.
    """
    import wandb

    tags = [*report.table.models, *report.table.methods]
    described = {"runs": [str(run.folder) for run in report.runs], "models": list(report.table.models)}
    arguments: dict[str, Any] = {
        **{"project": project or saved_view.project_of(report.runs) or PROJECT, "job_type": JOB_TYPE},
        "name": f"report {report.folder.resolve().parent.name}",
        **{"dir": str(report.folder.resolve()), "tags": [tag[:64] for tag in tags], "config": described},
    }
    run = wandb_server.start(lambda more: wandb.init(**arguments, **more), offline, "wandb")
    run.log(
        {
            "comparison": _table(COLUMNS, list(rows_of(report.table))),
            "pairs": _table(COMPARISON_COLUMNS, report.table.comparisons),
            "pictures": _pictures(report),
            **{f"plots/{path.stem}": wandb.Html(path.read_text(encoding="utf-8")) for path in report.plots},
        }
    )
    for (model, method, metric), cell in report.table.cells.items():
        if cell.value is not None:
            run.summary[f"{model}/{method}/{metric}"] = cell.value
    yield wandb_server.where(run)
    run.finish()
    if (rows := _picture_rows(report)) and len(rows) > ROWS_WITH_PICTURES:
        yield f"wandb: the table of pictures has {ROWS_WITH_PICTURES} of {len(rows)} rows; report.html has all"
    yield saved_view.save(report, run)


def _table(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> Any:
    import wandb

    return wandb.Table(columns=list(columns), data=[[_cell(row, column) for column in columns] for row in rows])


def _cell(row: Mapping[str, Any], column: str) -> Any:
    value = row.get(column)
    return str(value) if column == "seed" else value  # a column has one type, and a seed may be "all"


def _picture_rows(report: Report) -> dict[tuple[str, str, int], dict[str, Any]]:
    """By network, target and seed: the label, the file of the references, and by method the file of the picture."""
    rows: dict[tuple[str, str, int], dict[str, Any]] = {}
    for run in report.runs:
        for result in run.run.done:
            name = result["target"]
            row = rows.setdefault((run.model, name, run.seed), {"label": str(result.get("label") or name)})
            row.setdefault("references", run.folder / "references" / f"{name}.jpg")
            row[run.method] = run.folder / "images" / f"{name}.png"
    return rows


def _pictures(report: Report) -> Any:
    """A table with a row per network, target and seed: the references, and each method's picture."""
    import wandb

    methods = report.table.methods
    table = wandb.Table(columns=["model", "target", "label", "seed", "references", *methods])
    for (model, target, seed), row in list(_picture_rows(report).items())[:ROWS_WITH_PICTURES]:
        images = [row.get(column) for column in ("references", *methods)]
        media = [wandb.Image(str(path)) if path is not None and path.is_file() else None for path in images]
        table.add_data(model, target, row["label"], seed, *media)
    return table
