"""Terms that match the distributions of features with those of the references."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vital_exp.errors import UsageError
from vital_exp.models.taps import INPUT
from vital_exp.objectives.alignment import sort_matching
from vital_exp.objectives.terms import Problem, Term
from vital_exp.references.quantiles import resample_quantiles

# Share of a layer's mean variance below which a channel counts as hardly varying.
FLOOR_SHARE = 0.1


class SortMatching(Term):
    """Weighted sum over layers of sort matching with the references (METHODS 1.1).

    Args:
        problem: what the pictures are made for.
        weight: factor of the whole sum.
        layers: layers to align; None for the network's.
        layer_weights: one per layer; None for the network's, or 1 for layers given here.
        depth_growth: factor by which each layer weighs more than the one before it; 1 as published.
        pixel_weight: weight of the pictures' own values, matched like a layer's; 0 as published.
        standardise: divide each channel's squared differences by the variance of its reference values, so that no
            channel and no layer counts for more because its values are larger; False as published.
    """

    def __init__(
        self,
        problem: Problem,
        weight: float = 1.0,
        layers: Sequence[str] | None = None,
        layer_weights: Sequence[float] | None = None,
        depth_growth: float = 1.0,
        pixel_weight: float = 0.0,
        standardise: bool = False,
    ) -> None:
        super().__init__(problem, weight)
        chosen = dict.fromkeys(layers, 1.0) if layers else problem.alignment.layers
        if layer_weights is not None:
            if len(layer_weights) != len(chosen):
                problem_text = f"one weight per layer, and there are {len(chosen)}"
                raise UsageError("objective.alignment.layer_weights", list(layer_weights), problem_text)
            chosen = dict(zip(chosen, map(float, layer_weights), strict=True))
        grown = {layer: own * depth_growth**depth for depth, (layer, own) in enumerate(chosen.items())}
        self.layer_weights = {INPUT: float(pixel_weight), **grown} if pixel_weight else grown
        self.layers = tuple(self.layer_weights)
        self.quantiles = problem.statistics.quantiles(problem.targets, self.layers) if weight else {}
        precisions = {layer: channel_precision(values) for layer, values in self.quantiles.items()}
        self.channel_weights = precisions if standardise else {}

    def __call__(self, pictures: Tensor, activations: Mapping[str, Tensor]) -> Tensor:
        """Return the (N,) weighted sum over layers."""
        total = pictures.new_zeros(len(pictures))
        for layer, weight in self.layer_weights.items():
            features = activations[layer].flatten(2)  # (N, C, H, W) -> (N, C, P)
            if self.quantiles[layer].shape[-1] != features.shape[-1]:
                self.quantiles[layer] = resample_quantiles(self.quantiles[layer], features.shape[-1])
            total = total + weight * sort_matching(features, self.quantiles[layer], self.channel_weights.get(layer))
        return total


def channel_precision(quantiles: Tensor) -> Tensor:
    """Return one over the variance of each channel's reference values, (N, C), for quantiles (N, C, Q).

    A tenth of the layer's mean variance is added: a channel that hardly varies must not rule the others.
    """
    variance = quantiles.var(dim=-1, correction=0)  # (N, C)
    floor = FLOOR_SHARE * variance.mean(dim=-1, keepdim=True)
    return 1.0 / (variance + floor).clamp(min=torch.finfo(variance.dtype).tiny)
