"""Find run folders at or below a folder, and read the lines of their results. Imports no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vital_exp.errors import UsageError

RESULTS = "results.jsonl"
WANDB_FOLDER = re.compile(r"(?:offline-)?run-\d{8}_\d{6}-(\w+)")  # one start's folder, in wandb/ of a run folder


def is_run(folder: Path) -> bool:
    """Whether a folder is a run folder of vital-visualize."""
    return (folder / RESULTS).is_file()


def is_sweep(folder: Path) -> bool:
    """Whether a folder is not a run folder, but holds run folders at any depth."""
    return not is_run(folder) and next(folder.rglob(RESULTS), None) is not None


def wandb_id(folder: Path) -> str | None:
    """Return the Weights & Biases id of a run's last start; None if the run was not logged there."""
    found = [WANDB_FOLDER.fullmatch(path.name) for path in sorted((folder / "wandb").glob("*run-*"))]
    return next((match[1] for match in reversed(found) if match), None)


def read_results(
    folder: Path, is_result: Callable[[object], bool] | None = None
) -> tuple[list[dict[str, Any]], int, int]:
    """Return each target's last line of results.jsonl, in the order of the targets' first lines.

    Args:
        folder: a run folder.
        is_result: whether a parsed line is a valid result; None: a line with the key ``target`` is valid.

    Returns:
        The lines as dicts; the number of invalid or incomplete lines; the number of lines that are not blank.

    Raises:
        OSError: the file does not exist or cannot be read.
    """
    counts, found, others, lines = is_result or _names_target, {}, 0, 0
    with (folder / RESULTS).open(encoding="utf-8", errors="replace", newline="\n") as file:
        for line in file:
            if not line.strip():
                continue
            lines += 1
            try:
                result: Any = json.loads(line)
            except (ValueError, RecursionError):
                result = {}
            if counts(result):
                found[str(result["target"])] = {**result, "target": str(result["target"])}
            else:
                others += 1
    return list(found.values()), others, lines


def _names_target(line: object) -> bool:
    return isinstance(line, dict) and "target" in line


def find_runs(places: Sequence[str | Path], key: str = "runs") -> list[Path]:
    """Return the run folders at or below each of some folders, sorted by number below each.

    Raises:
        UsageError: a folder does not exist, or holds no run.
    """
    found: list[Path] = []
    for place in places:
        root = Path(place).expanduser()
        if not root.is_dir():
            raise UsageError(key, place, "no such folder; a folder of runs, multirun/<date>/<time>")
        here = sorted((path.parent for path in root.rglob(RESULTS)), key=by_number)
        if not here:
            raise UsageError(key, place, f"no run there: no {RESULTS} at or below it")
        found += here
    return list(dict.fromkeys(path.resolve() for path in found))


def by_number(path: Path) -> list[tuple[bool, int, str]]:
    """Return a sort key that compares the numbers in a path as numbers: 2 before 10.

    Examples:
        >>> from pathlib import Path
        >>> from vital_exp.run_folders import by_number
        >>> [path.name for path in sorted([Path("10"), Path("9"), Path("run-2")], key=by_number)]
        ['9', '10', 'run-2']
    """
    parts = re.split(r"(\d+)", str(path))
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]
