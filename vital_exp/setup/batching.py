"""Groups targets into batches of one size: short batches are padded, and ``auto`` fills the memory."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import psutil
import torch
from torch import Tensor, nn

from vital_exp.models.network import VisionNetwork
from vital_exp.targets.unit import Target

# Beyond these, larger batches were no faster per picture, and a failure costs more.
LARGEST_AUTO_BATCH = {"cpu": 16, "cuda": 64, "mps": 16}
# Images in the network at a time; on a CPU larger passes are slower per image (benchmarks/baselines_speed.py).
FASTEST_PASS = {"cpu": 8, "cuda": 64, "mps": 16}
# Share of the free memory that auto may use; the estimate leaves out the allocator's overhead.
MEMORY_SHARE = 0.5
# One copy is kept for the backward pass, one holds the gradients, and sorting copies the aligned layers' activations.
ACTIVATION_COPIES = 2.5


def batches(
    targets: Sequence[Target], batch_size: int, half_made: Sequence[Sequence[str]] = ()
) -> Iterator[list[Target]]:
    """Yield batches of targets of one layer, because the aligned layers depend on the targets' layer.

    Args:
        targets: all targets.
        batch_size: largest number of targets in a batch.
        half_made: target names of each batch that has a checkpoint; these batches come first, unchanged.

    Examples:
        >>> from vital_exp.setup.batching import batches
        >>> from vital_exp.targets.unit import Target
        >>> targets = [Target("class", number) for number in range(5)]
        >>> [[target.index for target in batch] for batch in batches(targets, 2)]
        [[0, 1], [2, 3], [4]]
    """
    waiting = {target.name: target for target in targets}
    for names in half_made:
        if len(names) <= batch_size and all(name in waiting for name in names):
            yield [waiting.pop(name) for name in names]
    for layer in dict.fromkeys(target.layer for target in waiting.values()):
        batch: list[Target] = []
        for variations in _units([target for target in waiting.values() if target.layer == layer]):
            if batch and len(batch) + len(variations) > batch_size:
                yield batch
                batch = []
            batch = batch + variations
        yield batch


def together(targets: Sequence[Target]) -> int:
    """Return the largest number of targets of one layer: a larger batch would only be padded."""
    return max(Counter(target.layer for target in targets).values(), default=0)


def padded(targets: Sequence[Target], batch_size: int) -> list[Target]:
    """Repeat the last target of a short batch: a picture's bits may depend on the size of its batch."""
    return [*targets, *[targets[-1]] * (batch_size - len(targets))]


def _units(targets: Sequence[Target]) -> list[list[Target]]:
    """Group the variations of a unit into one batch, because a term makes them differ from each other."""
    units: dict[Target, list[Target]] = {}
    for target in targets:
        units.setdefault(replace(target, variation=1), []).append(target)
    return list(units.values())


def automatic_batch_size(network: VisionNetwork, size: tuple[int, int], count: int) -> int:
    """Return the batch size for ``count`` pictures of a size: as many as fit into half of the free memory.

    The pictures are spread evenly over the batches: 20 become 10 and 10, since 16 and 4 would be padded to 32.
    """
    most = max(1, min(_fitting(network, size), LARGEST_AUTO_BATCH.get(network.device.type, 16)))
    count = max(1, count)
    return math.ceil(count / math.ceil(count / most))


def views_per_pass(views: int, network: VisionNetwork, size: tuple[int, int], batch_size: int) -> int:
    """Return the number of each picture's views in one pass: the largest fast divisor of ``views`` that fits."""
    if views == 1:
        return 1
    images = min(FASTEST_PASS.get(network.device.type, 8), _fitting(network, size))
    return max(d for d in range(1, views + 1) if views % d == 0 and (d == 1 or d * batch_size <= images))


def _fitting(network: VisionNetwork, size: tuple[int, int]) -> int:
    """Return how many pictures fit into the share ``MEMORY_SHARE`` of the free memory."""
    return int(free_memory(network.device) * MEMORY_SHARE / max(bytes_per_picture(network, size), 1))


def free_memory(device: torch.device) -> int:
    """Return the free bytes of a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


@torch.no_grad()
def bytes_per_picture(network: VisionNetwork, size: tuple[int, int]) -> int:
    """Estimate the memory one more picture takes, from the activations of one forward pass."""
    total = 0

    def add(_module: nn.Module, _inputs: object, output: object) -> None:
        nonlocal total
        if isinstance(output, Tensor):
            total += output.numel() * output.element_size()

    leaves = [module for module in network.module.modules() if not list(module.children())]
    handles = [leaf.register_forward_hook(add) for leaf in leaves]
    try:
        network.returned(network.blank(size=size))
    finally:
        for handle in handles:
            handle.remove()
    return int(total * ACTIVATION_COPIES)
