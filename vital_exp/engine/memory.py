"""The peak memory of a batch."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from pathlib import Path

import torch

MEBIBYTE = 2**20
PROCESS = Path("/proc/self")
RESET = "5"  # written to clear_refs, it resets the peak of the resident memory to the present value (Linux, proc(5))
# Growth of the resident memory, in MiB, between two readings that still shows a successful reset.
SLACK = 16.0


def forget_peak(device: torch.device) -> float:
    """Reset the peak memory.

    Returns:
        The argument ``before`` for :func:`peak`, in MiB: 0 after a reset; the peak of the whole process where the
        system allows no reset.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return 0.0
    _give_back()
    with suppress(OSError):  # the file is missing, or writing is not permitted
        (PROCESS / "clear_refs").write_text(RESET)
    most, now = _most(), _status("VmRSS")
    if most is None or (now is not None and most <= now + SLACK):
        return 0.0
    return most


def peak(device: torch.device, before: float = 0.0) -> float | None:
    """Return the peak memory in MiB: of tensors on a GPU, of the resident memory of the process on other devices.

    Args:
        device: the device of the pictures.
        before: the value that :func:`forget_peak` returned.

    Returns:
        The peak; None if the system does not report it, or if the peak was reached before :func:`forget_peak`.
    """
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device)) / MEBIBYTE
    most = _most()
    return most if most is not None and most > before else None


def _give_back() -> None:
    """Make the C library return freed memory to the system, so that this memory does not count as resident."""
    if sys.platform.startswith("linux"):
        with suppress(OSError, AttributeError):  # a C library without malloc_trim
            ctypes.CDLL(None).malloc_trim(0)


def _most() -> float | None:
    """Return the peak of the resident memory, in MiB, since the start of the process or the last reset."""
    if sys.platform == "darwin":
        import resource

        return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) / MEBIBYTE  # macOS reports bytes
    return _status("VmHWM")  # not ru_maxrss, which on Linux a child process inherits from its parent


def _status(name: str) -> float | None:
    """Return an entry of /proc/self/status in MiB; None where there is no such file or entry."""
    try:
        lines = dict(line.split(":", 1) for line in (PROCESS / "status").read_text().splitlines())
    except OSError:
        return None
    return float(lines[name].split()[0]) / 1024 if name in lines else None  # the file has KiB
