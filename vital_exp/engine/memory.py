"""How much memory a batch takes at most."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil
import torch

MEBIBYTE = 2**20
STATUS = Path("/proc/self/status")


def forget_peak(device: torch.device) -> None:
    """Start to measure anew, where a device can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak(device: torch.device) -> float:
    """Return the most memory in use, MiB: the tensors of a GPU since :func:`forget_peak`, elsewhere the process's."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device)) / MEBIBYTE
    if sys.platform.startswith("linux"):
        # getrusage's ru_maxrss is that of the process which started this one, if that was larger.
        lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
        if "VmHWM" in lines:
            return float(lines["VmHWM"].split()[0]) / 1024  # KiB there
    return float(psutil.Process().memory_info().rss) / MEBIBYTE
