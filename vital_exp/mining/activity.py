"""How often, and how far, images drive units: the share that wakes each, and a histogram."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Images whose values are kept for histograms, evenly over the folder: the shares of bins are then right to about 0.02.
IMAGES_KEPT = 2000
BINS = 24


class Activity:
    """The values of units over the images of a folder.

    Attributes:
        awake: (U,) int64, images whose value is above 0.
        sample: (U, S) float32, the values of every so manieth image; NaN where it is not read.
        step: of the folder's images every how manieth is in the sample.
    """

    def __init__(self, units: int, images: int, device: torch.device | str = "cpu") -> None:
        self.step = -(-images // IMAGES_KEPT)
        self.awake = torch.zeros(units, dtype=torch.int64, device=device)
        self.sample = torch.full((units, -(-images // self.step)), torch.nan, device=device)

    def add(self, values: Tensor, numbers: Tensor) -> None:
        """Take in values (N, U) of images with these numbers, (N,)."""
        self.awake += (values > 0).sum(dim=0)
        kept = numbers % self.step == 0
        self.sample[:, numbers[kept] // self.step] = values[kept].float().T

    def histogram(self, unit: int, read: int) -> Histogram:
        """Return the histogram of a unit, of a folder of which so many images were read."""
        values = self.sample[unit]
        values = values[values.isfinite()].cpu()
        low, high = (float(value) for value in values.aminmax())
        counts = torch.histc(values, BINS, low, high) if high > low else torch.tensor([float(len(values))])
        return Histogram(float(self.awake[unit]) / max(1, read), low, high, [int(count) for count in counts])


@dataclass(frozen=True)
class Histogram:
    """How images drive a unit.

    Attributes:
        awake: share of the images whose value is above 0.
        low, high: the least and the largest value of the images that were sampled.
        counts: of these images in bins of equal width from low to high.
    """

    awake: float
    low: float
    high: float
    counts: list[int]
