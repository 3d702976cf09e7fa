"""How often and how strongly images activate units: the share of active images, and a histogram."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Images sampled for histograms, evenly over the folder: the 95 % interval of a bin's share is then at most +-0.02.
IMAGES_KEPT = 2000
BINS = 24


class Activity:
    """Statistics of units' values over the images of a folder.

    Attributes:
        awake: (U,) int64, number of images whose value is above 0.
        sample: (U, S) float32, the values of every ``step``-th image; NaN for images that could not be read.
        step: distance between two sampled images, in the order of the folder.
    """

    def __init__(self, units: int, images: int, device: torch.device | str = "cpu") -> None:
        self.step = -(-images // IMAGES_KEPT)
        self.awake = torch.zeros(units, dtype=torch.int64, device=device)
        self.sample = torch.full((units, -(-images // self.step)), torch.nan, device=device)

    def add(self, values: Tensor, numbers: Tensor) -> None:
        """Add the values (N, U) of N images; ``numbers`` (N,) are the images' places in the folder."""
        self.awake += (values > 0).sum(dim=0)
        sampled = numbers % self.step == 0
        self.sample[:, numbers[sampled] // self.step] = values[sampled].float().T

    def histogram(self, unit: int, read: int) -> Histogram:
        """Return the histogram of a unit; ``read`` is the number of images that were read."""
        values = self.sample[unit]
        values = values[values.isfinite()].cpu()
        low, high = (float(value) for value in values.aminmax())
        counts = torch.histc(values, BINS, low, high) if high > low else torch.tensor([float(len(values))])
        return Histogram(float(self.awake[unit]) / max(1, read), low, high, [int(count) for count in counts])


@dataclass(frozen=True)
class Histogram:
    """Distribution of a unit's values over images.

    Attributes:
        awake: share of the images whose value is above 0.
        low, high: the smallest and the largest value in the sample.
        counts: number of sampled images per bin; the bins have equal width from low to high.
    """

    awake: float
    low: float
    high: float
    counts: list[int]
