"""A folder for each job: jobs that start in the same second get different folders. Imports no torch."""

from __future__ import annotations

from contextlib import suppress
from errno import EEXIST
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

NAMES = 1000  # names to try; more jobs do not start in one second
SECOND = "%S"  # in the pattern of a folder that is named by the time, so that no later command continues in it


class OwnFolder(Callback):
    """Creates the folder of a run or sweep that is named by the time, under a name that is free."""

    def on_run_start(self, config: DictConfig, **_more: object) -> None:
        """Choose the folder of a run."""
        _choose(config, "run")

    def on_multirun_start(self, config: DictConfig, **_more: object) -> None:
        """Choose the folder of a sweep, and pass it on to the jobs, whose configurations are composed anew."""
        if (chosen := _choose(config, "sweep")) is not None:
            with read_write(config.hydra), open_dict(config.hydra):
                config.hydra.overrides.hydra.append(f"hydra.sweep.dir={chosen}")


def _choose(config: DictConfig, kind: str) -> str | None:
    named: Any = OmegaConf.to_container(config.hydra[kind], resolve=False)
    if SECOND not in str(named["dir"]):
        return None
    try:
        chosen = str(free_folder(Path(config.hydra[kind].dir)))
    except OSError:  # Hydra reports a place where no folder can be created
        return None
    with read_write(config.hydra), open_dict(config.hydra):
        config.hydra[kind].dir = chosen
    return chosen


def free_folder(wanted: Path) -> Path:
    """Create a new folder, ``wanted`` or else ``wanted-2``, ``wanted-3``, ..., and return it.

    No two processes get the same folder, not even on different machines that share the disk.

    Raises:
        OSError: no folder can be created there.
    """
    for number in range(1, NAMES + 1):
        folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        # Meanwhile another job that made nothing may remove the empty parent.
        with suppress(FileExistsError, FileNotFoundError):
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir()
            return folder
    raise FileExistsError(EEXIST, "all its names are taken", str(wanted))
