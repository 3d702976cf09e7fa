"""What a mining would do and how long it takes, from a few measured batches."""

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

TIMED_BATCHES = 2
# Windows that hold one position: what a search of the strongest expects per image when it forms batches.
WINDOWS_OVER_A_POSITION = 4


@dataclass(frozen=True)
class Cost:
    """Measured seconds.

    Attributes:
        loading: of one image, until it can go into the network.
        network: of one picture in it.
    """

    loading: float
    network: float

    def seconds(self, images: int, pictures: int) -> float:
        """Return the seconds of a pass over so many images that shows the network so many pictures."""
        return images * self.loading + pictures * self.network


def measured(
    folder: ImageFolder, show: Callable[[Tensor], object], batch_size: int, workers: int, device: torch.device
) -> Cost:
    """Time a few batches of images from all over a folder, the first not counted.

    Args:
        folder: the images.
        show: hands pictures (n, 3, H, W) RGB to the network.
        batch_size, workers: as they will be.
        device: of the network.
    """
    wanted = min(len(folder.paths), batch_size * (TIMED_BATCHES + 1))
    numbers = [place * len(folder.paths) // wanted for place in range(wanted)]
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
    images = sum(count for _, _, count in counted)
    return Cost(sum(one for one, _, _ in counted) / images, sum(one for _, one, _ in counted) / images)


def windows_per_image(patch: PatchSettings, boxes: Sequence[Box], units_per_image: float) -> int:
    """Return how many windows of an image the second pass shows the network, about."""
    if patch.search == "all":
        return len(boxes)
    # Each unit asks for those over its strongest position, which one more pass of the image finds.
    return min(len(boxes), math.ceil(WINDOWS_OVER_A_POSITION * units_per_image)) + 1


def told(lines: Mapping[str, str]) -> str:
    """Return named lines as text."""
    return "\n".join(f"{name:8} {text}" for name, text in lines.items())


def images_line(folder: ImageFolder) -> str:
    """Return how many images of which folder there are."""
    return f"{len(folder.paths)} of {printable(folder.root)}"


def duration(seconds: float) -> str:
    """Return seconds as "1 h 2 min", "3 min 4 s" or "5 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
