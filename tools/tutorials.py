"""Run the notebooks of the tutorials, each in an empty folder: ``python tools/tutorials.py [name ...]``.

A line for each gives its time: elapsed seconds, and CPU seconds with those of its commands. The script writes nothing
into the checkout. It needs nbclient and ipykernel, which the extra ``dev`` installs.
"""

from __future__ import annotations

import os
import resource
import sys
import sysconfig
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import nbclient
import nbformat

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "tutorials"
LONGEST = 1800  # seconds of a cell


def processor_seconds() -> float:
    """Return the CPU seconds of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run(name: str) -> str:
    """Run a notebook and return the line about it."""
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    clock, before = time.perf_counter(), processor_seconds()
    with TemporaryDirectory() as folder:
        where = {"metadata": {"path": folder}}
        nbclient.NotebookClient(notebook, timeout=LONGEST, kernel_name="python3", resources=where).execute()
    return f"{name}: {time.perf_counter() - clock:.0f} s, {processor_seconds() - before:.0f} CPU seconds"


def main(*names: str) -> None:
    """Run the notebooks of these names, or all."""
    os.environ["PATH"] = sysconfig.get_path("scripts") + os.pathsep + os.environ["PATH"]  # commands of the notebooks
    for name in names or sorted(path.stem for path in FOLDER.glob("*.ipynb")):
        print(run(name), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
