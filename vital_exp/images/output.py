"""From a finished picture to what is saved: 8 bits, and the transparency map (docs/methods/vital.md)."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

COLOUR_PERCENTILES = (0.01, 0.99)
# What is added up over the steps: the part of the gradient that the picture can follow, or the gradient, as published.
MASKS = ("followed", "published")
# Standard deviation of the Gaussian that smooths the followed map, as a share of the shorter side. Ours: pixel by pixel
# a gradient is noise, and an object is no set of single pixels (benchmarks/results/masks.md).
SMOOTHING = 0.04


def to_uint8(picture: Tensor) -> Tensor:
    """Round values in [0, 1] to 0..255, uint8; truncating would darken every picture by half a level."""
    return (picture.detach().cpu() * 255).round().clamp(0, 255).to(torch.uint8)


def as_image(picture: Tensor) -> Image.Image:
    """Return a picture (3 or 4, H, W) uint8 as an image of its bytes, RGB or RGBA."""
    return Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())  # (C, H, W) -> (H, W, C)


def quantised(picture: Tensor) -> Tensor:
    """Return the picture as its PNG file holds it: float32 multiples of 1/255 in [0, 1], on the CPU."""
    return to_uint8(picture).float() / 255


def resized(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    """Return pictures (N, 3, H, W) at another (height, width), bilinear with antialiasing; unchanged at their own."""
    if tuple(pictures.shape[-2:]) == tuple(size):
        return pictures
    return functional.interpolate(pictures, size, mode="bilinear", antialias=True)


def transparency(sensitivity: Tensor, percentile: float) -> Tensor:
    """Return the map of each picture, (N, 1, H, W) in [0, 1].

    Args:
        sensitivity: (N, 3, H, W) sum over steps of |dL/dx|; its channel mean is clipped at a percentile and divided
            by its maximum. A map that is zero everywhere stays zero.
        percentile: in (0, 100]; 98 as published for VITAL (arXiv 2503.22399), 80 for MACO (arXiv 2306.06805).
    """
    mean = sensitivity.float().mean(dim=1, keepdim=True)  # (N, 1, H, W)
    most = mean.flatten(1).quantile(percentile / 100, dim=1).view(-1, 1, 1, 1)
    clipped = mean.minimum(most)
    return clipped / clipped.amax(dim=(1, 2, 3), keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)


def smoothed_transparency(sensitivity: Tensor, percentile: float) -> Tensor:
    """Return :func:`transparency` of a smoothed map whose minimum is 0, (N, 1, H, W) in [0, 1].

    Args:
        sensitivity: (N, C, H, W), at least 0.
        percentile: as in :func:`transparency`.
    """
    mean = sensitivity.float().mean(dim=1, keepdim=True)  # (N, 1, H, W)
    deviation = SMOOTHING * min(mean.shape[-2:])
    rows, columns = (_smoothing(side, deviation).to(mean) for side in mean.shape[-2:])
    smooth = rows @ mean @ columns.T
    return transparency(smooth - smooth.amin(dim=(2, 3), keepdim=True), percentile)


def _smoothing(side: int, deviation: float) -> Tensor:
    """Return the matrix (side, side) of a Gaussian whose weights have the sum 1 at the borders too."""
    places = torch.arange(side, dtype=torch.float32)
    weights = torch.exp(-((places[:, None] - places) ** 2) / (2 * deviation**2))
    return weights / weights.sum(dim=1, keepdim=True)


def masked_picture(picture: Tensor, mask: Tensor) -> Tensor:
    """Return RGBA (4, H, W) in [0, 1]: colours clipped to their 1..99 percentiles and stretched, the map as alpha."""
    low, high = picture.float().flatten().quantile(torch.tensor(COLOUR_PERCENTILES))
    stretched = (picture.float().clamp(low, high) - low) / (high - low).clamp(min=torch.finfo(torch.float32).eps)
    return torch.cat([stretched, mask.float()])
