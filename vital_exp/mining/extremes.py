"""The running largest and smallest values of every unit: memory of k per unit, however many images pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NONE = -1  # number of no image: fewer than k have passed


@dataclass
class Extremes:
    """The k images with the largest values of each unit of a layer, and the k with the smallest.

    Attributes:
        values: (2, U, k), the largest in descending and the smallest in ascending order.
        images: (2, U, k) int64, the images' numbers; of equal values the image that came first comes first.
    """

    values: Tensor
    images: Tensor

    @classmethod
    def empty(cls, units: int, k: int) -> Extremes:
        """Return the extremes of no image."""
        worst = torch.tensor([-torch.inf, torch.inf]).view(2, 1, 1)
        return cls(worst.expand(2, units, k).clone(), torch.full((2, units, k), NONE))

    def add(self, values: Tensor, numbers: Tensor) -> None:
        """Let more images pass.

        Args:
            values: (B, U) float32 on the CPU.
            numbers: (B,) of the images, larger than all before.
        """
        k = self.values.shape[-1]
        beats = (values > self.values[0, :, -1]) | (values < self.values[1, :, -1])  # (B, U)
        units = beats.any(dim=0).nonzero()[:, 0]  # few, once many images have passed
        if len(units) == 0:
            return
        new = values[:, units].T  # (u, B)
        candidates = torch.cat([self.values[:, units], new.expand(2, -1, -1)], dim=-1)  # (2, u, k + B)
        images = torch.cat([self.images[:, units], numbers.expand(2, len(units), -1)], dim=-1)
        sign = torch.tensor([-1.0, 1.0]).view(2, 1, 1)
        order = (sign * candidates).argsort(dim=-1, stable=True)[..., :k]
        self.values[:, units] = candidates.gather(-1, order)
        self.images[:, units] = images.gather(-1, order)
