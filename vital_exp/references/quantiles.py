"""Quantile functions: the sorted values of a channel, as a function of probability."""

from __future__ import annotations

import torch
from torch import Tensor


def resample_quantiles(quantiles: Tensor, positions: int) -> Tensor:
    """Interpolate ascending quantile functions (..., Q) linearly at ``positions`` midpoints: (..., positions).

    The i-th of n sorted values, from 0, stands for the probability (i + 0.5) / n. Outside the first and last midpoint
    the function is constant.

    Examples:
        >>> import torch
        >>> from vital_exp.references.quantiles import resample_quantiles
        >>> resample_quantiles(torch.tensor([1.0, 2.0, 3.0, 4.0]), 2)  # at the probabilities 1/4 and 3/4
        tensor([1.5000, 3.5000])
    """
    known = quantiles.shape[-1]
    if known == positions:
        return quantiles
    place = (torch.arange(positions, dtype=torch.float64) + 0.5) * known / positions - 0.5
    place = place.clamp(0, known - 1)
    lower = place.floor().long().clamp(max=max(known - 2, 0))
    share = (place - lower).to(quantiles.dtype).to(quantiles.device)
    lower = lower.to(quantiles.device)
    upper = (lower + 1).clamp(max=known - 1)
    return torch.lerp(quantiles[..., lower], quantiles[..., upper], share)
