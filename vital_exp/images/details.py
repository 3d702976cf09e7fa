"""Details of pictures by their size: the bands of a Haar wavelet transform, with colours apart from brightness."""

from __future__ import annotations

import torch
from torch import Tensor

MOST_BANDS = 3  # details of 2, 4 and 8 px; larger structures are what the network's layers compare
FEWEST_SQUARES = 28  # of a band along the shorter side, as of 8 px in 224: larger ones are things, no details


def bands_of(side: int) -> int:
    """Return the number of bands of a picture whose shorter side is ``side`` px: at most 3, each of 28 squares or more.

    Examples:
        >>> from vital_exp.images.details import bands_of
        >>> bands_of(224), bands_of(112), bands_of(32)
        (3, 2, 0)
    """
    bands, side = 0, side // 2
    while side >= FEWEST_SQUARES and bands < MOST_BANDS:
        bands, side = bands + 1, side // 2
    return bands


def details(pictures: Tensor, bands: int) -> list[Tensor]:
    """Return the Haar coefficients of each band, from the finest one, (N, 3 C', P) in the units of ``pictures``.

    C' is 1 for grey pictures; others have the mean over their channels, and each channel's difference from the mean.
    A coefficient compares the halves of a square of 2 x 2 values: left and right, upper and lower, and both diagonals.
    The next band has the mean of each square for a value. P is the number of squares; the last row or column of an odd
    side is left out.

    Args:
        pictures: (N, C, H, W); H and W are at least 2 to the power of ``bands``.
        bands: the number of bands.

    Examples:
        >>> import torch
        >>> from vital_exp.images.details import details
        >>> [band.flatten().tolist() for band in details(torch.tensor([[[[4.0, 2.0], [1.0, 1.0]]]]), bands=1)]
        [[0.5, 1.0, 0.5]]
    """
    mean = pictures.mean(dim=1, keepdim=True)
    rest = pictures if pictures.shape[1] == 1 else torch.cat([mean, pictures - mean], dim=1)  # (N, C', H, W)
    found = []
    for _ in range(bands):
        height, width = (side // 2 * 2 for side in rest.shape[-2:])
        upper, lower = rest[..., :height:2, :width], rest[..., 1:height:2, :width]
        sums, differences = (upper + lower) / 2, (upper - lower) / 2
        left, right = sums[..., ::2], sums[..., 1::2]
        up, down = differences[..., ::2], differences[..., 1::2]
        band = torch.cat([(left - right) / 2, (up + down) / 2, (up - down) / 2], dim=1)  # (N, 3 C', H / 2, W / 2)
        found.append(band.flatten(2))
        rest = (left + right) / 2
    return found
