"""Transforms that change every pixel a little: noise and blur."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vital_exp.images.randomness import RandomStreams
from vital_exp.images.transforms.resampling import along_axes
from vital_exp.values import interval, number


class UniformNoise:
    """Adds noise uniform in [-amplitude, amplitude], in the network's normalised space; every pixel has its own.

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
    """Adds noise N(0, std^2), in the network's normalised space; every pixel has its own."""

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
        sigma: [low, high] for a picture of any size, in its own pixels.
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
    """Return the weights of an axis's pixels in each of its blurred pixels, (N, side, side), for (N,) sigmas."""
    place = torch.arange(side).to(sigma)
    last = side - 1
    mirrored = torch.stack([place, -place, 2 * last - place])  # each pixel, and its images beyond either end
    there = torch.stack([place >= 0, place > 0, place < last])  # the outermost pixels have no image of their own
    distance = (mirrored[:, None, :] - place[:, None]) / sigma.clamp(min=1e-3)[:, None, None, None]  # (N, 3, i, j)
    weights = (torch.exp(-0.5 * distance.square()) * there[:, None, :]).sum(dim=1)
    return weights / weights.sum(dim=-1, keepdim=True)
