"""Terms that match the distributions of features with those of the references (docs/methods/vital.md)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vital_exp.errors import UsageError
from vital_exp.images.details import DETAILS, bands_of, details
from vital_exp.images.output import scaled_size
from vital_exp.models.layers import is_transformer
from vital_exp.models.network import VisionNetwork
from vital_exp.objectives.alignment import sort_matching
from vital_exp.objectives.terms import MASK, Problem, Term
from vital_exp.references.quantiles import resample_quantiles
from vital_exp.references.statistics import OF_PICTURES, READOUT, TARGET_LAYER
from vital_exp.targets.unit import INPUT
from vital_exp.values import number, one_of

# Share of a layer's mean variance that is added to the variance of each of its channels.
FLOOR_SHARE = 0.1
# Share of tokens to trim at either end for transformers. The four corner tokens are a share of 0.02 of a ViT-Tiny's 197
# tokens. In photographs they have 52 to 70 of 192 channels beyond four standard deviations, and tokens in the middle
# have 0.03 channels (benchmarks/results/vital_on_transformers.md).
OUTLYING = 0.03
AUTO = "auto"  # chosen by the architecture


class DistributionTerm(Term):
    """Weighted sum over layers of a distance between the distributions of each channel's features.

    For hidden units with relevance, the features are multiplied by the relevance masks, and the channels are weighted
    by their importance.

    Args:
        problem: what the pictures are made for.
        weight: factor of the whole sum.
        layers: layers to align; None for those of the network's recipe.
        layer_weights: one per layer; None for those of the network's recipe, or 1 for ``layers``.
        depth_growth: g, where the weight of layer number d, from 0, is multiplied by g^d; 1 as published.
        pixel_weight: weight of the pixels, matched like a layer; 0 as published.
        detail_weight: weight of each band of the picture's details (:mod:`vital_exp.images.details`), matched like a
            layer; 0 as published. ``standardise`` divides each channel by its own variance. Without effect below 56 px.
        readout_weight: for hidden units, weight of the target's read-out, matched like a layer of one channel; 0 as
            published. Without effect for classes.
        target_weight: for hidden units, weight of the target's layer with all its channels; 0 as published: only the
            layers below it are aligned.
        stem_weight: for hidden units, weight of the first layer if the user chose no layers and no weights; None: 0.1,
            as published.
        standardise: the divisor of squared differences, which makes channels of large and small values count alike.
            ``"channel"``: the variance of the channel's reference values; ``"layer"``: the mean of these variances
            over the layer; ``"auto"``: ``"channel"`` for transformers, where a channel of massive activations would
            dominate its layer, else ``"layer"``; ``"none"``: 1, as published.
    """

    def __init__(
        self,
        problem: Problem,
        weight: float = 1.0,
        layers: Sequence[str] | None = None,
        layer_weights: Sequence[float] | None = None,
        depth_growth: float = 1.0,
        pixel_weight: float = 0.0,
        detail_weight: float = 0.0,
        readout_weight: float = 0.0,
        target_weight: float = 0.0,
        stem_weight: float | None = None,
        standardise: str = "none",
    ) -> None:
        super().__init__(problem, weight)
        one_of("objective.alignment.standardise", standardise, (AUTO, *PRECISIONS))
        hidden = _layer_weights(problem, layers, layer_weights)
        if (
            problem.relevance
            and stem_weight is not None
            and not (layers or layer_weights or problem.alignment.weighted)
        ):
            hidden = {layer: stem_weight if depth == 0 else own for depth, (layer, own) in enumerate(hidden.items())}
        grown = {layer: own * depth_growth**depth for depth, (layer, own) in enumerate(hidden.items())}
        self.bands = _bands(problem) if detail_weight else ()
        around = {INPUT: _weight("pixel", pixel_weight), **dict.fromkeys(self.bands, _weight("detail", detail_weight))}
        own = {READOUT: _weight("readout", readout_weight), TARGET_LAYER: _weight("target", target_weight)}
        around |= own if problem.relevance else {}
        self.layer_weights = {layer: own for layer, own in {**around, **grown}.items() if own or layer in grown}
        if not self.layer_weights:
            below = f"no layer below {problem.readout.layer} to align"
            wanted = f"{below}; objective.alignment.readout_weight=1 aligns the target's read-out"
            raise UsageError("model.layers", "none", wanted)
        self.readout = problem.readout
        self.masked = tuple(grown) if problem.relevance and problem.relevance.has_maps else ()
        read = dict.fromkeys(own, problem.readout.layer) | dict.fromkeys(DETAILS, INPUT)
        self.layers = tuple(dict.fromkeys(read.get(layer, layer) for layer in self.layer_weights))
        self.quantiles: dict[str, Tensor] = {}
        self.channel_weights: dict[str, Tensor] = {}
        if weight:
            statistics = problem.statistics.of(problem.targets, tuple(self.layer_weights))
            self.quantiles, self.channel_weights = statistics.quantiles, dict(statistics.importance)
        standardise = standardisation(standardise, problem.network)
        for layer, values in self.quantiles.items() if standardise != "none" else ():
            precision = PRECISIONS["channel" if layer in DETAILS else standardise](values)
            self.channel_weights[layer] = self.channel_weights.get(layer, 1.0) * precision

    @abstractmethod
    def distance(self, features: Tensor, reference: Tensor, channel_weights: Tensor | None) -> Tensor:
        """Return the distances (N,) of features (N, C, P) from the ``reference`` of their layer (:meth:`reference`).

        ``channel_weights`` (N, C) are the factors of the channels; None weighs all channels 1.
        """

    def reference(self, layer: str, positions: int) -> Tensor:
        """Return the ascending reference values (N, C, positions) that a layer's features are compared with."""
        if self.quantiles[layer].shape[-1] != positions:
            self.quantiles[layer] = resample_quantiles(self.quantiles[layer], positions)
        return self.quantiles[layer]

    def __call__(self, pictures: Tensor, activations: Mapping[str, Tensor]) -> Tensor:
        """Return the (N,) weighted sum over layers."""
        if self.bands:
            activations = {**activations, **details(activations[INPUT], self.bands)}
        total = pictures.new_zeros(len(pictures))
        for layer, weight in self.layer_weights.items():
            features = self._features(layer, activations)
            if layer in self.masked:
                features = features * activations[MASK + layer]
            total = total + weight * self.loss(layer, features)
        return total

    def loss(self, layer: str, features: Tensor) -> Tensor:
        """Return the (N,) losses of a layer's features (N, C, P)."""
        return self.distance(features, self.reference(layer, features.shape[-1]), self.channel_weights.get(layer))

    def _features(self, layer: str, activations: Mapping[str, Tensor]) -> Tensor:
        if layer == READOUT:
            return self.readout.map(activations[self.readout.layer])[:, None]  # (N, 1, P)
        read = self.readout.layer if layer == TARGET_LAYER else layer
        return activations[read].flatten(2)  # (N, C, H, W) -> (N, C, P)


class SortMatching(DistributionTerm):
    """Sort matching: VITAL's distance.

    Args:
        problem: what the pictures are made for.
        trim: share of each channel's values, in [0, 0.5), that is left out at either end, in the network's layers
            only; 0 as published. ``"auto"``: :data:`OUTLYING` for classes of transformers, whose tokens in the corners
            of photographs may have outlying values; else 0.
        options: as :class:`DistributionTerm`.

    Raises:
        UsageError: a share outside [0, 0.5).
    """

    variant = "sort"

    def __init__(self, problem: Problem, trim: float | str = 0.0, **options: Any) -> None:
        super().__init__(problem, **options)
        trim = left_out(trim, problem.network, of_classes=not problem.relevance)
        if isinstance(trim, bool) or not isinstance(trim, (int, float)) or not 0 <= trim < 0.5:
            raise UsageError("objective.alignment.trim", trim, "auto, or a share of at least 0 and below 0.5", (AUTO,))
        self.trim = float(trim)

    def loss(self, layer: str, features: Tensor) -> Tensor:
        """Return the (N,) losses of a layer's features (N, C, P); only layers of the network are trimmed."""
        if not self.trim or layer in (*OF_PICTURES, READOUT, TARGET_LAYER):
            return super().loss(layer, features)
        reference = self.reference(layer, features.shape[-1])
        return sort_matching(features, reference, self.channel_weights.get(layer), self.trim)

    def distance(self, features: Tensor, reference: Tensor, channel_weights: Tensor | None) -> Tensor:
        """Return the mean squared differences of sorted values, (N,)."""
        return sort_matching(features, reference, channel_weights)


def _bands(problem: Problem) -> Sequence[str]:
    """Return the bands of details that a picture has at the size at which the network sees it."""
    seen = scaled_size(problem.network.preprocessing.size, problem.statistics.share)
    return bands_of(min(*seen, *(problem.size or seen)))


def _weight(name: str, value: float) -> float:
    """Return a weight of the term, checked."""
    return number(f"objective.alignment.{name}_weight", value)


def _layer_weights(
    problem: Problem, layers: Sequence[str] | None, layer_weights: Sequence[float] | None
) -> dict[str, float]:
    """Return the layers to align with the weight of each."""
    chosen = dict.fromkeys(layers, 1.0) if layers else problem.alignment.layers
    if layer_weights is None:
        return chosen
    if len(layer_weights) != len(chosen):
        problem_text = f"one weight per layer, and there are {len(chosen)}"
        raise UsageError("objective.alignment.layer_weights", list(layer_weights), problem_text)
    return dict(zip(chosen, map(float, layer_weights), strict=True))


def standardisation(kind: str, network: VisionNetwork) -> str:
    """Return the kind of divisor of squared differences, with ``"auto"`` resolved for a network."""
    if kind != AUTO:
        return kind
    return "channel" if is_transformer(network.module) else "layer"


def left_out(trim: float | str, network: VisionNetwork, of_classes: bool) -> float | str:
    """Return the share of values that is left out at either end, with ``"auto"`` resolved for a network."""
    if trim != AUTO:
        return trim
    return OUTLYING if of_classes and is_transformer(network.module) else 0.0


def channel_precision(quantiles: Tensor) -> Tensor:
    """Return one over the variance of each channel's reference values, (N, C), for quantiles (N, C, Q).

    A tenth of the layer's mean variance is added to each variance, so that a nearly constant channel cannot dominate.
    """
    variance = quantiles.var(dim=-1, correction=0)  # (N, C)
    floor = FLOOR_SHARE * variance.mean(dim=-1, keepdim=True)
    return _inverse(variance + floor)


def layer_precision(quantiles: Tensor) -> Tensor:
    """Return one over the mean variance of the channels' reference values, (N, C), for quantiles (N, C, Q)."""
    variance = quantiles.var(dim=-1, correction=0)  # (N, C)
    mean = variance.mean(dim=-1, keepdim=True).expand_as(variance)
    return _inverse(mean)


def _inverse(variances: Tensor) -> Tensor:
    """Return one over variances; 1 for a layer without variance, such as a layer with one position."""
    return torch.where(variances > 0, 1.0 / variances.clamp(min=torch.finfo(variances.dtype).tiny), 1.0)


PRECISIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "none": torch.ones_like,
    "channel": channel_precision,
    "layer": layer_precision,
}
