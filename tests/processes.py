"""Commands in processes of their own, that can be killed: forked from one that has everything imported, so at once."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from multiprocessing.process import BaseProcess
from pathlib import Path

PRELOADED = ["tests.tiny", "vital_exp.visualization.run", "vital_exp.setup.request", "vital_exp.reporting.gallery"]
ROOT = Path(__file__).resolve().parents[1]
LONGEST = 240.0  # seconds


def start(
    place: Path,
    *arguments: str,
    setting: Mapping[str, str] | None = None,
    before: Callable[[], None] | None = None,
    command: str = "visualize",
) -> BaseProcess:
    """Start a command in a folder; what it prints goes to ``<pid>.txt`` there.

    Args:
        place: the working folder.
        arguments: of the command.
        setting: environment variables.
        before: called in the process first; picklable.
        command: which, without the vital- before its name.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with _tests_importable():
        environment = {**os.environ, **(setting or {})}
        process = context.Process(target=_run, args=(command, place, arguments, environment, before))
        process.start()
    return process


@contextmanager
def _tests_importable() -> Iterator[None]:
    """Name the tests' folder to the process that commands are forked from, to the commands, and to ranks they start."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), before)))
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def _run(
    command: str,
    place: Path,
    arguments: tuple[str, ...],
    setting: Mapping[str, str],
    before: Callable[[], None] | None,
) -> None:
    main = import_module(f"vital_exp.commands.{command}").main
    os.chdir(place)
    os.environ.clear()
    os.environ.update(setting)
    output = os.open(f"{os.getpid()}.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv = [f"vital-{command}"]
    if before:
        before()
    main([str(argument) for argument in arguments])


def finish(process: BaseProcess, place: Path) -> tuple[int, str]:
    """Wait for a command; return its exit code and what it printed."""
    process.join(LONGEST)
    assert process.exitcode is not None, "it hangs"
    return process.exitcode, (place / f"{process.pid}.txt").read_text()


def wait_for(happened: Callable[[], object]) -> None:
    """Wait until something is true."""
    deadline = time.monotonic() + LONGEST
    while not happened():
        assert time.monotonic() < deadline, "it never happens"
        time.sleep(0.01)
