"""How much memory a batch takes at most."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from pathlib import Path

import torch

MEBIBYTE = 2**20
PROCESS = Path("/proc/self")
RESET = "5"  # written to clear_refs: the most resident memory is that of now (Linux, proc(5))
# Resident memory may grow between the two readings that show whether a reset came through; MiB.
SLACK = 16.0


def forget_peak(device: torch.device) -> float:
    """Start to measure anew.

    Returns:
        What :func:`peak` has to exceed, MiB: 0 where the measure begins anew, else the most that was ever in use.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return 0.0
    _give_back()
    with suppress(OSError):  # where it is not there or not permitted
        (PROCESS / "clear_refs").write_text(RESET)
    most, now = _most(), _status("VmRSS")
    if most is None or (now is not None and most <= now + SLACK):
        return 0.0
    return most


def peak(device: torch.device, before: float = 0.0) -> float | None:
    """Return the most memory in use, MiB: the tensors of a GPU, elsewhere all that the process has resident.

    Args:
        device: where the pictures are made.
        before: what :func:`forget_peak` returned; 0: the process's whole life counts.

    Returns:
        None where the system does not tell, or where the most was reached before.
    """
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device)) / MEBIBYTE
    most = _most()
    return most if most is not None and most > before else None


def _give_back() -> None:
    """Return freed memory to the system, as far as the C library can: it would count as in use."""
    if sys.platform.startswith("linux"):
        with suppress(OSError, AttributeError):  # a C library without it
            ctypes.CDLL(None).malloc_trim(0)


def _most() -> float | None:
    """The most that was resident, MiB, since the process started or the last reset."""
    if sys.platform == "darwin":
        import resource

        return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) / MEBIBYTE  # bytes there
    return _status("VmHWM")  # Linux's ru_maxrss is that of the process which started this one, if that was larger


def _status(name: str) -> float | None:
    """An entry of the process's status, MiB; None where there is no such file or entry."""
    try:
        lines = dict(line.split(":", 1) for line in (PROCESS / "status").read_text().splitlines())
    except OSError:
        return None
    return float(lines[name].split()[0]) / 1024 if name in lines else None  # KiB there
