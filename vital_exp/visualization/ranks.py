"""The processes of one job: each makes its share of the pictures on a device of its own.

Nothing is averaged between them. Lightning's environments say which of the ranks this process is, torch's key-value
store shares the work out and passes on what rank 0 decided, and each rank's Trainer is one of a single device.
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
PATIENCE = 50.0  # seconds between one rank and the next that comes
JOINING = 600.0  # seconds until the first sign of life of a rank whose process lives
LOOKING = 0.05  # seconds between looks at what the others have done
BEAT = 5.0  # seconds between signs of life
SILENCE = 120.0  # seconds without one, after which a rank counts as gone


class Ranks:
    """This process among those of its job; alone, unless told otherwise.

    Args:
        launcher: starts the other ranks once rank 0 has found no mistake; None when there are none or they run already.

    Attributes:
        rank: its number, from 0.
        size: how many there are.
        local_rank: its number on its machine.
    """

    joined: ClassVar[Ranks | None] = None  # a process is one rank of one world

    def __init__(self, launcher: Launcher | None = None) -> None:
        self.rank, self.size, self.local_rank = 0, 1, 0
        self._launcher = launcher
        self._store: Any = None
        self._turn = 0  # what all ranks do together is numbered

    @classmethod
    def of(cls, started: ClusterEnvironment, patience: float = PATIENCE) -> Ranks:
        """Join the ranks that something else started.

        Raises:
            UsageError: they do not come, each within ``patience`` seconds of the one before it.
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
        """Give signs of life, until the job ends."""
        while (store := self._store) is not None:
            try:
                store.add(f"beat of {self.rank}", 1)
            except RuntimeError:  # rank 0 is gone, which this rank's next question will find
                return
            time.sleep(BEAT)

    def _launch(self) -> None:
        """Start the other ranks, if that is to be done and is not done yet."""
        if self._launcher is not None and self._store is None:
            self.size = self._launcher.count
            store = offered(0, self.size)
            self._launcher.start(store.port)
            self._join(PrefixStore("vital_exp 0", store))

    def in_turn(self, make: Callable[[], T]) -> T:
        """Return what ``make`` makes, on rank 0 first: a mistake is told once, a download made once.

        Raises:
            UsageError: on every rank, what ``make`` raised on rank 0.
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
        """Return rank 0's value, anything that JSON has, on every rank."""
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
        """Yield number and item of what this rank is to do next, until all is taken; all ranks have the same work.

        A rank takes an item when it has finished its last one, so slow ones hold none up.
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
        """Tell that this rank is here and, if it is to stay, wait for the others."""
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
        """Wait until something has happened, as long as the ranks that it needs give signs of life.

        A rank that this one started may end before its first sign, and the signal that tells of it while none is heard.
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
                    raise RankEnded(f"rank {rank} gives no sign of life")
            time.sleep(LOOKING)

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        """See the ranks that this one started to their end, and say why the job ended before its time.

        Raises:
            RankEnded: one of them ended by itself.
        """
        if self._store is None:
            return
        if error is None:
            self._arrive(stay=self.rank == 0)  # the others hear rank 0, so it leaves last
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
    """Something that needs another rank: what goes wrong there is that it is gone."""

    def __init__(self, launcher: Launcher | None) -> None:
        self._launcher = launcher

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, RuntimeError):
            told = self._launcher.wait_for_end() if self._launcher else ""
            raise RankEnded(told or "another rank has ended") from error


def join(started: ClusterEnvironment | None, patience: float = PATIENCE) -> Ranks | None:
    """Return the ranks that this process was started as one of, met once; None when it was started alone.

    Raises:
        UsageError: see :meth:`Ranks.of`; or nothing says where they meet.
    """
    if started is None:
        return None
    if Ranks.joined is None:
        if isinstance(started, LightningEnvironment) and "MASTER_PORT" not in os.environ:
            raise UsageError("MASTER_PORT", None, f"the ranks meet there, and it is not set; {how_to_start(started)}")
        Ranks.joined = Ranks.of(started, patience)
    return Ranks.joined


def check_ranks(started: ClusterEnvironment | None, devices: int, nodes: int, sweep: bool) -> None:
    """Check that as many ranks run, or can be started, as were asked for.

    Args:
        started: what started this process as one of several.
        devices: per machine, as the configuration has it.
        nodes: machines.
        sweep: whether this is one job of a multirun.

    Raises:
        UsageError: other ranks were started from outside; several machines or a sweep without ranks from outside.
    """
    if started is not None:
        size = started.world_size()
        if devices * nodes not in (1, size):
            wanted = f"{size} ranks were started from outside: trainer.devices times trainer.num_nodes must be {size}"
            raise UsageError("trainer.devices", devices, wanted)
    elif nodes > 1:
        command = f"torchrun --nnodes={nodes} --nproc-per-node={devices} -m vital_exp visualize ..., or srun"
        raise UsageError(
            "trainer.num_nodes", nodes, f"on several machines the ranks are started from outside: {command}"
        )
    elif sweep and devices > 1:
        command = f"torchrun --nproc-per-node={devices} -m vital_exp visualize -m ..."
        wanted = f"a sweep would be started by every rank: trainer.devices=1 (one job per device), or {command}"
        raise UsageError("trainer.devices", devices, wanted)


def of_all_ranks(ranks: Ranks, ask: Callable[[FoundFacets | None], Request]) -> Request:
    """Return this rank's request; the facets of units are found by rank 0 and are the same on all ranks.

    Args:
        ranks: the processes of the job.
        ask: makes the request, given the facets that rank 0 has found; None on rank 0.

    Raises:
        UsageError: on every rank, the mistake that rank 0 found.
    """
    request = ranks.in_turn(lambda: ask(ranks.broadcast(None) if ranks.rank > 0 else None))
    if ranks.rank == 0:
        ranks.broadcast(request.references.found() if isinstance(request.references, FacetedReferences) else {})
    return request
