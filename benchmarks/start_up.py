"""Seconds from the start of the process to the help text and to the first step of the demo, with their goals.

The seconds of importing torch, Lightning and timm, which all runs do, stand beside them.

    python benchmarks/start_up.py --runs 5

The first run is not counted, since it reads the libraries from disk, and draws and keeps the references. ``--check``
exits with 1 if a goal is missed.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

GOALS = {"help text": 2.0, "first step": 6.0}  # seconds
# The demo, but that the process ends where its first step would begin.
DEMO = """
import sys
import time
from vital_exp.commands.visualize import main
from vital_exp.engine import module

class Began(BaseException):
    pass

def begin(*_):
    raise Began

module.VisualizationModule.training_step = begin
try:
    main(sys.argv[1:])
except Began:
    print("began", time.time())
"""
LIBRARIES = "import torch, lightning.pytorch, timm, time; print('imported', time.time())"
HELP = "import sys; from vital_exp.commands.visualize import main; main(['--help'])"


def help_seconds(_folder: Path) -> float:
    """Return the seconds until the help text is printed."""
    started = time.time()
    _said([sys.executable, "-c", HELP], "Try:")
    return time.time() - started


def library_seconds(_folder: Path) -> float:
    """Return the seconds that importing the libraries takes."""
    started = time.time()
    return float(_said([sys.executable, "-c", LIBRARIES], "imported ")) - started


def step_seconds(folder: Path) -> float:
    """Return the seconds until the demo's first step, with a separate cache, which the first run fills."""
    arguments = [f"hydra.run.dir={tempfile.mkdtemp(dir=folder)}", f"cache_dir={folder / 'cache'}"]
    started = time.time()
    return float(_said([sys.executable, "-c", DEMO, *arguments], "began ").split()[0]) - started


def _said(command: Sequence[str], word: str) -> str:
    """Run a command and return the text that it prints behind a word."""
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if word not in found.stdout:
        raise RuntimeError(f"it did not say {word!r}:\n{found.stdout}{found.stderr}")
    return found.stdout.split(word)[1]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table; with ``--check``, return 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--check", action="store_true", help="end with 1 if a goal is missed")
    options = parser.parse_args(arguments)
    measures = {"help text": help_seconds, "libraries": library_seconds, "first step": step_seconds}
    times: dict[str, list[float]] = {name: [] for name in measures}
    with tempfile.TemporaryDirectory() as folder:
        for run in range(options.runs + 1):
            for name, measure in measures.items():  # in turn: the machine's speed changes
                taken = measure(Path(folder))
                times[name] += [taken] if run else []
    print("| | seconds, median | least | most | goal |\n|---|---|---|---|---|")
    for name, seconds in times.items():
        shown = " | ".join(f"{taken:.2f}" for taken in (statistics.median(seconds), min(seconds), max(seconds)))
        print(f"| {name} | {shown} | {GOALS.get(name, '-')} |")
    missed = any(statistics.median(times[name]) > goal for name, goal in GOALS.items())
    return int(missed and options.check)


if __name__ == "__main__":
    raise SystemExit(main())
