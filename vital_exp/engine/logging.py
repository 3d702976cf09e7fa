"""Lightning's loggers for a whole job: made before the first batch, ended after the last."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger
from omegaconf import DictConfig

from vital_exp.config import build, plain
from vital_exp.engine.run_folder import RunFolder
from vital_exp.errors import UsageError

WANDB_MODE = "WANDB_MODE"  # the environment variable
TABLE_COLUMNS = ("target", "label", "status", "total", "activation", "seconds", "error")


def make_loggers(config: DictConfig, folder: RunFolder | None) -> list[Logger]:
    """Return the logger of the configuration, writing into the run folder; none without a folder.

    Raises:
        UsageError: Weights & Biases online without a login.
    """
    if folder is None or not config.logger.get("_target_"):
        return []
    logger: Logger = build(config.logger, save_dir=str(folder.path))
    if isinstance(logger, WandbLogger):
        _start_wandb(logger, bool(config.logger.get("offline")))
    logger.log_hyperparams(plain(config))
    return [logger]


def _start_wandb(logger: WandbLogger, offline: bool) -> None:
    import wandb

    # Asked first: wandb.init would prompt on a terminal.
    if not offline and os.environ.get(WANDB_MODE, "online") in ("online", "shared") and not _logged_in():
        raise UsageError("logger", "wandb", "no login: run `wandb login`, set WANDB_API_KEY, or logger.offline=true")
    logger._wandb_init.pop("anonymous", None)  # Lightning hands over what wandb warns of
    if offline:
        logger._wandb_init["mode"] = "offline"  # wandb reads the variable that Lightning sets once per process only
    try:
        with _unchanged(WANDB_MODE):  # Lightning sets it, and a later job of a sweep may be online
            _ = logger.experiment
    except wandb.errors.Error as error:  # a server that refuses, or none
        reason = str(error).strip().split("\n")[0]
        raise UsageError("logger", "wandb", f"{reason}; logger.offline=true needs no server") from error


def _logged_in() -> bool:
    import wandb

    if "prompt" in inspect.signature(wandb.login).parameters:
        return bool(wandb.login(prompt=False, verify=False))
    return bool(wandb.api.api_key)  # versions before 0.30


@contextmanager
def _unchanged(variable: str) -> Iterator[None]:
    """Put an environment variable back afterwards."""
    before = os.environ.get(variable)
    try:
        yield
    finally:
        os.environ.pop(variable, None)
        if before is not None:
            os.environ[variable] = before


def close_loggers(loggers: Sequence[Logger], results: Mapping[str, Mapping[str, Any]]) -> None:
    """Send the final table and end the run: without it, the jobs of a sweep become one run."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            import wandb

            rows = [[_cell(result, column) for column in TABLE_COLUMNS] for result in results.values()]
            logger.log_table("results", columns=list(TABLE_COLUMNS), data=rows)
            logger.finalize("success")
            wandb.finish()
        else:
            logger.finalize("success")


def _cell(result: Mapping[str, Any], column: str) -> Any:
    return (result["loss"] or {}).get("total") if column == "total" else result[column]
