"""The terms of an objective: each maps what the network makes of the pictures to one value per picture, (N,)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vital_exp.errors import UsageError
from vital_exp.models.layers import Alignment
from vital_exp.models.network import VisionNetwork
from vital_exp.models.taps import INPUT, Taps
from vital_exp.objectives.alignment import sort_matching
from vital_exp.objectives.priors import ORDERS, l2_norm, total_variation
from vital_exp.references.quantiles import resample_quantiles
from vital_exp.references.statistics import ReferenceStatistics
from vital_exp.targets.unit import Target

# Share of a layer's mean variance below which a channel counts as hardly varying.
FLOOR_SHARE = 0.1


@dataclass(frozen=True)
class Problem:
    """What a batch of pictures is made for: the network, one target per picture, and their references."""

    network: VisionNetwork
    targets: tuple[Target, ...]
    alignment: Alignment
    statistics: ReferenceStatistics


class Term(ABC):
    """One term: its weight in the sum, the layers it reads, and its value.

    Args:
        problem: what the pictures are made for.
        weight: its factor in the objective; 0 leaves the term out.
    """

    layers: tuple[str, ...] = ()

    def __init__(self, problem: Problem, weight: float) -> None:
        self.weight = float(weight)

    @abstractmethod
    def __call__(self, pictures: Tensor, activations: Mapping[str, Tensor]) -> Tensor:
        """Return (N,) values for normalised pictures (N, 3, H, W) and the activations (N, C, ...) of ``layers``."""


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


class TotalVariation(Term):
    """Total variation of the pictures in normalised space; weight None takes the network's (METHODS 1.2)."""

    def __init__(self, problem: Problem, weight: float | None = None, order: str = "l2") -> None:
        super().__init__(problem, problem.alignment.total_variation if weight is None else weight)
        if order not in ORDERS:
            raise UsageError("objective.total_variation.order", order, f"one of {', '.join(ORDERS)}", ORDERS)
        self.order = order

    def __call__(self, pictures: Tensor, activations: Mapping[str, Tensor]) -> Tensor:
        """Return the (N,) total variations."""
        return total_variation(pictures, self.order)


class L2(Term):
    """The norm of the pictures in normalised space; weight None takes the network's (METHODS 1.2)."""

    def __init__(self, problem: Problem, weight: float | None = None) -> None:
        super().__init__(problem, problem.alignment.l2 if weight is None else weight)

    def __call__(self, pictures: Tensor, activations: Mapping[str, Tensor]) -> Tensor:
        """Return the (N,) norms."""
        return l2_norm(pictures)


class Objective:
    """A weighted sum of terms over one forward pass that ends at the last layer any of them reads.

    Args:
        network: the frozen network.
        terms: by name; terms of weight 0 are left out.
    """

    def __init__(self, network: VisionNetwork, terms: Mapping[str, Term]) -> None:
        self.terms = {name: term for name, term in terms.items() if term.weight != 0}
        if not self.terms:
            raise UsageError("objective", list(terms), "at least one term with a weight other than 0")
        self.taps = Taps(network.module, list(dict.fromkeys(sum((t.layers for t in self.terms.values()), ()))))

    def __call__(self, pictures: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the total (N,) and each term's weighted share of it, (N,), for normalised pictures (N, 3, H, W)."""
        activations, _ = self.taps(pictures)
        shares = {name: term.weight * term(pictures, activations) for name, term in self.terms.items()}
        return torch.stack(list(shares.values())).sum(dim=0), shares
