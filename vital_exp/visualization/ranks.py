"""The ranks of a job: processes that each make a share of the pictures on their own device.

Ranks average nothing. Lightning's environments tell the number of this rank. torch's key-value store distributes the
work and the decisions of rank 0. The Trainer of each rank has a single device.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, TypeVar

from lightning.fabric.plugins.environments import ClusterEnvironment, LightningEnvironment
from torch.distributed import PrefixStore

from vital_exp.errors import UsageError
from vital_exp.references.faceted import FacetedReferences
from vital_exp.setup.facets import FoundFacets
from vital_exp.setup.request import Request
from vital_exp.visualization.launcher import Launcher
from vital_exp.visualization.meeting import RankEnded, meet, offered
from vital_exp.visualization.starters import how_to_start

__all__ = ["PATIENCE", "RankEnded", "Ranks", "check_ranks", "join", "of_all_ranks"]

T = TypeVar("T")
PATIENCE = 50.0  # longest time in seconds between the arrivals of one rank and the next
JOINING = 600.0  # longest time in seconds until the first heartbeat of a rank
LOOKING = 0.05  # seconds between checks of the store
BEAT = 5.0  # seconds between heartbeats
SILENCE = 120.0  # seconds without a heartbeat, after which a rank counts as ended


class Ranks:
    """This process and the other ranks of its job; by default there are no others.

    Args:
        launcher: starts the other ranks after rank 0's checks; None if there are none, or they run already.

    Attributes:
        rank: number of this rank, from 0.
        size: number of ranks.
        local_rank: number of this rank on its machine, from 0.
    """

    joined: ClassVar[Ranks | None] = None  # the ranks that this process has joined: a process joins once

    def __init__(self, launcher: Launcher | None = None) -> None:
        self.rank, self.size, self.local_rank = 0, 1, 0
        self._launcher = launcher
        self._store: Any = None
        self._turn = 0  # number of the last operation that all ranks take part in

    @classmethod
    def of(cls, started: ClusterEnvironment, patience: float = PATIENCE) -> Ranks:
        """Join the ranks that an environment started.

        Raises:
            UsageError: ranks are missing ``patience`` seconds after the last arrival.
        """
        ranks = cls()
        ranks.rank, ranks.size = started.global_rank(), started.world_size()
        ranks.local_rank = started.local_rank()
        ranks._join(meet(started, patience))
        return ranks

    def _join(self, store: Any) -> None:
        self._store = store
        threading.Thread(target=self._beat, daemon=True).start()

    def _beat(self) -> None:
        """Send heartbeats until the job ends."""
        while (store := self._store) is not None:
            try:
                store.add(f"beat of {self.rank}", 1)
            except RuntimeError:  # rank 0 has ended; the next access to the store will report it
                return
            time.sleep(BEAT)

    def _launch(self) -> None:
        """Start the other ranks if there is a launcher and they are not started yet."""
        if self._launcher is not None and self._store is None:
            self.size = self._launcher.count
            store = offered(0, self.size)
            self._launcher.start(store.port)
            self._join(PrefixStore("vital_exp 0", store))

    def in_turn(self, make: Callable[[], T]) -> T:
        """Return the result of ``make``, which rank 0 calls first: errors are printed once, and files downloaded once.

        Raises:
            UsageError: on every rank, the error that ``make`` raised on rank 0.
        """
        if self.rank > 0:
            if mistake := self.broadcast(None):
                key, value, problem, options = mistake
                raise _everywhere(UsageError(key, value, problem, options))
            return make()
        try:
            made = make()
        except UsageError as error:
            self.broadcast([error.key, str(error.value), error.problem, list(error.options)])
            raise _everywhere(error) from error.__cause__
        self._launch()
        self.broadcast(None)
        return made

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's value on every rank; JSON must be able to hold the value."""
        if self._store is None:
            return value
        self._turn += 1
        key = f"value {self._turn}"
        with _Together(self._launcher):
            if self.rank == 0:
                self._store.set(key, json.dumps(value))
                return value
            self._look(lambda: self._store.check([key]), lambda: [0])
            return json.loads(self._store.get(key))

    def share(self, work: Sequence[T]) -> Iterator[tuple[int, T]]:
        """Yield the number and the item that this rank takes next, until all items are taken by some rank.

        A rank takes an item when it has finished its last one, so that slow ranks delay nobody.

        Args:
            work: all items, the same on every rank.
        """
        if self._store is None:
            yield from enumerate(work)
            return
        self._turn += 1
        while (number := self._count(f"taken {self._turn}") - 1) < len(work):
            yield number, work[number]

    def wait(self) -> None:
        """Wait until every rank is here."""
        if self._store is not None:
            self._arrive(stay=True)

    def _arrive(self, stay: bool) -> None:
        """Report the arrival of this rank and, if ``stay``, wait for the others."""
        self._turn += 1
        turn = self._turn
        self._count(f"rank {self.rank} at {turn}")
        if stay:
            with _Together(self._launcher):
                self._look(lambda: not self._missing(turn), lambda: self._missing(turn))

    def _missing(self, turn: int) -> list[int]:
        return [rank for rank in range(self.size) if not self._store.check([f"rank {rank} at {turn}"])]

    def _count(self, key: str) -> int:
        with _Together(self._launcher):
            return int(self._store.add(key, 1))

    def _look(self, happened: Callable[[], bool], awaited: Callable[[], list[int]]) -> None:
        """Wait until ``happened`` returns True.

        Args:
            happened: the condition.
            awaited: returns the ranks that the condition depends on.

        Raises:
            RankEnded: an awaited rank sends no heartbeats. Or the launcher saw a rank end: its signal may arrive while
                this process handles none.
        """
        beats: dict[int, tuple[int, float]] = {}
        while not happened():
            if self._launcher is not None and self._launcher.ended:
                raise RankEnded(self._launcher.ended)
            for rank in awaited():
                beat = int(self._store.add(f"beat of {rank}", 0))
                if beats.get(rank, (-1, 0.0))[0] != beat:
                    beats[rank] = beat, time.monotonic()
                elif time.monotonic() - beats[rank][1] > (SILENCE if beat else JOINING):
                    raise RankEnded(f"rank {rank} no longer answers")
            time.sleep(LOOKING)

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        """Wait for the end of the ranks that this one started.

        Raises:
            RankEnded: the job was interrupted because one of these ranks ended early.
        """
        if self._store is None:
            return
        if error is None:
            self._arrive(stay=self.rank == 0)  # rank 0 serves the store, so it leaves last
        if self._launcher is None:
            return
        if error is None:
            self._launcher.wait()
        else:
            self._launcher.end()
        self._store = None
        if isinstance(error, KeyboardInterrupt) and self._launcher.ended:
            raise RankEnded(self._launcher.ended) from error


def _everywhere(error: UsageError) -> UsageError:
    error.everywhere = True
    return error


class _Together:
    """A context for access to the store, in which a RuntimeError means that another rank has ended."""

    def __init__(self, launcher: Launcher | None) -> None:
        self._launcher = launcher

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, RuntimeError):
            told = self._launcher.wait_for_end() if self._launcher else ""
            raise RankEnded(told or "another rank has ended") from error


def join(started: ClusterEnvironment | None, patience: float = PATIENCE) -> Ranks | None:
    """Return the ranks that this process belongs to, which it joins once; None if it was started alone.

    Raises:
        UsageError: see :meth:`Ranks.of`; or MASTER_PORT is not set.
    """
    if started is None:
        return None
    if Ranks.joined is None:
        if isinstance(started, LightningEnvironment) and "MASTER_PORT" not in os.environ:
            raise UsageError("MASTER_PORT", None, f"the ranks need it to find each other; {how_to_start(started)}")
        Ranks.joined = Ranks.of(started, patience)
    return Ranks.joined


def check_ranks(started: ClusterEnvironment | None, devices: int, nodes: int, sweep: bool) -> None:
    """Check that the number of ranks agrees with the configuration.

    Args:
        started: the environment that started this process as one of several ranks; None if it was started alone.
        devices: number of devices per machine in the configuration.
        nodes: number of machines in the configuration.
        sweep: whether this is a job of a sweep.

    Raises:
        UsageError: another number of ranks was started from outside; or no ranks were started from outside, and the
            configuration has several machines, or several devices in a sweep.
    """
    if started is not None:
        size = started.world_size()
        if devices * nodes not in (1, size):
            wanted = f"{size} ranks were started from outside: trainer.devices times trainer.num_nodes must be {size}"
            raise UsageError("trainer.devices", devices, wanted)
    elif nodes > 1:
        command = f"torchrun --nnodes={nodes} --nproc-per-node={devices} -m vital_exp visualize ..., or srun"
        raise UsageError(
            "trainer.num_nodes", nodes, f"on several machines something else must start the ranks: {command}"
        )
    elif sweep and devices > 1:
        command = f"torchrun --nproc-per-node={devices} -m vital_exp visualize -m ..."
        wanted = f"every rank would start the sweep: trainer.devices=1 (one job per device), or {command}"
        raise UsageError("trainer.devices", devices, wanted)


def of_all_ranks(ranks: Ranks, ask: Callable[[FoundFacets | None], Request]) -> Request:
    """Return this rank's request; rank 0 finds the facets of units for all ranks.

    Args:
        ranks: the ranks of the job.
        ask: makes the request from the facets that rank 0 has found; rank 0 calls it with None.

    Raises:
        UsageError: on every rank, the error that ``ask`` raised on rank 0.
    """
    request = ranks.in_turn(lambda: ask(ranks.broadcast(None) if ranks.rank > 0 else None))
    if ranks.rank == 0:
        ranks.broadcast(request.references.found() if isinstance(request.references, FacetedReferences) else {})
    return request
