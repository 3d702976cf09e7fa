"""Transforms that change every pixel a little: noise and blur."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vital_exp.images.randomness import RandomStreams
from vital_exp.images.transforms.resampling import along_axes
from vital_exp.values import interval, number


class UniformNoise:
    """Adds independent noise to every value, uniform in [-amplitude, amplitude], in the network's normalised space.

    Examples:
        >>> import torch
        >>> from vital_exp.images.randomness import RandomStreams
        >>> from vital_exp.images.transforms.noise import UniformNoise
        >>> noisy = UniformNoise(0.1)(torch.zeros(1, 3, 8, 8), RandomStreams(0, ["class-0"]), step=0)
        >>> bool((noisy.abs() <= 0.1).all())
        True
    """

    def __init__(self, amplitude: float) -> None:
        self.amplitude = number("transforms.uniform_noise.amplitude", amplitude, 0, 1000)

    def __call__(self, pictures: Tensor, streams: RandomStreams, step: int) -> Tensor:
        """Return the noisy pictures, (N, C, H, W)."""
        if self.amplitude == 0:
            return pictures
        noise = 2 * streams.uniform(pictures.shape[1:], "uniform noise", step) - 1
        return pictures + self.amplitude * noise.to(pictures)


class NormalNoise:
    """Adds independent noise N(0, std^2) to every value, in the network's normalised space."""

    def __init__(self, std: float) -> None:
        self.std = number("transforms.normal_noise.std", std, 0, 1000)

    def __call__(self, pictures: Tensor, streams: RandomStreams, step: int) -> Tensor:
        """Return the noisy pictures, (N, C, H, W)."""
        if self.std == 0:
            return pictures
        return pictures + self.std * streams.normal(pictures.shape[1:], "normal noise", step).to(pictures)


class GaussianBlur:
    """Blurs every picture by a Gaussian whose standard deviation is uniform in [low, high] pixels.

    At the border the picture is mirrored about its outermost pixels.

    Args:
        sigma: [low, high] in pixels of the picture, whatever its size.
    """

    def __init__(self, sigma: Sequence[float]) -> None:
        self.sigma = interval("transforms.blur.sigma", sigma, 0, 100)

    def __call__(self, pictures: Tensor, streams: RandomStreams, step: int) -> Tensor:
        """Return the blurred pictures, (N, C, H, W)."""
        low, high = self.sigma
        sigma = (low + (high - low) * streams.uniform((1,), "blur", step)[:, 0].double()).to(pictures)
        rows, columns = (blur_weights(sigma, side) for side in pictures.shape[-2:])
        return along_axes(pictures, rows, columns)


def blur_weights(sigma: Tensor, side: int) -> Tensor:
    """Return the weights (N, side, side) of pixels j in blurred pixels i along an axis, for sigmas (N,)."""
    place = torch.arange(side).to(sigma)
    last = side - 1
    mirrored = torch.stack([place, -place, 2 * last - place])  # each pixel, and its mirror images beyond both ends
    there = torch.stack([place >= 0, place > 0, place < last])  # the outermost pixels have no mirror image
    distance = (mirrored[:, None, :] - place[:, None]) / sigma.clamp(min=1e-3)[:, None, None, None]  # (N, 3, i, j)
    weights = (torch.exp(-0.5 * distance.square()) * there[:, None, :]).sum(dim=1)
    return weights / weights.sum(dim=-1, keepdim=True)
