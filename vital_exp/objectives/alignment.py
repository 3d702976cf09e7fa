"""Alignment of feature distributions by sort matching, VITAL's objective (arXiv 2503.22399; docs/methods/vital.md)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vital_exp.objectives.sorting import match_sorted
from vital_exp.references.quantiles import resample_quantiles


def sort_matching(
    features: Tensor, quantiles: Tensor, channel_weights: Tensor | None = None, trim: float = 0.0
) -> Tensor:
    """Return the mean squared difference between the sorted features and the references' mean sorted features.

    For each channel this is the squared Wasserstein-2 distance between the distribution of the picture's values and the
    Wasserstein barycentre of the references' distributions. The backward pass takes the permutation as a constant.

    Args:
        features: (N, C, P) activations of N pictures at P positions, in any order of positions.
        quantiles: (N, C, Q) or (C, Q) ascending values; interpolated when Q differs from P.
        channel_weights: (N, C) or (C,) factors of the squared differences; None weighs all channels 1.
        trim: share of each channel's values, in [0, 0.5), that is left out at either end; 0 as published.

    Returns:
        (N,) losses, at least 0, in float32 (float64 if the features are).

    Examples:
        >>> import torch
        >>> from vital_exp.objectives.alignment import sort_matching
        >>> picture = torch.tensor([[[3.0, 1.0, 2.0]]])  # one picture, one channel, three positions
        >>> sort_matching(picture, torch.tensor([[1.0, 2.0, 3.0]]))  # the same values, elsewhere
        tensor([0.])
        >>> sort_matching(picture, torch.tensor([[2.0, 3.0, 4.0]]))  # each value lies 1 below
        tensor([1.])
    """
    exact = torch.promote_types(features.dtype, torch.float32)  # differences of sorted values cancel in half precision
    matched = resample_quantiles(quantiles, features.shape[-1]).to(exact)
    weights = None if channel_weights is None else channel_weights.to(exact)
    if left_out := int(trim * features.shape[-1]):
        return _trimmed(features, matched, weights, left_out)
    losses: Tensor = _SortMatching.apply(features, matched, weights)
    return losses


def _trimmed(features: Tensor, quantiles: Tensor, weights: Tensor | None, left_out: int) -> Tensor:
    """Return the losses (N,) without the ``left_out`` lowest and the ``left_out`` highest values of each channel.

    The values that are left out are compared with themselves, so that their differences are exactly 0.
    """
    own, count = features.detach(), features.shape[-1]
    low, high = (own.topk(left_out, largest=largest).values for largest in (False, True))
    kept = quantiles.expand(features.shape)[..., left_out : count - left_out]
    compared = torch.cat([low.to(kept.dtype), kept, high.flip(-1).to(kept.dtype)], dim=-1)  # (N, C, P)
    losses: Tensor = _SortMatching.apply(features, compared, weights)
    return losses * (count / (count - 2 * left_out))


class _SortMatching(torch.autograd.Function):
    """The forward pass sorts and computes the gradient too; the backward pass only multiplies."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, quantiles: Tensor, channel_weights: Tensor | None) -> Tensor:
        count = features[0].numel()
        shares = quantiles.new_ones(features.shape[:2]) if channel_weights is None else channel_weights
        shares = shares.expand(features.shape[:2]) / count  # (N, C)
        # The gradient with respect to a feature is the weighted difference at its rank.
        squares, slopes = match_sorted(features, quantiles, 2 * shares)
        ctx.dtype = features.dtype
        ctx.save_for_backward(slopes)
        distances: Tensor = torch.linalg.vecdot(squares, shares)
        return distances

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (slopes,) = ctx.saved_tensors
        scaled = slopes * gradient[:, None, None].to(slopes.dtype)
        return scaled.to(ctx.dtype), None, None
