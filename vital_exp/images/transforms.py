"""Random transforms of the pictures before each step, one random stream per picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from vital_exp.errors import UsageError
from vital_exp.images.randomness import RandomStreams

# The published amounts are for pictures of this side; other sizes are jittered by the same share of their side.
PUBLISHED_SIDE = 224


class Transform(Protocol):
    """Maps pictures (N, 3, H, W) to transformed ones; the same step of the same target draws the same numbers."""

    def __call__(self, pictures: Tensor, streams: RandomStreams, step: int) -> Tensor:
        """Return the transformed pictures."""
        ...


class Compose:
    """Applies transforms in the order of their names' appearance in the configuration."""

    def __init__(self, transforms: Mapping[str, Transform]) -> None:
        self.transforms = dict(transforms)

    def __call__(self, pictures: Tensor, streams: RandomStreams, step: int) -> Tensor:
        """Return the pictures after every transform."""
        for transform in self.transforms.values():
            pictures = transform(pictures, streams, step)
        return pictures


class CircularJitter:
    """Rolls every picture by integers uniform in [-pixels, pixels] along both axes (METHODS 1.2).

    Args:
        pixels: the largest shift for a picture whose shorter side is 224; scaled with the side.
    """

    def __init__(self, pixels: int) -> None:
        if pixels < 0:
            raise UsageError("transforms.jitter.pixels", pixels, "at least 0")
        self.pixels = pixels

    def __call__(self, pictures: Tensor, streams: RandomStreams, step: int) -> Tensor:
        """Return the rolled pictures, (N, 3, H, W)."""
        most = round(self.pixels * min(pictures.shape[-2:]) / PUBLISHED_SIDE)
        shifts = streams.integers(-most, most, 2, "jitter", step)
        rolled: Tensor = _Roll.apply(pictures, shifts.to(pictures.device))
        return rolled


class HorizontalFlip:
    """Mirrors each picture with a probability."""

    def __init__(self, probability: float) -> None:
        if not 0 <= probability <= 1:
            raise UsageError("transforms.flip.probability", probability, "between 0 and 1")
        self.probability = probability

    def __call__(self, pictures: Tensor, streams: RandomStreams, step: int) -> Tensor:
        """Return the pictures, some mirrored, (N, 3, H, W)."""
        if self.probability == 0:
            return pictures
        flip = (streams.uniform((1, 1, 1), "flip", step) < self.probability).to(pictures.device)
        return torch.where(flip, pictures.flip(-1), pictures)


class _Roll(torch.autograd.Function):
    """A circular shift per picture in one gather; its gradient is the opposite shift."""

    @staticmethod
    def forward(ctx, pictures: Tensor, shifts: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(shifts)
        return _roll(pictures, shifts)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        (shifts,) = ctx.saved_tensors
        return _roll(gradient, -shifts), None


def _roll(pictures: Tensor, shifts: Tensor) -> Tensor:
    count, _, height, width = pictures.shape
    rows = (torch.arange(height, device=pictures.device) - shifts[:, :1]) % height  # (N, H)
    columns = (torch.arange(width, device=pictures.device) - shifts[:, 1:]) % width  # (N, W)
    number = torch.arange(count, device=pictures.device)[:, None, None]
    rolled = pictures.permute(0, 2, 3, 1)[number, rows[:, :, None], columns[:, None, :]]  # (N, H, W, 3)
    return rolled.permute(0, 3, 1, 2).contiguous()
