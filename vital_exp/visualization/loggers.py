"""Lightning's loggers of a job: created before the first batch, closed after the last one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from vital_exp.evaluation.metrics import higher_is_better
from vital_exp.models.network_names import short_name
from vital_exp.recorded_config import recorded_overrides
from vital_exp.runs.folder import RunFolder
from vital_exp.setup.run_setup import RunSetup
from vital_exp.values import is_number
from vital_exp.visualization import wandb_server

TABLE_COLUMNS = ("target", "label", "status", "model", "method", "seed", "total", "activation", "seconds", "error")
MEDIA_COLUMNS = ("picture", "references")
PICTURES_IN_TABLE = 200  # rows with pictures; a dashboard with thousands of pictures does not open
LONGEST_TAG = 64  # characters, wandb's limit
JOB_TYPE = "visualize"


def make_loggers(setup: RunSetup, folder: RunFolder | None) -> list[Logger]:
    """Return the logger that the configuration names, which writes into the run folder; none without a folder.

    A run of Weights & Biases gets the tags model, method and target, and the group of its sweep. If the server does not
    answer within seconds, the run continues offline.

    Raises:
        UsageError: Weights & Biases is online without a login.
    """
    logger = setup.logger(folder.path.resolve()) if folder else None
    if folder is None or logger is None:
        return []
    if isinstance(logger, WandbLogger):
        _start_wandb(logger, setup, folder.path)
    if not isinstance(logger, TensorBoardLogger):  # TensorBoard gets the hyperparameters with the final metrics
        logger.log_hyperparams(dict(setup.recorded))
    return [logger]


def _distinguishing_keys(setup: RunSetup, folder: RunFolder | None) -> dict[str, Any]:
    """Return the keys that distinguish jobs in a table: those on the command line, then the usual ones.

    TensorBoard at first shows five columns only.
    """
    usual = {"method": setup.method, "model": _model(setup), "seed": setup.seed, "steps": setup.steps}
    given = recorded_overrides(folder.path) if folder else []
    named = (override.lstrip("+").partition("=") for override in given)
    return {**{key: value for key, _, value in named}, **usual}


def _start_wandb(logger: WandbLogger, setup: RunSetup, folder: Path) -> None:
    started = logger._wandb_init
    started.pop("anonymous", None)  # Lightning sets this argument, and wandb warns of it
    started["name"] = started.get("name") or f"{short_name(_model(setup))} {setup.method} s{setup.seed}"
    started["job_type"] = JOB_TYPE
    started["tags"] = [*(started.get("tags") or []), *_tags(setup)]
    started["group"] = started.get("group") or sweep_name(folder)

    def begin(arguments: dict[str, Any]) -> Any:
        started.update(arguments)  # by argument: wandb reads its environment variable only once per process
        logger._offline = arguments.get("mode") == "offline"
        return logger.experiment

    print(wandb_server.where(wandb_server.start(begin, bool(setup.recorded["logger"].get("offline")))), flush=True)


def _tags(setup: RunSetup) -> list[str]:
    """Return the tags of a run: the model, the method, and the targets' layer or kind."""
    target = setup.recorded["target"]
    names = (_model(setup), setup.method, target.get("layer") or target["kind"])
    return [str(name)[:LONGEST_TAG] for name in names if name]


def _model(setup: RunSetup) -> str:
    model = setup.recorded["model"]
    return str(model["name"] or model["factory"] or "")


def sweep_name(folder: Path) -> str | None:
    """Return the name of a run folder's sweep, the last two folders of its path (date, time); None without a sweep."""
    inside = (folder.parent / "multirun.yaml").is_file()
    return "/".join(folder.resolve().parent.parts[-2:]) if inside else None


def close_loggers(
    loggers: Sequence[Logger],
    setup: RunSetup,
    folder: RunFolder | None,
    results: Mapping[str, Mapping[str, Any]],
    metrics: Mapping[str, Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
) -> None:
    """Log the final metrics and the table, and close the loggers.

    Without this, wandb would log all jobs of a sweep as one run.

    Args:
        loggers: from :func:`make_loggers`.
        setup: of the job.
        folder: the run folder.
        results: lines of results.jsonl by target.
        metrics: as in metrics.json.
        rows: as in metrics.csv.
    """
    final = {f"metric/{name}": entry["value"] for name, entry in metrics.items() if is_number(entry.get("value"))}
    for logger in loggers:
        if final:
            logger.log_metrics(final, max(0, _last_step(setup, results)))
        if isinstance(logger, TensorBoardLogger) and final:
            logger.log_hyperparams(_distinguishing_keys(setup, folder), metrics=final)
        if isinstance(logger, WandbLogger) and folder is not None:
            import wandb

            seconds = [result["seconds"] for result in results.values() if is_number(result.get("seconds"))]
            if seconds:
                logger.experiment.summary["seconds"] = sum(seconds) / len(seconds)
            summarise(logger.experiment, metrics)
            columns, data = _table(setup, folder.path, results, rows)
            logger.log_table("results", columns=columns, data=data)
            logger.finalize("success")
            wandb.finish()
        else:
            logger.finalize("success")


def summarise(run: Any, metrics: Mapping[str, Mapping[str, Any]]) -> None:
    """Log to a run of Weights & Biases each metric's interval and n, and whether higher values are better."""
    for name, entry in metrics.items():
        better = higher_is_better(name)
        if better is not None and is_number(entry.get("value")):
            run.define_metric(f"metric/{name}", summary="max" if better else "min")
        for part in ("low", "high", "n"):
            if is_number(entry.get(part)):
                run.summary[f"metric/{name}/{part}"] = entry[part]


def _last_step(setup: RunSetup, results: Mapping[str, Mapping[str, Any]]) -> int:
    """Return a step that no batch has passed: there are at most as many batches as pictures."""
    return setup.steps * len(results) - 1


def _table(
    setup: RunSetup, folder: Path, results: Mapping[str, Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]
) -> tuple[list[str], list[list[Any]]]:
    """Return columns and rows of a table: every target with picture, references, metrics, model and method."""
    import wandb

    scores = {row["target"]: row for row in rows}
    measured = [key for key in dict.fromkeys(key for row in rows for key in row) if key not in TABLE_COLUMNS]
    known = {"model": _model(setup), "method": setup.method}

    def image(path: Path, place: int) -> Any:
        return wandb.Image(str(path)) if place < PICTURES_IN_TABLE and path.is_file() else None

    data = []
    for place, (name, result) in enumerate(results.items()):
        total = (result["loss"] or {}).get("total")
        cells = {**result, **known, "total": total, **scores.get(name, {})}
        media = [image(folder / "images" / f"{name}.png", place), image(folder / "references" / f"{name}.jpg", place)]
        data.append([*(cells.get(c) for c in TABLE_COLUMNS), *media, *(cells.get(c) for c in measured)])
    return [*TABLE_COLUMNS, *MEDIA_COLUMNS, *measured], data
