"""The plan of a mining: its work, and its duration estimated from a few timed batches."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vital_exp.mining.images import ImageFolder
from vital_exp.mining.patches import Box, PatchSettings
from vital_exp.references.decoding import printable
from vital_exp.terminal_tables import wrapped

TIMED_BATCHES = 2
# About so many windows hold one position (exactly 4 at an overlap of one half); search=strongest sizes batches by it.
WINDOWS_OVER_A_POSITION = 4


@dataclass(frozen=True)
class Cost:
    """Measured durations in seconds.

    Attributes:
        loading: to read and decode one image.
        network: to pass one picture through the network.
    """

    loading: float
    network: float

    def seconds(self, images: int, pictures: int) -> float:
        """Return the seconds of a pass that loads ``images`` and passes ``pictures`` through the network."""
        return images * self.loading + pictures * self.network


def measured(
    folder: ImageFolder, show: Callable[[Tensor], object], batch_size: int, workers: int, device: torch.device
) -> Cost:
    """Time a few batches of images spread over a folder; the first batch only warms up.

    Args:
        folder: the images.
        show: passes pictures (n, C, H, W) in [0, 1] through the network.
        batch_size, workers: the values of the mining.
        device: the network's device.
    """
    count = min(len(folder.paths), batch_size * (TIMED_BATCHES + 1))
    numbers = [place * len(folder.paths) // count for place in range(count)]
    times: list[tuple[float, float, int]] = []
    began = time.perf_counter()
    for batch in folder.batches(numbers, batch_size, workers):
        loaded = time.perf_counter()
        if batch.pixels is not None:
            show(batch.rgb(device))
            if device.type == "cuda":
                torch.cuda.synchronize(device)
        times.append((loaded - began, time.perf_counter() - loaded, batch.count))
        began = time.perf_counter()
    counted = times[1:] or times
    loading, network, images = (sum(column) for column in zip(*counted, strict=True))
    return Cost(loading / images, network / images)


def windows_per_image(patch: PatchSettings, boxes: Sequence[Box], units_per_image: float) -> int:
    """Return about how many windows per image pass the network in the second pass."""
    if patch.search == "all":
        return len(boxes)
    # The windows over each unit's strongest position, and one pass of the whole image to find these positions.
    return min(len(boxes), math.ceil(WINDOWS_OVER_A_POSITION * units_per_image)) + 1


def told(lines: Mapping[str, str]) -> str:
    """Return lines with their names as text, wrapped at 80 columns."""
    return "\n".join(wrapped(f"{name:8} {text}", indent=9) for name, text in lines.items())


def images_line(folder: ImageFolder) -> str:
    """Return the number of images and the folder as text."""
    return f"{len(folder.paths)} of {printable(folder.root)}"


def duration(seconds: float) -> str:
    """Return seconds as "1 h 2 min", "3 min 4 s" or "5 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
