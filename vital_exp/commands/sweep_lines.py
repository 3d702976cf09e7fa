"""What a sweep says of its jobs: what differs between them, and at the end one table. Imports no torch."""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from vital_exp.commands.outer_ranks import outer_ranks

JOB = re.compile(r"\t#(\d+) : (.*)", re.DOTALL)  # a line of Hydra's launchers
# An override in such a line: its spaces are inside quotes, or behind a backslash.
OVERRIDE = re.compile(r"""(?:\\.|'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|[^\s'"\\])+""", re.DOTALL)

ONLY_ASKS = "dry_run=true|list=.*"  # with one of these a command prints, and makes nothing


class JobLines(logging.Filter):
    """Shortens the lines of Hydra's launchers to a job's number and what it does not share with the command line."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Change the message of a line about a job."""
        if found := JOB.fullmatch(record.getMessage()):
            shared = {_compared(one) for one in sys.argv[1:]}
            own = " ".join(one for one in OVERRIDE.findall(found[2]) if _compared(one) not in shared)
            record.msg, record.args = f"job {found[1]}: {own or found[2]}", ()
        return True


def _compared(override: str) -> str:
    """An override without what Hydra writes otherwise: it quotes and escapes, and True stands for true."""
    return re.sub(r"[\s'\"\\]", "", override).lower()


class SweepEnd(Callback):
    """Prints the table of a sweep whose jobs have all ended."""

    def on_multirun_end(self, config: DictConfig, **_more: object) -> None:
        """Print it, unless the jobs made nothing because they were asked for a plan or a list."""
        if any(re.fullmatch(ONLY_ASKS, one.lstrip("+"), re.IGNORECASE) for one in config.hydra.overrides.task):
            return
        print_sweep(Path(config.hydra.sweep.dir))


def print_sweep(place: Path) -> None:
    """Print a line per method of the jobs in a folder, those that failed by name, and what can be done next.

    Of several ranks the first does.
    """
    if outer_ranks()[0]:
        return
    from vital_exp.reporting.sweep_summary import sweep_text

    print(f"\n{sweep_text(place)}", flush=True)
