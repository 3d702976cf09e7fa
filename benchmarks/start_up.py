"""Seconds from the start of the process to the help text, and to the first step of the demo; with their goals.

    python benchmarks/start_up.py --runs 5

The first run is not counted: it reads the libraries from disk, and draws and keeps the references. ``--check`` ends
with 1 if a goal is missed.
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

GOALS = {"--help": 2.0, "first step": 6.0}  # seconds
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
HELP = "import sys; from vital_exp.commands.visualize import main; main(['--help'])"


def help_seconds(_folder: Path) -> float:
    """Return the seconds that the help text takes."""
    started = time.time()
    _said([sys.executable, "-c", HELP], "Try:")
    return time.time() - started


def step_seconds(folder: Path) -> float:
    """Return the seconds until the demo's first step, with a cache of its own that the first run fills."""
    arguments = [f"hydra.run.dir={tempfile.mkdtemp(dir=folder)}", f"cache_dir={folder / 'cache'}"]
    started = time.time()
    return float(_said([sys.executable, "-c", DEMO, *arguments], "began ").split()[0]) - started


def _said(command: Sequence[str], word: str) -> str:
    """Run a command and return what it prints after a word."""
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if word not in found.stdout:
        raise RuntimeError(f"it did not say {word!r}:\n{found.stdout}{found.stderr}")
    return found.stdout.split(word)[1]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table; return 1 if a goal is missed and that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--check", action="store_true", help="end with 1 if a goal is missed")
    options = parser.parse_args(arguments)
    missed = False
    print("| | seconds, median | least | most | goal |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, measure in (("--help", help_seconds), ("first step", step_seconds)):
            measure(Path(folder))
            times = [measure(Path(folder)) for _ in range(options.runs)]
            middle = statistics.median(times)
            print(f"| {name} | {middle:.2f} | {min(times):.2f} | {max(times):.2f} | {GOALS[name]:g} |")
            missed = missed or middle > GOALS[name]
    return int(missed and options.check)


if __name__ == "__main__":
    raise SystemExit(main())
