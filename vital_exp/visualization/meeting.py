"""The meeting of ranks that torchrun, srun or another program started; messages say what to do if ranks are missing."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from lightning.fabric.plugins.environments import ClusterEnvironment
from torch.distributed import PrefixStore, TCPStore

from vital_exp.errors import UsageError
from vital_exp.visualization.launcher import LOCAL_HOST, STARTED_BY
from vital_exp.visualization.starters import how_to_start, said_by

ATTEMPT = timedelta(seconds=10)  # limit of an attempt to connect; a process handles no signals during it
LOOKING = 0.2  # seconds between checks of which ranks have arrived
FIRST_WORD = 5.0  # seconds until the first message that ranks are missing
NEXT_WORD = 15.0  # seconds between such messages
RANKS_SHOWN = 8

logger = logging.getLogger(__name__)


class RankEnded(KeyboardInterrupt):
    """Another rank of the job ended early."""


def meet(started: ClusterEnvironment, patience: float) -> Any:
    """Wait until all ranks have arrived, and return their key-value store.

    Args:
        started: the environment that started this rank.
        patience: longest time in seconds between the arrivals of one rank and the next; imports of torch differ.

    Raises:
        UsageError: ranks are missing; the message says how to start them.
        RankEnded: ranks are missing, and rank 0 reports it; or rank 0 has ended.
    """
    rank, size = started.global_rank(), started.world_size()
    store: Any = PrefixStore(f"vital_exp {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", _store(started, patience))
    if STARTED_BY in os.environ:  # rank 0 started this process and watches it
        return store
    try:
        store.set(f"here {rank}", "")
        missing = _wait(started, store, patience)
        leader_here = 0 not in missing
    except RuntimeError as error:
        raise RankEnded("rank 0 has ended") from error
    if not missing:
        return store
    if rank > 0 and leader_here:
        raise RankEnded("ranks are missing, as rank 0 reports")
    missed = f"{_ranks(missing)} of {size} did not start within {patience:g} s"
    raise UsageError(
        *said_by(started), f"{missed}; {how_to_start(started)}; rank_timeout={10 * patience:g} waits longer"
    )


def _wait(started: ClusterEnvironment, store: Any, patience: float) -> list[int]:
    """Wait for the ranks, and return those that are missing ``patience`` seconds after the last arrival."""
    missing = list(range(started.world_size()))
    last = time.monotonic()
    word = last + FIRST_WORD
    while missing and time.monotonic() - last < patience:
        still = [rank for rank in missing if not store.check([f"here {rank}"])]
        if len(still) < len(missing):
            last, missing = time.monotonic(), still
        elif time.monotonic() > word:
            word = time.monotonic() + NEXT_WORD
            name, size = said_by(started)
            logger.warning(
                "%s=%d: waiting for %s; if nothing starts them, %s", name, size, _ranks(missing), how_to_start(started)
            )
        else:
            time.sleep(LOOKING)
    return missing


def _store(started: ClusterEnvironment, patience: float) -> Any:
    """Return a connection to the ranks' store; rank 0 serves the store, and other ranks may start before it."""
    port, size = started.main_port, started.world_size()
    if started.global_rank() == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return offered(port, size)
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        try:  # a socket first: torch's client prints warnings and blocks signals while it waits
            socket.create_connection((started.main_address, port), LOOKING * 10).close()
            return TCPStore(started.main_address, port, size, False, ATTEMPT, wait_for_workers=False)
        except (OSError, RuntimeError, UnicodeError):
            time.sleep(LOOKING)
    place, (name, _) = f"{started.main_address}:{port}", said_by(started)
    problem = f"nothing answers within {patience:g} s; rank 0 of {name}={size} is needed there; {how_to_start(started)}"
    raise UsageError("MASTER_ADDR", place, f"{problem}; rank_timeout={10 * patience:g} waits longer")


def offered(port: int, size: int) -> Any:
    """Return a store that this process serves at a port; port 0 stands for any free port.

    Raises:
        UsageError: the port cannot be used.
    """
    try:
        return TCPStore(LOCAL_HOST, port, size, True, ATTEMPT, wait_for_workers=False)
    except RuntimeError as error:
        problem = "cannot be used on this machine: set MASTER_PORT to a free port, the same for all ranks"
        raise UsageError("MASTER_PORT", port, problem) from error


def _ranks(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:RANKS_SHOWN])) + (" ..." if len(numbers) > RANKS_SHOWN else "")
    return f"rank {shown}" if len(numbers) == 1 else f"ranks {shown}"
