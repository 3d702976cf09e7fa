"""How much memory a batch takes at most."""

from __future__ import annotations

import sys

import psutil
import torch

MEBIBYTE = 2**20


def forget_peak(device: torch.device) -> None:
    """Start to measure anew, where a device can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak(device: torch.device) -> float:
    """Return the most memory in use, MiB: the tensors of a GPU since :func:`forget_peak`, elsewhere the process's."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device)) / MEBIBYTE
    if sys.platform.startswith("linux"):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # KiB there
    return float(psutil.Process().memory_info().rss) / MEBIBYTE
