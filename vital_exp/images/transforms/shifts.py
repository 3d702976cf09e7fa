"""Transforms that move pixels without mixing them: jitter, padding, mirroring."""

from __future__ import annotations

import torch
from torch import Tensor

from vital_exp.images.randomness import RandomStreams
from vital_exp.images.transforms.base import OUTSIDE, PUBLISHED_SIDE, scaled_pixels
from vital_exp.values import number, one_of, whole_number


class CircularJitter:
    """Rolls every picture by integers uniform in [-pixels, pixels] along both axes (VITAL).

    Args:
        pixels: the largest shift for a picture whose shorter side is 224; scaled with the side and rounded.

    Examples:
        >>> import torch
        >>> from vital_exp.images.randomness import RandomStreams
        >>> from vital_exp.images.transforms.shifts import CircularJitter
        >>> streams = RandomStreams(0, ["class-0"])
        >>> picture = torch.arange(224.0 * 224).view(1, 1, 224, 224)
        >>> rolled = CircularJitter(30)(picture, streams, step=0)
        >>> torch.equal(rolled.flatten().sort().values, picture.flatten())  # every value is still there
        True
    """

    def __init__(self, pixels: int) -> None:
        self.pixels = whole_number("transforms.jitter.pixels", pixels)

    def __call__(self, pictures: Tensor, streams: RandomStreams, step: int) -> Tensor:
        """Return the rolled pictures, (N, C, H, W)."""
        most = round(self.pixels * min(pictures.shape[-2:]) / PUBLISHED_SIDE)
        shifts = streams.integers(-most, most, 2, "jitter", step)
        rolled: Tensor = _Roll.apply(pictures, shifts.to(pictures.device))
        return rolled


class CropJitter:
    """Crops every picture by ``pixels`` along each axis, at an offset uniform in [0, pixels] (Lucid).

    Args:
        pixels: for a picture whose shorter side is 224; scaled with the side, rounded down.

    Examples:
        >>> import torch
        >>> from vital_exp.images.randomness import RandomStreams
        >>> from vital_exp.images.transforms.shifts import CropJitter
        >>> CropJitter(8)(torch.rand(1, 3, 224, 224), RandomStreams(0, ["class-0"]), step=0).shape
        torch.Size([1, 3, 216, 216])
    """

    def __init__(self, pixels: int) -> None:
        self.pixels = whole_number("transforms.crop_jitter.pixels", pixels, 0, PUBLISHED_SIDE - 1)

    def __call__(self, pictures: Tensor, streams: RandomStreams, step: int) -> Tensor:
        """Return the crops, (N, C, H - d, W - d), with d the scaled pixels."""
        most = scaled_pixels(self.pixels, pictures)
        offsets = streams.integers(0, most, 2, "crop jitter", step)
        rolled: Tensor = _Roll.apply(pictures, -offsets.to(pictures.device))
        return rolled[..., : pictures.shape[-2] - most, : pictures.shape[-1] - most]


class Pad:
    """Adds a frame around every picture.

    Args:
        pixels: width of the frame for a picture whose shorter side is 224; scaled with the side, rounded down.
        outside: the values of the frame, ``"grey"``, ``"reflect"`` or ``"edge"``.

    Examples:
        >>> import torch
        >>> from vital_exp.images.randomness import RandomStreams
        >>> from vital_exp.images.transforms.shifts import Pad
        >>> Pad(12)(torch.rand(1, 3, 224, 224), RandomStreams(0, ["class-0"]), step=0).shape
        torch.Size([1, 3, 248, 248])
    """

    def __init__(self, pixels: int, outside: str = "grey") -> None:
        self.pixels = whole_number("transforms.pad.pixels", pixels, 0, PUBLISHED_SIDE - 1)
        self.outside = one_of("transforms.pad.outside", outside, OUTSIDE)

    def __call__(self, pictures: Tensor, streams: RandomStreams, step: int) -> Tensor:
        """Return the framed pictures, (N, C, H + 2 p, W + 2 p), with p the scaled width."""
        width = scaled_pixels(self.pixels, pictures)
        if width == 0:
            return pictures
        rows = self._framed(pictures.transpose(-1, -2), width).transpose(-1, -2)
        return self._framed(rows, width)

    def _framed(self, pictures: Tensor, width: int) -> Tensor:
        """Pad both ends of the last axis; the gradient of torch's padding adds values in random order on CUDA."""
        if self.outside == "reflect":
            before, after = pictures[..., :width].flip(-1), pictures[..., -width:].flip(-1)
        else:
            before, after = (edge.expand(*edge.shape[:-1], width) for edge in (pictures[..., :1], pictures[..., -1:]))
        if self.outside == "grey":
            before, after = torch.zeros_like(before), torch.zeros_like(after)
        return torch.cat([before, pictures, after], dim=-1)


class HorizontalFlip:
    """Mirrors each picture with a probability.

    Examples:
        >>> import torch
        >>> from vital_exp.images.randomness import RandomStreams
        >>> from vital_exp.images.transforms.shifts import HorizontalFlip
        >>> HorizontalFlip(1.0)(torch.tensor([[[[1.0, 2.0]]]]), RandomStreams(0, ["class-0"]), step=0)
        tensor([[[[2., 1.]]]])
    """

    def __init__(self, probability: float) -> None:
        self.probability = number("transforms.flip.probability", probability, 0, 1)

    def __call__(self, pictures: Tensor, streams: RandomStreams, step: int) -> Tensor:
        """Return the pictures, some mirrored, (N, C, H, W)."""
        if self.probability == 0:
            return pictures
        flip = (streams.uniform((1, 1, 1), "flip", step) < self.probability).to(pictures.device)
        return torch.where(flip, pictures.flip(-1), pictures)


class _Roll(torch.autograd.Function):
    """A circular shift of each picture, all by one gather; the backward pass is the opposite shift."""

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
    each = torch.arange(count, device=pictures.device)[:, None, None]
    rolled = pictures.permute(0, 2, 3, 1)[each, rows[:, :, None], columns[:, None, :]]  # (N, H, W, C)
    return rolled.permute(0, 3, 1, 2).contiguous()
