"""A folder for every job: two that start in the same second take different ones. Imports no torch."""

from __future__ import annotations

from contextlib import suppress
from errno import EEXIST
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

NAMES = 1000  # that are tried: more jobs do not start in one second
SECOND = "%S"  # in the name of a folder: it is called by the time, so nobody goes on in it by that name


class OwnFolder(Callback):
    """Makes the folder of a run, or of a sweep, that is named by the time, under a name that is free."""

    def on_run_start(self, config: DictConfig, **_more: object) -> None:
        """Choose the folder of a run."""
        _choose(config, "run")

    def on_multirun_start(self, config: DictConfig, **_more: object) -> None:
        """Choose the folder of a sweep; its jobs are composed anew, so they are told by an override."""
        if (chosen := _choose(config, "sweep")) is not None:
            with read_write(config.hydra), open_dict(config.hydra):
                config.hydra.overrides.hydra.append(f"hydra.sweep.dir={chosen}")


def _choose(config: DictConfig, kind: str) -> str | None:
    named: Any = OmegaConf.to_container(config.hydra[kind], resolve=False)
    if SECOND not in str(named["dir"]):
        return None
    try:
        chosen = str(free_folder(Path(config.hydra[kind].dir)))
    except OSError:  # Hydra tells of a place that nothing can be made in
        return None
    with read_write(config.hydra), open_dict(config.hydra):
        config.hydra[kind].dir = chosen
    return chosen


def free_folder(wanted: Path) -> Path:
    """Make a folder that is not there yet, ``wanted`` or ``wanted-2``, ``wanted-3``, ..., and return it.

    A folder is made by one process alone, also of several machines that share the disk.

    Raises:
        OSError: none can be made there.
    """
    for number in range(1, NAMES + 1):
        folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        # A job beside this one, which made nothing, may remove the empty parent in between.
        with suppress(FileExistsError, FileNotFoundError):
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir()
            return folder
    raise FileExistsError(EEXIST, "all its names are taken", str(wanted))
