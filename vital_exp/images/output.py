"""Finished pictures as files hold them: 8 bits, with a transparency map (docs/methods/transparency_map.md)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from vital_exp.models.channels import GREY, RGB

WHITE = 255  # the largest value of 8 bits
ARRAY = ".npy"  # the file of a picture that is neither grey nor RGB, beside an image that shows the picture
COLOUR_PERCENTILES = (0.01, 0.99)
# Standard deviation of the Gaussian that smooths the followed map, as a share of the shorter side. Our choice: the
# gradients of single pixels are noise (benchmarks/results/masks.md).
SMOOTHING = 0.04


def to_uint8(picture: Tensor) -> Tensor:
    """Round values in [0, 1] to 0..255, uint8; truncating would darken every picture by half a level.

    Examples:
        >>> import torch
        >>> from vital_exp.images.output import to_uint8
        >>> to_uint8(torch.tensor([0.0, 0.499, 1.0]))
        tensor([  0, 127, 255], dtype=torch.uint8)
    """
    return (picture.detach().cpu() * WHITE).round().clamp(0, WHITE).to(torch.uint8)


def as_image(picture: Tensor) -> Image.Image:
    """Return a picture (C, H, W) uint8 as an image: grey (C = 1) or RGB (3), a transparency map as the last channel."""
    table = picture.permute(1, 2, 0).contiguous().numpy()  # (C, H, W) -> (H, W, C)
    return Image.fromarray(table[..., 0] if table.shape[2] == GREY else table)


def stored(pictures: Tensor) -> Tensor:
    """Return pictures (..., C, H, W) in [0, 1] as files hold them: RGB and grey uint8, others float32, on the CPU."""
    if pictures.ndim < 3 or pictures.shape[-3] in (GREY, RGB):
        return to_uint8(pictures)
    return pictures.detach().cpu().float().clamp(0, 1)


def in_unit(kept: Tensor) -> Tensor:
    """Return pictures of :func:`stored` as float32 in [0, 1]."""
    return kept.float() / WHITE if kept.dtype == torch.uint8 else kept


def quantised(picture: Tensor) -> Tensor:
    """Return the picture as read back from its file: float32 in [0, 1] on the CPU, RGB and grey in steps of 1/255."""
    return in_unit(stored(picture))


def read_picture(path: Path) -> Tensor:
    """Return the picture of an image file that a run wrote, float32 (C, H, W) in [0, 1].

    Where an array lies beside the image file, the picture is read from the array.

    Raises:
        OSError, ValueError: the file cannot be read.
    """
    if (array := path.with_name(f"{path.stem}{ARRAY}")).is_file():
        return torch.from_numpy(np.load(array, allow_pickle=False))
    with Image.open(path, formats=("PNG",)) as image:
        table = np.array(image if image.mode == "L" else image.convert("RGB"))
    return in_unit(torch.from_numpy(table[..., None] if table.ndim == 2 else table).permute(2, 0, 1))


def resized(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    """Return pictures (N, C, H, W) resized to (height, width), bilinear with antialiasing; unchanged if they have it.

    Examples:
        >>> import torch
        >>> from vital_exp.images.output import resized
        >>> resized(torch.ones(1, 3, 64, 64), (32, 48)).shape
        torch.Size([1, 3, 32, 48])
    """
    if tuple(pictures.shape[-2:]) == tuple(size):
        return pictures
    return functional.interpolate(pictures, size, mode="bilinear", antialias=True)


def scaled_size(size: Sequence[int], factor: float) -> tuple[int, int]:
    """Return a (height, width) in px times a factor, rounded; each side is at least 1.

    Examples:
        >>> from vital_exp.images.output import scaled_size
        >>> scaled_size((224, 224), 0.714)
        (160, 160)
    """
    height, width = (max(1, round(factor * side)) for side in size)
    return height, width


def transparency(sensitivity: Tensor, percentile: float) -> Tensor:
    """Return the transparency map of each picture, (N, 1, H, W) in [0, 1].

    The mean over channels is clipped at a percentile and divided by its maximum; zeros everywhere stay zeros.

    Args:
        sensitivity: (N, C, H, W), the sum over steps of |dL/dx|.
        percentile: in (0, 100]; 98 as published for VITAL (arXiv 2503.22399), 80 for MACO (arXiv 2306.06805).

    Examples:
        >>> import torch
        >>> from vital_exp.images.output import transparency
        >>> sensitivity = torch.tensor([[[[0.0, 1.0], [2.0, 4.0]]]])
        >>> transparency(sensitivity, percentile=100)
        tensor([[[[0.0000, 0.2500],
                  [0.5000, 1.0000]]]])
    """
    mean = sensitivity.float().mean(dim=1, keepdim=True)  # (N, 1, H, W)
    most = mean.flatten(1).quantile(percentile / 100, dim=1).view(-1, 1, 1, 1)
    clipped = mean.minimum(most)
    return clipped / clipped.amax(dim=(1, 2, 3), keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)


def smoothed_transparency(sensitivity: Tensor, percentile: float) -> Tensor:
    """Return :func:`transparency` of a sensitivity that is smoothed and shifted to the minimum 0, (N, 1, H, W).

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
    """Return the matrix (side, side) of a Gaussian smoothing; every row sums to 1, those at the borders too."""
    places = torch.arange(side, dtype=torch.float32)
    weights = torch.exp(-((places[:, None] - places) ** 2) / (2 * deviation**2))
    return weights / weights.sum(dim=1, keepdim=True)


def masked_picture(picture: Tensor, mask: Tensor) -> Tensor:
    """Return a picture with its map as alpha, in [0, 1]: RGBA (4, H, W), or grey with alpha (2, H, W).

    Colours are clipped to their 1st and 99th percentiles and stretched to [0, 1].
    """
    low, high = picture.float().flatten().quantile(torch.tensor(COLOUR_PERCENTILES))
    stretched = (picture.float().clamp(low, high) - low) / (high - low).clamp(min=torch.finfo(torch.float32).eps)
    return torch.cat([stretched, mask.float()])
