"""Transforms that scale and rotate every picture about its centre, each picture by its own amount."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vital_exp.images.randomness import RandomStreams
from vital_exp.images.transforms.base import OUTSIDE
from vital_exp.images.transforms.resampling import affine
from vital_exp.values import interval, number, numbers, one_of


class Scale:
    """Scales every picture by one of ``factors``, with equal probability; a factor above 1 crops the picture (Lucid).

    Args:
        factors: each above 0; a factor that is listed twice is drawn twice as often.
        outside: the values beyond the border: ``"grey"``, ``"reflect"`` or ``"edge"``.
    """

    def __init__(self, factors: Sequence[float], outside: str = "grey") -> None:
        self.factors = numbers("transforms.scale.factors", factors, 0.01, 100)
        self.outside = one_of("transforms.scale.outside", outside, OUTSIDE)

    def __call__(self, pictures: Tensor, streams: RandomStreams, step: int) -> Tensor:
        """Return the scaled pictures, (N, C, H, W)."""
        factor = _drawn(self.factors, streams, "scale", step)
        still = torch.zeros_like(factor)
        return affine(pictures, inverse_map(still, factor, still, still), self.outside)


class Rotate:
    """Rotates every picture counter-clockwise by one of ``degrees``, with equal probability (Lucid).

    Args:
        degrees: an angle that is listed twice is drawn twice as often.
        outside: the values beyond the border: ``"grey"``, ``"reflect"`` or ``"edge"``.
    """

    def __init__(self, degrees: Sequence[float], outside: str = "grey") -> None:
        self.degrees = numbers("transforms.rotate.degrees", degrees, -360, 360)
        self.outside = one_of("transforms.rotate.outside", outside, OUTSIDE)

    def __call__(self, pictures: Tensor, streams: RandomStreams, step: int) -> Tensor:
        """Return the rotated pictures, (N, C, H, W)."""
        angle = _drawn(self.degrees, streams, "rotate", step)
        still = torch.zeros_like(angle)
        return affine(pictures, inverse_map(angle, torch.ones_like(angle), still, still), self.outside)


class RandomAffine:
    """Rotates, scales and shifts every picture, each amount uniform in an interval.

    Args:
        degrees: the angle is in [-degrees, degrees].
        translate: the shift along each axis is in [-translate, translate], as a share of the side.
        scale: [low, high] of the factor.
        outside: the values beyond the border: ``"grey"``, ``"reflect"`` or ``"edge"``.
    """

    def __init__(self, degrees: float, translate: float, scale: Sequence[float], outside: str = "grey") -> None:
        self.degrees = number("transforms.affine.degrees", degrees, 0, 180)
        self.translate = number("transforms.affine.translate", translate, 0, 1)
        self.scale = interval("transforms.affine.scale", scale, 0.01, 100)
        self.outside = one_of("transforms.affine.outside", outside, OUTSIDE)

    def __call__(self, pictures: Tensor, streams: RandomStreams, step: int) -> Tensor:
        """Return the transformed pictures, (N, C, H, W)."""
        height, width = pictures.shape[-2:]
        draws = streams.uniform((4,), "affine", step).double()  # (N, 4) in [0, 1)
        low, high = self.scale
        angle = self.degrees * (2 * draws[:, 0] - 1)
        right, down = (self.translate * (2 * draws[:, 2:] - 1) * torch.tensor([width, height])).unbind(dim=1)
        return affine(pictures, inverse_map(angle, low + (high - low) * draws[:, 1], right, down), self.outside)


def inverse_map(degrees: Tensor, factor: Tensor, right: Tensor, down: Tensor) -> Tensor:
    """Return the inverse of scaling, rotating counter-clockwise, then shifting: (N, 2, 3) for (x, y, 1), y downwards.

    Args:
        degrees, factor, right, down: (N,) each; ``right`` and ``down`` are shifts in pixels.
    """
    angle = degrees.deg2rad()
    cos, sin = angle.cos() / factor, angle.sin() / factor
    x = torch.stack([cos, -sin, sin * down - cos * right], dim=1)
    y = torch.stack([sin, cos, -sin * right - cos * down], dim=1)
    return torch.stack([x, y], dim=1)


def _drawn(values: Sequence[float], streams: RandomStreams, purpose: str, step: int) -> Tensor:
    """Return one of the values for each picture, (N,) float64."""
    which = streams.integers(0, len(values) - 1, 1, purpose, step)[:, 0]
    return torch.tensor(values, dtype=torch.float64)[which]
