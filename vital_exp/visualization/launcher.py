"""Start the other ranks of a job on this machine: the same command again, once for each."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

import torch

LOCAL_HOST = "127.0.0.1"
THREADS = "OMP_NUM_THREADS"
WATCHING = 0.5  # seconds between looks at the other ranks
LEAVING = 60.0  # seconds a rank has for saving its batch before it is killed
INTERRUPTED = 130  # the exit code of a rank that was asked to end
STARTED_BY = "VITAL_STARTED_BY"  # the environment variable that holds rank 0's process


class Launcher:
    """The ranks from 1 on.

    Args:
        arguments: of ``python -m vital_exp``.
        count: ranks, this one included.

    Attributes:
        ended: which rank ended before its time, and how; empty while none has.
    """

    def __init__(self, arguments: Sequence[str], count: int) -> None:
        self.arguments = list(arguments)
        self.count = count
        self.ended = ""
        self._processes: list[subprocess.Popen[bytes]] = []
        self._leaving = False

    def start(self, port: int) -> None:
        """Start them; they meet rank 0 at a port of this machine."""
        shared = {"MASTER_ADDR": LOCAL_HOST, "MASTER_PORT": str(port), "WORLD_SIZE": str(self.count), "NODE_RANK": "0"}
        shared |= {THREADS: str(self._threads()), STARTED_BY: str(os.getpid()), "PYTHONWARNINGS": "ignore"}
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("TORCHELASTIC")}
        for rank in range(1, self.count):
            own = {**inherited, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            command = [sys.executable, "-m", "vital_exp", *self.arguments]
            self._processes.append(subprocess.Popen(command, env=own, stdin=subprocess.DEVNULL))
        threading.Thread(target=self._watch, daemon=True).start()

    def _threads(self) -> int:
        """Share the cores out, unless the user has: more threads than cores are slower than one."""
        if THREADS in os.environ:
            return int(os.environ[THREADS].split(",")[0])
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        threads = max(1, cores // self.count)
        torch.set_num_threads(threads)
        return threads

    def _watch(self) -> None:
        """End this rank, as SIGTERM does, when another one dies."""
        while not self._leaving:
            if self._died():
                os.kill(os.getpid(), signal.SIGTERM)
                return
            time.sleep(WATCHING)

    def _died(self) -> bool:
        for rank, process in enumerate(self._processes, start=1):
            code = process.poll()
            if code and not self._leaving:
                if code == INTERRUPTED:
                    return True  # Ctrl-C reaches every rank
                how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
                self.ended = f"rank {rank} {how}"
                return True
        return False

    def wait_for_end(self) -> str:
        """Return how the rank ended that was just found missing."""
        deadline = time.monotonic() + LEAVING
        while not self._died() and time.monotonic() < deadline:
            time.sleep(WATCHING / 10)
        return self.ended

    def end(self) -> None:
        """Ask those that still run to save and end, and wait for them."""
        self._leaving = True
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + LEAVING
        for process in self._processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def wait(self) -> None:
        """Wait until all have ended by themselves."""
        self._leaving = True
        for process in self._processes:
            process.wait()


def end_with_launcher() -> None:
    """End this rank when the rank that started it is gone: nobody else would."""
    starter = int(os.environ.get(STARTED_BY, 0))
    if starter:
        threading.Thread(target=_follow, args=(starter,), daemon=True).start()


def _follow(starter: int) -> None:
    while os.getppid() == starter:
        time.sleep(WATCHING)
    os._exit(1)
