"""Which run folders there are at or below a place. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from vital_exp.errors import UsageError

RESULTS = "results.jsonl"


def is_run(folder: Path) -> bool:
    """Whether a folder is a run folder of vital-visualize."""
    return (folder / RESULTS).is_file()


def is_sweep(folder: Path) -> bool:
    """Whether a folder is no run folder, and holds some at any depth."""
    return not is_run(folder) and next(folder.rglob(RESULTS), None) is not None


def find_runs(places: Sequence[str | Path], key: str = "runs") -> list[Path]:
    """Return the run folders at or below some places, in the order of their numbers.

    Raises:
        UsageError: a place that does not exist, or holds no run.
    """
    found: list[Path] = []
    for place in places:
        root = Path(place).expanduser()
        if not root.is_dir():
            raise UsageError(key, place, "no such folder; a folder of runs, multirun/<date>/<time>")
        here = sorted((path.parent for path in root.rglob(RESULTS)), key=_natural)
        if not here:
            raise UsageError(key, place, f"no run there: no {RESULTS} at or below it")
        found += here
    return list(dict.fromkeys(path.resolve() for path in found))


def _natural(path: Path) -> list[tuple[bool, int, str]]:
    """Sort numbers in names as numbers: 2 before 10."""
    parts = re.split(r"(\d+)", str(path))
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]
