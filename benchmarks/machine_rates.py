"""Rates of a machine, and the demands of a step: floating-point operations and bytes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from vital_exp.engine import memory

MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}
COPIED_BYTES = {"cpu": 2**28, "cuda": 2**32}
REPETITIONS = {"cpu": 3, "cuda": 20}  # in one measurement
MEASUREMENTS = 3  # of which the best counts


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return the floating-point operations per second of a product of two large square matrices."""
    side = MATRIX_SIDE.get(device.type, 2048)
    a, b = (torch.rand(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / _least_seconds(lambda: a @ b, device)


def copy_rate(device: torch.device) -> float:
    """Return the bytes per second that a large copy reads and writes."""
    source = torch.ones(COPIED_BYTES.get(device.type, 2**28) // 4, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / _least_seconds(lambda: target.copy_(source), device)


def _least_seconds(take: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of one call, the least of a few measurements."""
    take()
    count, least = REPETITIONS.get(device.type, 3), float("inf")
    for _ in range(MEASUREMENTS):
        synchronise(device)
        started = time.perf_counter()
        for _ in range(count):
            take()
        synchronise(device)
        least = min(least, (time.perf_counter() - started) / count)
    return least


def synchronise(device: torch.device) -> None:
    """Wait until a device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class _Bytes(TorchDispatchMode):
    """Adds up the bytes that operators read and write; views count nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operator and count its bytes."""
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.total += sum(
                leaf.numel() * leaf.element_size()
                for leaf in tree_leaves((args, kwargs, result))
                if isinstance(leaf, Tensor)
            )
        return result


def operations_and_bytes(take: Callable[[], object]) -> tuple[float, float]:
    """Return the floating-point operations of products and convolutions in a call, and the bytes its operators move."""
    with FlopCounterMode(display=False) as counter:
        take()
    with _Bytes() as moved:
        take()
    return float(counter.get_total_flops()), float(moved.total)


def peak_bytes(device: torch.device) -> tuple[Callable[[], None], Callable[[], float]]:
    """Return two functions, to start measuring the peak of memory and to read it in bytes (of the process on a CPU)."""
    if device.type == "cuda":
        return (
            lambda: torch.cuda.reset_peak_memory_stats(device),
            lambda: float(torch.cuda.max_memory_allocated(device)),
        )
    return (lambda: None), (lambda: memory.peak(device) * memory.MEBIBYTE)
