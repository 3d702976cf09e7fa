"""Lightning's loggers for a whole job: made before the first batch, ended after the last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger
from omegaconf import DictConfig

from vital_exp.config import build, plain
from vital_exp.engine.run_folder import RunFolder
from vital_exp.errors import UsageError

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
        _start_wandb(logger)
    logger.log_hyperparams(plain(config))
    return [logger]


def _start_wandb(logger: WandbLogger) -> None:
    import wandb

    try:
        _ = logger.experiment
    except wandb.errors.Error as error:  # no login and no terminal to ask on, or a server that refuses
        reason = str(error).strip().split("\n")[0]
        raise UsageError("logger", "wandb", f"{reason}: run `wandb login`, or set logger.offline=true") from error


def close_loggers(loggers: Sequence[Logger], results: Mapping[str, Mapping[str, Any]]) -> None:
    """Send the final table and end the run: without it, the jobs of a sweep become one run."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            import wandb

            rows = [[_cell(result, column) for column in TABLE_COLUMNS] for result in results.values()]
            logger.log_table("results", columns=list(TABLE_COLUMNS), data=rows)
            logger.finalize("success")
            wandb.finish(quiet=True)
        else:
            logger.finalize("success")


def _cell(result: Mapping[str, Any], column: str) -> Any:
    return (result["loss"] or {}).get("total") if column == "total" else result[column]
