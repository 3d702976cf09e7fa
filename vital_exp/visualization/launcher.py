"""Starts the other ranks of a job on this machine, each by the same command."""

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
WATCHING = 0.5  # seconds between checks of the other ranks
LEAVING = 60.0  # seconds that a rank has to save its batch before it is killed
INTERRUPTED = 130  # the exit code of a rank that was interrupted
STARTED_BY = "VITAL_STARTED_BY"  # the environment variable with the process number of rank 0


class Launcher:
    """Starts and ends the ranks from 1 on.

    Args:
        arguments: of ``python -m vital_exp``.
        count: number of ranks, this one included.

    Attributes:
        ended: a text that names a rank that ended early, and says how it ended; empty while there is none.
    """

    def __init__(self, arguments: Sequence[str], count: int) -> None:
        self.arguments = list(arguments)
        self.count = count
        self.ended = ""
        self._processes: list[subprocess.Popen[bytes]] = []
        self._leaving = False

    def start(self, port: int) -> None:
        """Start the ranks, which connect to rank 0 at a port of this machine."""
        shared = {"MASTER_ADDR": LOCAL_HOST, "MASTER_PORT": str(port), "WORLD_SIZE": str(self.count), "NODE_RANK": "0"}
        shared |= {THREADS: str(self._threads()), STARTED_BY: str(os.getpid()), "PYTHONWARNINGS": "ignore"}
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("TORCHELASTIC")}
        for rank in range(1, self.count):
            own = {**inherited, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            command = [sys.executable, "-m", "vital_exp", *self.arguments]
            self._processes.append(subprocess.Popen(command, env=own, stdin=subprocess.DEVNULL))
        threading.Thread(target=self._watch, daemon=True).start()

    def _threads(self) -> int:
        """Return the threads of each rank: the user's choice, or an equal share of the cores."""
        if THREADS in os.environ:
            return int(os.environ[THREADS].split(",")[0])
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        threads = max(1, cores // self.count)
        torch.set_num_threads(threads)
        return threads

    def _watch(self) -> None:
        """Send SIGTERM to this rank when another rank dies."""
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
        """Wait for the end of a rank that no longer answers, and return ``ended``."""
        deadline = time.monotonic() + LEAVING
        while not self._died() and time.monotonic() < deadline:
            time.sleep(WATCHING / 10)
        return self.ended

    def end(self) -> None:
        """Ask the ranks that still run to save their batches and end, and wait for their end."""
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
        """Wait until all ranks have ended by themselves."""
        self._leaving = True
        for process in self._processes:
            process.wait()


def end_with_launcher() -> None:
    """Watch the rank that started this one, and end this rank when the other has ended."""
    starter = int(os.environ.get(STARTED_BY, 0))
    if starter:
        threading.Thread(target=_follow, args=(starter,), daemon=True).start()


def _follow(starter: int) -> None:
    while os.getppid() == starter:
        time.sleep(WATCHING)
    os._exit(1)
