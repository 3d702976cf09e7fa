"""The scores of a run as a W&B run of their own, because the job's W&B run has ended when they are computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vital_exp.evaluation.table import Evaluation
from vital_exp.models.network_names import short_name
from vital_exp.reporting.dashboard import PROJECT, ROWS_WITH_PICTURES
from vital_exp.reporting.saved_view import project_of
from vital_exp.reporting.sweep import read_sweep
from vital_exp.values import is_number
from vital_exp.visualization import wandb_server
from vital_exp.visualization.loggers import summarise, sweep_name

JOB_TYPE = "evaluate"
FOLDER = "evaluate"  # W&B's folder inside the run folder, which holds the files of the job's W&B run itself


def log_scores(folder: Path, found: Evaluation, project: str | None, offline: bool) -> str:
    """Log the scores of one run folder as a W&B run; return a line that says where it is.

    The summary has each metric with its n and interval; the table ``results`` has each target with its picture and its
    values. Name and group are those of the job that made the pictures.

    Args:
        folder: the run folder.
        found: its scores.
        project: the project; None: that of the job, or else vital_exp.
        offline: whether to send nothing and only write the run to disk.

    Raises:
        UsageError: online, without a login.
    """
    import wandb

    (one,) = read_sweep([folder], "run")
    place = folder.resolve() / FOLDER
    place.mkdir(exist_ok=True)
    known = {"model": {"name": one.model}, "method": {"name": one.method}, "seed": one.seed, "run": str(folder)}
    arguments: dict[str, Any] = {
        **{"project": project or project_of([one]) or PROJECT, "job_type": JOB_TYPE, "group": sweep_name(folder)},
        **{"name": f"{short_name(one.model)} {one.method} s{one.seed}", "dir": str(place), "config": known},
    }
    run = wandb_server.start(lambda more: wandb.init(**arguments, **more), offline, "wandb")
    values = {name: entry["value"] for name, entry in found.metrics.items() if is_number(entry["value"])}
    run.log({**{f"metric/{name}": value for name, value in values.items()}, "results": _table(folder, found)})
    summarise(run, found.metrics)
    line = wandb_server.where(run)
    run.finish()
    return line


def _table(folder: Path, found: Evaluation) -> Any:
    """A table with a row per target: its picture and its values."""
    import wandb

    columns = list(dict.fromkeys(column for row in found.rows for column in row))
    table = wandb.Table(columns=["picture", *columns])
    for place, row in enumerate(found.rows):
        path = folder / "images" / f"{row['target']}.png"
        picture = wandb.Image(str(path)) if place < ROWS_WITH_PICTURES and path.is_file() else None
        table.add_data(picture, *(row.get(column) for column in columns))
    return table
