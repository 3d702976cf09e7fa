"""The choice of a GPU for a job of a sweep: a GPU that no other job of this user on this machine holds."""

from __future__ import annotations

import getpass
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from vital_exp.runs.locks import hold


@contextmanager
def own_gpu(number: int, place: Path | None = None) -> Iterator[int]:
    """Hold a GPU for a job that runs beside other jobs on this machine, and yield the GPU's number.

    Args:
        number: the job's number; if other jobs hold every GPU, it decides which GPU is shared.
        place: folder of the lock files; None for a folder in the system's temporary folder.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus < 2:
        yield 0
        return
    place = place or Path(tempfile.gettempdir()) / f"vital_exp-{getpass.getuser()}"
    place.mkdir(exist_ok=True)
    for gpu in [(number + i) % gpus for i in range(gpus)]:
        try:
            handle = hold(place / f"{_visible()[gpu]}.lock")
        except BlockingIOError:
            continue
        try:
            yield gpu
        finally:
            os.close(handle)
        return
    yield number % gpus


def _visible() -> list[str]:
    """Return the names of this process's GPUs; the names do not depend on which GPUs a process sees."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(gpu) for gpu in range(torch.cuda.device_count())]
