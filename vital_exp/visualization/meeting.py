"""How the ranks that something else started find each other, or say what to type where they do not."""

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

ATTEMPT = timedelta(seconds=10)  # of a connection: a process hears no signal meanwhile
LOOKING = 0.2  # seconds between looks at who has come
FIRST_WORD = 5.0  # seconds until a line says who is waited for
NEXT_WORD = 15.0  # seconds between such lines
RANKS_SHOWN = 8

logger = logging.getLogger(__name__)


class RankEnded(KeyboardInterrupt):
    """Another rank of the job ended before its time."""


def meet(started: ClusterEnvironment, patience: float) -> Any:
    """Return the key-value store of all ranks, once they are here.

    Each that comes may be the slowest to import torch: the patience is with the one after it.

    Args:
        started: what started this rank.
        patience: seconds between one rank and the next.

    Raises:
        UsageError: the others did not come; it says what to type.
        RankEnded: they did not come, and rank 0 says so.
    """
    rank, size = started.global_rank(), started.world_size()
    store: Any = PrefixStore(f"vital_exp {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", _store(started, patience))
    if STARTED_BY in os.environ:  # rank 0 sees whether the process lives
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
        raise RankEnded("ranks are missing, as rank 0 says")
    missed = f"{_ranks(missing)} of {size} did not come within {patience:g} s"
    raise UsageError(
        *said_by(started), f"{missed}; {how_to_start(started)}; rank_timeout={10 * patience:g} waits longer"
    )


def _wait(started: ClusterEnvironment, store: Any, patience: float) -> list[int]:
    """Return the ranks that have not come when the patience with the next one ends."""
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
    """Return a connection to what the ranks share; the leading one offers it, the others may be earlier."""
    port, size = started.main_port, started.world_size()
    if started.global_rank() == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return offered(port, size)
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        try:  # asked by Python first: torch's own client would print warnings, and hear no signal
            socket.create_connection((started.main_address, port), LOOKING * 10).close()
            return TCPStore(started.main_address, port, size, False, ATTEMPT, wait_for_workers=False)
        except (OSError, RuntimeError, UnicodeError):
            time.sleep(LOOKING)
    place, (name, _) = f"{started.main_address}:{port}", said_by(started)
    problem = f"where the ranks of {name}={size} meet, nothing answers within {patience:g} s; {how_to_start(started)}"
    raise UsageError("MASTER_ADDR", place, f"{problem}; rank_timeout={10 * patience:g} waits longer")


def offered(port: int, size: int) -> Any:
    """Return a store that this process offers at a port, 0 for any.

    Raises:
        UsageError: the port is taken.
    """
    try:
        return TCPStore(LOCAL_HOST, port, size, True, ATTEMPT, wait_for_workers=False)
    except RuntimeError as error:
        problem = "cannot be used on this machine: set MASTER_PORT to a free one for all ranks"
        raise UsageError("MASTER_PORT", port, problem) from error


def _ranks(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:RANKS_SHOWN])) + (" ..." if len(numbers) > RANKS_SHOWN else "")
    return f"rank {shown}" if len(numbers) == 1 else f"ranks {shown}"
