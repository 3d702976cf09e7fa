"""Checkpoints of unfinished batches: for each batch the latest, and the previous one in case the latest is damaged."""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from vital_exp.whole_files import whole_file, whole_path

# Errors that torch.load raises for a damaged checkpoint of this package.
DAMAGE = (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError)


class CheckpointWarning(UserWarning):
    """A checkpoint cannot be read."""


class Checkpoints:
    """The checkpoints of a run's unfinished batches, each named after the batch's first target.

    Args:
        folder: the folder of the checkpoints.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def exist(self) -> bool:
        """Return whether there is any checkpoint."""
        return any(self.folder.glob("*.ckpt"))

    def batches(self) -> list[list[str]]:
        """Return the names of the targets of each unfinished batch."""
        found = []
        for path in sorted(self.folder.glob("*.json")):
            names = _names(path)
            if names and (self._latest(names).is_file() or self._previous(names).is_file()):
                found.append(names)
        return found

    def begin(self, names: Sequence[str]) -> Path | None:
        """Return the checkpoint from which a batch resumes; None if there is none of exactly these targets.

        Emits a CheckpointWarning for each checkpoint that cannot be read. Without a usable checkpoint, the batch's old
        files are removed and its targets recorded.
        """
        marker = self._marker(names)
        if _names(marker) == list(names):
            for path in (self._latest(names), self._previous(names)):
                if path.is_file() and _readable(path):
                    return path
        self.drop(names)
        with whole_file(marker) as file:
            json.dump(list(names), file)
        return None

    def save(self, names: Sequence[str], write: Callable[[Path], None]) -> None:
        """Write a checkpoint atomically with ``write``, and keep the one before as the previous checkpoint."""
        latest = self._latest(names)
        with whole_path(latest) as temporary:
            write(temporary)
            if latest.is_file():
                latest.replace(self._previous(names))

    def drop(self, names: Sequence[str]) -> None:
        """Remove the checkpoints of a finished batch."""
        for path in (self._latest(names), self._previous(names), self._marker(names)):
            path.unlink(missing_ok=True)

    def _latest(self, names: Sequence[str]) -> Path:
        return self.folder / f"{names[0]}.ckpt"

    def _previous(self, names: Sequence[str]) -> Path:
        return self.folder / f"{names[0]}.previous.ckpt"

    def _marker(self, names: Sequence[str]) -> Path:
        return self.folder / f"{names[0]}.json"


def _names(marker: Path) -> list[str]:
    """Return the names of a batch's targets; an empty list if the marker file is missing or damaged."""
    try:
        names = json.loads(marker.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    plain = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return names if plain and names and names[0] == marker.stem else []


def _readable(path: Path) -> bool:
    try:
        torch.load(path, weights_only=True, map_location="cpu")
    except DAMAGE as error:
        reason = (str(error) or type(error).__name__).split("\n")[0]
        message = f"checkpoint {path} is damaged ({reason[:80]}): the one before it is used, or the batch begins again"
        warnings.warn(message, CheckpointWarning, stacklevel=3)
        return False
    return True
