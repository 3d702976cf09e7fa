"""Distances between distributions of features, as alternatives to sort matching (docs/methods/distances.md).

Each distance but that of Gram matrices compares a picture's features with ascending reference values, channel by
channel, and returns the mean over channels of the distance times the channel's weight.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Share of a layer's mean squared reference value that is added to the variance of each of its channels (ours); without
# it, a channel that is constant over the references would give an infinite distance.
VARIANCE_FLOOR = 1e-3
# Bins of a soft histogram (ours): half of them cover the range of the reference values, the others all other values.
BINS = 64
HIGHEST_MOMENT = 3


def gaussian_kl(features: Tensor, quantiles: Tensor, channel_weights: Tensor | None = None) -> Tensor:
    """Return KL(picture || references) of normal distributions with the means and variances of the values.

    log(s_r / s_p) + (s_p^2 + (m_p - m_r)^2) / (2 s_r^2) - 1/2, with means m and standard deviations s of the picture
    (p) and the references (r).

    Args:
        features: (N, C, P) activations.
        quantiles: (N, C, Q) reference values.
        channel_weights: (N, C); None weighs all channels 1.

    Returns:
        (N,), at least 0, in nats.

    Examples:
        >>> import torch
        >>> from vital_exp.objectives.distances import gaussian_kl
        >>> references = torch.tensor([[[-1.0, 1.0]]])  # mean 0, variance 1
        >>> gaussian_kl(references + 2, references).round(decimals=2)  # half the squared shift, in variances
        tensor([2.])
    """
    features, quantiles = _exact(features), _exact(quantiles)
    floor = variance_floor(quantiles)[:, None]  # (N, 1)
    variance, wanted = features.var(dim=-1, correction=0) + floor, quantiles.var(dim=-1, correction=0) + floor
    shift = features.mean(dim=-1) - quantiles.mean(dim=-1)  # (N, C)
    divergence = 0.5 * ((wanted / variance).log() + (variance + shift.square()) / wanted - 1)
    return _mean_over_channels(divergence, channel_weights)


def histogram_kl(
    features: Tensor, quantiles: Tensor, channel_weights: Tensor | None = None, bins: int = BINS
) -> Tensor:
    """Return KL(picture || references) of soft histograms.

    Values are mapped to u = z / (1 + |z|), where z is linear, -1 at the smallest reference value and 1 at the largest.
    So every value lies in (-1, 1) and in a bin; an invertible map does not change the KL divergence of densities. A
    value counts in the two nearest bins, linearly by distance. Each histogram is then blurred by exp(-distance in
    bins); the tails of the blur give a gradient to values far from the references.

    Args:
        features: (N, C, P) activations.
        quantiles: (N, C, Q) reference values, ascending.
        channel_weights: (N, C); None weighs all channels 1.
        bins: number of bins of each histogram.

    Returns:
        (N,), at least 0, in nats.
    """
    features, quantiles = _exact(features), _exact(quantiles)
    low, high = quantiles[..., :1], quantiles[..., -1:]  # (N, C, 1)
    floor = variance_floor(quantiles)[:, None, None].sqrt()
    middle, half = (low + high) / 2, ((high - low) / 2).maximum(floor)
    have, wanted = (soft_histogram(squashed((values - middle) / half), bins) for values in (features, quantiles))
    divergence = (have * (have / wanted).log()).sum(dim=-1)  # (N, C)
    return _mean_over_channels(divergence, channel_weights)


def squashed(values: Tensor) -> Tensor:
    """Return z / (1 + |z|), in (-1, 1).

    Examples:
        >>> import torch
        >>> from vital_exp.objectives.distances import squashed
        >>> squashed(torch.tensor([-1.0, 0.0, 3.0]))
        tensor([-0.5000,  0.0000,  0.7500])
    """
    return values / (1 + values.abs())


def soft_histogram(values: Tensor, bins: int = BINS) -> Tensor:
    """Return the blurred histograms (N, C, bins) of values (N, C, P) in (-1, 1); each sums to 1, and no bin is 0."""
    place = (values + 1) / 2 * (bins - 1)  # bin centres at 0 .. bins - 1
    lower = place.detach().floor().clamp(0, bins - 2)
    share = place - lower
    counts = values.new_zeros(*values.shape[:-1], bins)
    counts = counts.scatter_add(-1, lower.long(), 1 - share).scatter_add(-1, lower.long() + 1, share)
    steps = torch.arange(bins, device=values.device, dtype=values.dtype)
    blur = torch.exp(-(steps[:, None] - steps).abs())
    with torch.autocast(values.device.type, enabled=False):
        return counts @ (blur / blur.sum(dim=1, keepdim=True)) / values.shape[-1]


def moment_matching(
    features: Tensor, quantiles: Tensor, channel_weights: Tensor | None = None, highest: int = HIGHEST_MOMENT
) -> Tensor:
    """Return the squared differences of mean, standard deviation and skewness, in squares of the features' unit.

    (m_p - m_r)^2 + (s_p - s_r)^2 + s_r^2 (g_p - g_r)^2, with means m, standard deviations s and skewness g =
    mean((x - m)^3) / s^3. The first two summands are the squared Wasserstein-2 distance of normal distributions.

    Args:
        features: (N, C, P) activations.
        quantiles: (N, C, Q) reference values.
        channel_weights: (N, C); None weighs all channels 1.
        highest: 1 compares means, 2 also standard deviations, 3 also skewness.

    Returns:
        (N,), at least 0.

    Examples:
        >>> import torch
        >>> from vital_exp.objectives.distances import moment_matching
        >>> references = torch.tensor([[[-1.0, 1.0]]])
        >>> moment_matching(references + 2, references, highest=1)
        tensor([4.])
    """
    features, quantiles = _exact(features), _exact(quantiles)
    floor = variance_floor(quantiles)[:, None]
    have, wanted = _moments(features, floor), _moments(quantiles, floor)
    units = (torch.ones_like(wanted[1]), torch.ones_like(wanted[1]), wanted[1])
    difference = sum(((h - w) * unit).square() for h, w, unit in list(zip(have, wanted, units, strict=True))[:highest])
    assert isinstance(difference, Tensor)
    return _mean_over_channels(difference, channel_weights)


def _moments(values: Tensor, floor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean, standard deviation and skewness, (N, C) each, for values (N, C, P)."""
    mean = values.mean(dim=-1)
    centred = values - mean[..., None]
    deviation = (centred.square().mean(dim=-1) + floor).sqrt()
    return mean, deviation, centred.pow(3).mean(dim=-1) / deviation.pow(3)


def gram_matrix(features: Tensor) -> Tensor:
    """Return F F^T / P, (N, C, C), for features F (N, C, P): the mean over positions of the products of two channels.

    Examples:
        >>> import torch
        >>> from vital_exp.objectives.distances import gram_matrix
        >>> gram_matrix(torch.tensor([[[1.0, 1.0], [1.0, -1.0]]]))  # two orthogonal channels
        tensor([[[1., 0.],
                 [0., 1.]]])
    """
    features = _exact(features)
    with torch.autocast(features.device.type, enabled=False):
        return features @ features.mT / features.shape[-1]


def gram_matching(features: Tensor, grams: Tensor, channel_weights: Tensor | None = None) -> Tensor:
    """Return the mean squared difference of Gram matrices (Gatys et al. 2016, without their factor of 1/4).

    Args:
        features: (N, C, P) activations.
        grams: (N, C, C), the references' mean Gram matrices.
        channel_weights: (N, C); an entry is weighted by the product of its two channels' weights. None weighs all 1.

    Returns:
        (N,), at least 0.
    """
    squared = (gram_matrix(features) - grams).square()  # (N, C, C)
    if channel_weights is not None:
        squared = squared * channel_weights[:, :, None] * channel_weights[:, None, :]
    return squared.mean(dim=(1, 2))


def variance_floor(quantiles: Tensor) -> Tensor:
    """Return the number that is added to the variances of a layer's channels, (N,), for reference values (N, C, Q)."""
    least = torch.finfo(quantiles.dtype).eps
    return (VARIANCE_FLOOR * quantiles.square().mean(dim=(1, 2))).clamp(min=least)


def _exact(values: Tensor) -> Tensor:
    """Return the values in float32 at least: differences of means and variances cancel in half precision."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def _mean_over_channels(values: Tensor, channel_weights: Tensor | None) -> Tensor:
    """Return the mean over channels of values (N, C) times the channels' weights, (N,)."""
    return (values if channel_weights is None else values * channel_weights).mean(dim=1)
