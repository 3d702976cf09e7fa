"""Random crops resized to the network's input: a picture seen from nearer, as MACO and Feature Accentuation do it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from vital_exp.images.randomness import RandomStreams
from vital_exp.images.transforms.base import Resizing, TakesViews
from vital_exp.images.transforms.resampling import along_axes, antialiased_boxes, axis_weights, boxes
from vital_exp.values import flag, interval, number, one_of, whole_number

POSITIONS = ("uniform", "centre")
CENTRE_STD = 0.15  # standard deviation of a box's centre, as a share of the side (Horama, xplique)
SMALLEST, WHOLE = 0.05, 1.0  # bounds of a box's size, as shares of the side (xplique)


class Crop(Resizing, TakesViews, ABC):
    """Crops a box of random size and position from every picture at each step, and resizes the box.

    Args:
        position: ``"uniform"``: anywhere inside the picture. ``"centre"``: the centre of the box is normal about the
            picture's centre, with standard deviation 0.15 of the side; the box may reach beyond the border, into grey.
        antialias: average over the area that a pixel of the result covers. This matters for boxes larger than the
            result, and costs time.
        size: side or [height, width] of the result; None for the network's input size.
    """

    def __init__(self, position: str, antialias: bool, size: int | Sequence[int] | None) -> None:
        super().__init__(size, "transforms.crop.size")
        self.position = one_of("transforms.crop.position", position, POSITIONS)
        self.antialias = flag("transforms.crop.antialias", antialias)

    @abstractmethod
    def shares(self, streams: RandomStreams, step: int) -> Tensor:
        """Return the size of each picture's box as a share of the picture's sides, (N,) float64."""

    def __call__(self, pictures: Tensor, streams: RandomStreams, step: int) -> Tensor:
        """Return the resized boxes, (M, C, *size): one for each of the M streams, which may be several per picture."""
        sides = torch.tensor(pictures.shape[-2:], dtype=torch.float64)
        share = self.shares(streams, step)[:, None]  # (N, 1)
        start = (self._middles(share, streams, step) - share / 2) * sides  # (N, 2), upper left
        shape = share * sides
        (top, left), (height, width) = start.to(pictures).unbind(1), shape.to(pictures).unbind(1)
        crop = antialiased_boxes if self.antialias else boxes
        return crop(pictures, top, left, (height, width), self.size_of(pictures))

    def _middles(self, share: Tensor, streams: RandomStreams, step: int) -> Tensor:
        """Return the boxes' centres as shares of the sides, (N, 2): vertical, horizontal."""
        if self.position == "centre":
            return 0.5 + CENTRE_STD * streams.normal((2,), "crop position", step).double()
        return share / 2 + (1 - share) * streams.uniform((2,), "crop position", step)


class NormalCrop(Crop):
    """Boxes whose size is N(mean, std^2) times the side, clipped to 0.05 .. 1; MACO's with mean 0.25 and std 0.1."""

    def __init__(
        self,
        mean: float,
        std: float,
        position: str = "uniform",
        antialias: bool = False,
        size: int | Sequence[int] | None = None,
    ) -> None:
        super().__init__(position, antialias, size)
        self.mean = number("transforms.crop.mean", mean, 0, 1)
        self.std = number("transforms.crop.std", std, 0, 1)

    def shares(self, streams: RandomStreams, step: int) -> Tensor:
        """Return mean + std * normal, clipped, (N,)."""
        return _normal_shares(self.mean, self.std, streams, step)


class ShrinkingCrop(Crop):
    """Boxes whose mean size changes linearly from ``first`` to ``last`` within ``steps`` steps: xplique's MACO.

    Args:
        first, last: mean sizes at the first and the last step, as shares of the side.
        std: standard deviation about the mean; the size is clipped to 0.05 .. 1.
        steps: number of steps of the change; the mean stays at ``last`` afterwards.
        position, antialias, size: as for :class:`Crop`.
    """

    def __init__(
        self,
        first: float,
        last: float,
        std: float,
        steps: int,
        position: str = "centre",
        antialias: bool = False,
        size: int | Sequence[int] | None = None,
    ) -> None:
        super().__init__(position, antialias, size)
        self.first = number("transforms.crop.first", first, 0, 1)
        self.last = number("transforms.crop.last", last, 0, 1)
        self.std = number("transforms.crop.std", std, 0, 1)
        self.steps = whole_number("transforms.crop.steps", steps)

    def shares(self, streams: RandomStreams, step: int) -> Tensor:
        """Return the step's mean + std * normal, clipped, (N,)."""
        way = min(1.0, step / max(1, self.steps - 1))
        return _normal_shares(self.first + (self.last - self.first) * way, self.std, streams, step)


class UniformCrop(Crop):
    """Boxes whose size is uniform in [low, high] of the side: Accentuation's, with 0.05 and 0.99, and Horama's.

    Args:
        share: [low, high].
        horama_quirk: draw from [high, 2 high - low] instead, as Horama's code does for an interval [low, high].
        position, antialias, size: as for :class:`Crop`.

    Examples:
        >>> import torch
        >>> from vital_exp.images.randomness import RandomStreams
        >>> from vital_exp.images.transforms.crops import UniformCrop
        >>> crop = UniformCrop([0.2, 0.4], size=224)
        >>> crop(torch.rand(1, 3, 512, 512), RandomStreams(0, ["class-0"]), step=0).shape
        torch.Size([1, 3, 224, 224])
    """

    def __init__(
        self,
        share: Sequence[float],
        horama_quirk: bool = False,
        position: str = "uniform",
        antialias: bool = False,
        size: int | Sequence[int] | None = None,
    ) -> None:
        super().__init__(position, antialias, size)
        self.low, self.high = interval("transforms.crop.share", share, 0.001, 1)
        if flag("transforms.crop.horama_quirk", horama_quirk):
            self.low, self.high = self.high, 2 * self.high - self.low

    def shares(self, streams: RandomStreams, step: int) -> Tensor:
        """Return low + (high - low) * uniform, (N,)."""
        return self.low + (self.high - self.low) * streams.uniform((1,), "crop size", step)[:, 0].double()


class ToInputSize(Resizing):
    """Resizes whole pictures to the network's input size, bilinear with antialiasing; unchanged if they have this size.

    Args:
        size: side or [height, width]; None for the network's input size.

    Examples:
        >>> import torch
        >>> from vital_exp.images.randomness import RandomStreams
        >>> from vital_exp.images.transforms.crops import ToInputSize
        >>> ToInputSize(32)(torch.rand(1, 3, 48, 64), RandomStreams(0, ["class-0"]), step=0).shape
        torch.Size([1, 3, 32, 32])
    """

    def __init__(self, size: int | Sequence[int] | None = None) -> None:
        super().__init__(size, "transforms.input_size.size")

    def __call__(self, pictures: Tensor, streams: RandomStreams, step: int) -> Tensor:
        """Return the resized pictures, (N, C, *size)."""
        size = self.size_of(pictures)
        if size == tuple(pictures.shape[-2:]):
            return pictures
        zero = torch.zeros(1, dtype=pictures.dtype, device=pictures.device)
        rows, columns = (
            axis_weights(zero, zero + side, count, side) for side, count in zip(pictures.shape[-2:], size, strict=True)
        )
        return along_axes(pictures, rows, columns)


def _normal_shares(mean: float, std: float, streams: RandomStreams, step: int) -> Tensor:
    drawn = streams.normal((1,), "crop size", step)[:, 0].double()
    return (mean + std * drawn).clamp(SMALLEST, WHOLE)
