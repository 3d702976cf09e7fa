"""Details of pictures by their size: the bands of a Haar wavelet transform, with colours apart from brightness."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vital_exp.models.precision import exact

# The bands, from the finest one; larger structures are what the network's layers compare. Each is matched like a layer.
DETAILS = ("details of 2 px", "details of 4 px", "details of 8 px")
FEWEST_SQUARES = 28  # of a band along the shorter side, as of 8 px in 224: larger ones are things, no details


def bands_of(side: int) -> tuple[str, ...]:
    """Return the bands of a picture whose shorter side is ``side`` px: those with at least 28 squares along it.

    Examples:
        >>> from vital_exp.images.details import bands_of
        >>> bands_of(112)
        ('details of 2 px', 'details of 4 px')
        >>> bands_of(32)
        ()
    """
    return tuple(name for band, name in enumerate(DETAILS, 1) if side // 2**band >= FEWEST_SQUARES)


def details(pictures: Tensor, bands: Sequence[str]) -> dict[str, Tensor]:
    """Return the Haar coefficients of each band, (N, 3 C', P) in the units of ``pictures``, float32 or float64.

    C' is 1 for grey pictures; others have the mean over their channels, and each channel's difference from the mean.
    A coefficient compares the halves of a square of 2 x 2 values: left and right, upper and lower, and both diagonals.
    The next band has the mean of each square for a value. P is the number of squares; the last row or column of an odd
    side is left out.

    Args:
        pictures: (N, C, H, W) of any range; H and W are at least 2 to the power of the number of bands.
        bands: the first ones of :data:`DETAILS`.

    Examples:
        >>> import torch
        >>> from vital_exp.images.details import details
        >>> found = details(torch.tensor([[[[4.0, 2.0], [1.0, 1.0]]]]), ["details of 2 px"])
        >>> found["details of 2 px"].flatten().tolist()
        [0.5, 1.0, 0.5]
    """
    pictures = exact(pictures)  # differences of neighbours cancel in half precision
    mean = pictures.mean(dim=1, keepdim=True)
    rest = pictures if pictures.shape[1] == 1 else torch.cat([mean, pictures - mean], dim=1)  # (N, C', H, W)
    found = {}
    for name in bands:
        height, width = (side // 2 * 2 for side in rest.shape[-2:])
        upper, lower = rest[..., :height:2, :width], rest[..., 1:height:2, :width]
        sums, differences = (upper + lower) / 2, (upper - lower) / 2
        left, right = sums[..., ::2], sums[..., 1::2]
        up, down = differences[..., ::2], differences[..., 1::2]
        band = torch.cat([(left - right) / 2, (up + down) / 2, (up - down) / 2], dim=1)  # (N, 3 C', H / 2, W / 2)
        found[name] = band.flatten(2)
        rest = (left + right) / 2
    return found
