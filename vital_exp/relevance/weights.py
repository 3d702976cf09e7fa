"""Weights of features from relevance: masks over positions, importance of channels (docs/methods/relevance.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vital_exp.models.network import VisionNetwork
from vital_exp.relevance.maps import WITHOUT_MAPS, activations_and_relevance
from vital_exp.targets.readout import Readout

EPSILON = 1e-6  # added to the divisor of min-max scaling, as published


@dataclass(frozen=True)
class Relevance:
    """Computes the relevance of features for the targets of a batch of pictures.

    Attributes:
        network: the frozen network.
        readout: the read-outs of the targets.
        method: one of ``vital_exp.relevance.METHODS``.
    """

    network: VisionNetwork
    readout: Readout
    method: str

    @property
    def has_maps(self) -> bool:
        """Whether the method gives a map for each picture."""
        return self.method not in WITHOUT_MAPS

    def masks(self, pictures: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """Return relevance masks (N, C, P) in [0, 1) by layer, for normalised pictures (N, C, H, W); no graph."""
        _, relevance, _ = activations_and_relevance(self.network, pictures.detach(), layers, self.readout, self.method)
        return {layer: spatial_masks(values) for layer, values in relevance.items()}


def spatial_masks(relevance: Tensor) -> Tensor:
    """Return relevance (N, C, ...) min-max scaled over positions, for each image and channel: (N, C, P) in [0, 1).

    Examples:
        >>> import torch
        >>> from vital_exp.relevance.weights import spatial_masks
        >>> spatial_masks(torch.tensor([[[0.0, 1.0, 4.0]]])).round(decimals=4)
        tensor([[[0.0000, 0.2500, 1.0000]]])
    """
    values = relevance.flatten(2)  # (N, C, P)
    low, high = values.amin(dim=-1, keepdim=True), values.amax(dim=-1, keepdim=True)
    return (values - low) / (high - low + EPSILON)


def channel_importance(relevance: Tensor) -> Tensor:
    """Return the largest relevance over positions, min-max scaled over channels, (B, C), for relevance (B, C, ...)."""
    largest = relevance.flatten(2).amax(dim=-1)  # (B, C)
    low, high = largest.amin(dim=-1, keepdim=True), largest.amax(dim=-1, keepdim=True)
    return (largest - low) / (high - low + EPSILON)


def channel_correlation(means: Tensor, values: Tensor) -> Tensor:
    """Return the positive part of each channel's correlation with the target over images, (C,) in [0, 1].

    Args:
        means: (B, C) spatial means of a layer's channels.
        values: (B,), the target's read-outs for the same images.

    Examples:
        >>> import torch
        >>> from vital_exp.relevance.weights import channel_correlation
        >>> reads = torch.tensor([1.0, 2.0, 3.0])
        >>> channel_correlation(torch.stack([reads, -reads], dim=1), reads)  # a negative correlation counts as 0
        tensor([1., 0.])
    """
    x, y = means.double() - means.double().mean(dim=0), values.double() - values.double().mean()
    scale = (x.square().sum(dim=0) * y.square().sum()).sqrt()  # (C,)
    correlation = (x * y[:, None]).sum(dim=0) / scale.clamp(min=torch.finfo(torch.float64).tiny)
    return correlation.clamp(min=0).to(means.dtype)
