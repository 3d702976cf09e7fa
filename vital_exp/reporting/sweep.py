"""The run folders of a sweep, each with its model, method, seed and content."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vital_exp.config import picture_config
from vital_exp.errors import UsageError
from vital_exp.recorded_config import recorded_config
from vital_exp.reporting.gallery import Run, read_run
from vital_exp.run_folders import find_runs

__all__ = ["SweepRun", "find_runs", "read_sweep"]

POOLED_KEYS = ("seed", "target")  # configuration keys in which runs that are pooled may differ
CURVE_POINTS = 80  # of a loss curve; few, since a sweep has thousands of curves
CLASS = "_target_"  # the configuration key with the Python class of a part


@dataclass(frozen=True)
class SweepRun:
    """One run folder of a sweep.

    Attributes:
        folder: the run folder.
        model: the network's name.
        method: the preset's name, followed by the keys in which runs of one preset differ beside seed and targets.
        seed: the seed of its pictures.
        run: the content of the folder.
        config: its composed configuration by dotted key.
    """

    folder: Path
    model: str
    method: str
    seed: int
    run: Run
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def values(self) -> Mapping[str, Mapping[str, object]]:
        """The columns of metrics.csv by target."""
        return self.run.scores


def read_sweep(folders: Sequence[Path], key: str = "runs") -> list[SweepRun]:
    """Return the runs in folders.

    Runs of one model and preset that differ in more than seed and targets get the differing keys in the method's name.

    Raises:
        UsageError: a folder has no configuration, or no run has a finished picture.
    """
    runs = [_read(folder, key) for folder in folders]
    if not any(run.run.done for run in runs):
        raise UsageError(key, folders[0], "no finished picture in any of the runs there")
    return list(_distinct(runs))


def _read(folder: Path, key: str) -> SweepRun:
    flat = picture_config(recorded_config(folder, key))
    model = str(flat.get("model.name") or flat.get("model.factory") or "unnamed")
    seed = int(flat.get("seed") or 0)
    return SweepRun(
        folder, model, str(flat.get("method.name") or "unnamed"), seed, read_run(folder, CURVE_POINTS), flat
    )


def _distinct(runs: Sequence[SweepRun]) -> Iterator[SweepRun]:
    for run in runs:
        peers = [peer for peer in runs if (peer.model, peer.method) == (run.model, run.method)]
        named = ", ".join(_named(run.config, _differing(peers)))
        yield replace(run, method=f"{run.method} ({named})") if named else run


def _differing(runs: Sequence[SweepRun]) -> list[str]:
    """The keys in which runs differ; for a part whose Python class differs, only the class."""
    keys = dict.fromkeys(key for run in runs for key in run.config if key.split(".")[0] not in POOLED_KEYS)
    found = [key for key in keys if len({repr(run.config.get(key)) for run in runs}) > 1]
    parts = [key.removesuffix(CLASS) for key in found if key.endswith(f".{CLASS}")]
    return [key for key in found if key.endswith(f".{CLASS}") or not key.startswith(tuple(parts))]


def _named(config: Mapping[str, Any], keys: Sequence[str]) -> Iterator[str]:
    for key in keys:
        if key.endswith(f".{CLASS}"):
            yield f"{key.split('.')[-2]}={str(config.get(key)).rpartition('.')[2]}"
        elif key in config:
            yield f"{key}={config[key]}"
