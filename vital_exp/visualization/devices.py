"""Which GPU a job of a sweep takes: one that no other job of this user on this machine has."""

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
    """Hold a GPU for a job that runs beside others, and say which: launchers start several on one machine.

    Args:
        number: of the job; where every GPU is held, it says which one is shared.
        place: where the locks are; the system's temporary folder by default.
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
    """The names of the GPUs that this process sees, the same ones in processes that see others."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(gpu) for gpu in range(torch.cuda.device_count())]
