"""A report to send to others: a folder and a zip of it, with relative links and without paths of this machine."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import yaml

from vital_exp.errors import UsageError
from vital_exp.recorded_config import MISTAKE_FILE
from vital_exp.reporting.gallery import write_gallery
from vital_exp.reporting.report import PAGE, write_report
from vital_exp.run_folders import RESULTS, find_runs

FOLDER = "shared"  # beside the report
RUNS = "runs"  # copies of the runs, in the shared folder
CONFIG = ".hydra/config.yaml"
TEXTS = (RESULTS, "metrics.json", "metrics.csv", "history.csv", "provenance.json", MISTAKE_FILE, CONFIG)
COPIED = ("images", "references")
KEPT = ("images", "report.html")  # left of a run's copy when its page is written
# A path from the root, from a home, of Windows, or out of the working folder; not the slashes of URLs and HTML tags.
END = r"[^\s'\"<>|,;:(){}\[\]]*"
PATH = re.compile(
    rf"(?<![\w./<:~-])(?:file:/+|~\w*/|/|(?:\.\./)+)(?=\w|\.\w){END}|(?<=:)/(?=\w){END}|(?<!\w)[A-Za-z]:[\\/]{END}|file:/+{END}"
)


class PathNames:
    """Names in place of paths: the last part of a path, with a number where two paths have the same last part."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def __call__(self, path: str) -> str:
        """Return the name of a path, the same at each call."""
        whole = path.rstrip("/\\")
        if whole not in self._known:
            name = PureWindowsPath(whole).name if "\\" in whole else PurePosixPath(whole).name
            same = sum(known.partition(" (")[0] == name for known in self._known.values())
            self._known[whole] = f"{name} ({same + 1})" if same else name
        return self._known[whole]

    def in_text(self, text: str) -> str:
        """Return a text with names in place of the paths in it."""
        return PATH.sub(lambda found: self(found[0]), text)

    def in_value(self, value: Any) -> Any:
        """Return a value of JSON or YAML with names in place of paths; a string that is one path may have spaces."""
        if isinstance(value, dict):
            return {key: self.in_value(one) for key, one in value.items()}
        if isinstance(value, list):
            return [self.in_value(one) for one in value]
        if not isinstance(value, str):
            return value
        found = PATH.match(value)
        # A string that begins with a path is the path as a whole, unless it holds the punctuation of a sentence.
        whole = found is not None and found.start() == 0 and "\n" not in value and not re.search(r"[:;,=] ", value)
        return self(value) if whole else self.in_text(value)


def write_shared(
    runs: Sequence[str | Path],
    out: Path,
    metrics: Sequence[str] | str | None = None,
    title: str | None = None,
    progress: bool = False,
) -> Path:
    """Write ``out/shared``, the report with copies of the runs' pages and pictures, and ``out/shared.zip``.

    Args:
        runs: folders that hold run folders, at any depth.
        out: the report's folder.
        metrics, title, progress: see :func:`vital_exp.reporting.report.write_report`.

    Returns:
        The path of the zip.

    Raises:
        UsageError: see :func:`vital_exp.reporting.report.write_report`; or ``out/shared`` exists and is no report.
    """
    found, names, place = find_runs(runs), PathNames(), out / FOLDER
    if place.exists() and not (place / PAGE).is_file():
        raise UsageError("share", place, "this folder exists and is no report; move it or choose another out=")
    with tempfile.TemporaryDirectory() as temporary:
        made = Path(temporary).resolve() / FOLDER
        for number, run in enumerate(found):
            _copy(run, made / RUNS / f"{number:03d}-{run.name}", names)
        write_report([made / RUNS], made, metrics, title, progress)
        for run in (made / RUNS).iterdir():
            _strip(run)
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(made, place)
    shutil.make_archive(str(place), "zip", root_dir=out, base_dir=FOLDER)
    return out / f"{FOLDER}.zip"


def _copy(run: Path, place: Path, names: PathNames) -> None:
    """Copy the files that a run's page shows, with names in place of paths, and write the page."""
    (place / CONFIG).parent.mkdir(parents=True)
    for name in COPIED:
        if (run / name).is_dir():
            shutil.copytree(run / name, place / name)
    for name in TEXTS:
        if (run / name).is_file():
            text = (run / name).read_text(encoding="utf-8", errors="replace")
            (place / name).write_text(_named(name, text, names), encoding="utf-8")
    write_gallery(place)


def _named(name: str, text: str, names: PathNames) -> str:
    """The content of a file with names in place of paths; a file that cannot be parsed is treated as text."""
    try:
        if name.endswith(".yaml"):
            return str(yaml.safe_dump(names.in_value(yaml.safe_load(text)), sort_keys=False, allow_unicode=True))
        if name.endswith(".json"):
            return json.dumps(names.in_value(json.loads(text)), indent=2, ensure_ascii=False)
        if name.endswith(".jsonl"):
            lines = [json.dumps(names.in_value(json.loads(line))) for line in text.splitlines() if line.strip()]
            return "".join(f"{line}\n" for line in lines)
    except (ValueError, RecursionError, yaml.YAMLError):
        pass
    return names.in_text(text)


def _strip(run: Path) -> None:
    """Remove all of a run's copy but its page and its pictures."""
    for one in run.iterdir():
        if one.name not in KEPT:
            shutil.rmtree(one) if one.is_dir() else one.unlink()
