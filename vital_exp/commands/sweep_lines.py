"""The lines of a sweep on the terminal: how its jobs differ, and one table at the end. Imports no torch."""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from vital_exp.commands.outer_ranks import outer_ranks

JOB = re.compile(r"\t#(\d+) : (.*)", re.DOTALL)  # a line of Hydra's launchers about a job
# An override in such a line; spaces in it are inside quotes, or behind a backslash.
OVERRIDE = re.compile(r"""(?:\\.|'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|[^\s'"\\])+""", re.DOTALL)

ONLY_ASKS = "dry_run=true|list=.*"  # arguments with which a command only prints
PLANNED_SECONDS = "planned_seconds"  # the file with a job's estimate, in a folder that ends with the command


class JobLines(logging.Filter):
    """Shortens the lines of Hydra's launchers to a job's number and the overrides that are not on the command line."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Shorten the message if it is about a job; let every message pass."""
        if found := JOB.fullmatch(record.getMessage()):
            shared = {_compared(one) for one in sys.argv[1:]}
            own = " ".join(one for one in OVERRIDE.findall(found[2]) if _compared(one) not in shared)
            record.msg, record.args = f"job {found[1]}: {own or found[2]}", ()
        return True


def _compared(override: str) -> str:
    """An override in a form to compare: Hydra adds quotes and backslashes, and writes True for true."""
    return re.sub(r"[\s'\"\\]", "", override).lower()


class SweepEnd(Callback):
    """Prints the closing table when all jobs of a sweep have ended."""

    def on_multirun_end(self, config: DictConfig, **_more: object) -> None:
        """Print the table, or the estimated time of all jobs if they only printed their plans."""
        place = Path(config.hydra.sweep.dir)
        if any(re.fullmatch(ONLY_ASKS, one.lstrip("+"), re.IGNORECASE) for one in config.hydra.overrides.task):
            print_time(place)
        else:
            print_sweep(place)


def print_time(place: Path) -> None:
    """Print the estimated time of the planned jobs in a folder, one after another."""
    seconds = [float(file.read_text(encoding="utf-8")) for file in place.rglob(PLANNED_SECONDS)]
    if len(seconds) > 1:
        from vital_exp.mining.plan import duration

        more = "one after another; mining and reading the references come on top"
        print(f"\nsweep    {len(seconds)} jobs: about {duration(sum(seconds))} {more}", flush=True)


def print_sweep(place: Path) -> None:
    """Print a line per method of the jobs in a folder, the jobs that failed, and the next command.

    Only rank 0 prints.
    """
    if outer_ranks()[0]:
        return
    from vital_exp.reporting.sweep_summary import sweep_text

    print(f"\n{sweep_text(place)}", flush=True)
