"""Terms that match distributions of features by other distances than sort matching (docs/methods/distances.md)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vital_exp.errors import UsageError
from vital_exp.objectives.alignment_terms import AUTO, PRECISIONS, DistributionTerm
from vital_exp.objectives.distances import (
    BINS,
    HIGHEST_MOMENT,
    gaussian_kl,
    gram_matching,
    histogram_kl,
    moment_matching,
)
from vital_exp.objectives.gram import mean_grams
from vital_exp.objectives.terms import Problem
from vital_exp.values import one_of, whole_number

FEWEST_BINS = 4


class Divergence(DistributionTerm):
    """A distance without a unit, which needs no standardisation.

    Args:
        problem: what the pictures are made for.
        standardise: without effect; accepted, because presets of methods set it.
        options: as :class:`DistributionTerm`.
    """

    def __init__(self, problem: Problem, standardise: str = "none", **options: Any) -> None:
        one_of("objective.alignment.standardise", standardise, (AUTO, *PRECISIONS))
        super().__init__(problem, standardise="none", **options)


class GaussianKL(Divergence):
    """KL divergence of normal distributions, in closed form; options as for :class:`Divergence`."""

    variant = "kl_gaussian"

    def distance(self, features: Tensor, reference: Tensor, channel_weights: Tensor | None) -> Tensor:
        """Return the divergence from the references in nats, mean over channels."""
        return gaussian_kl(features, reference, channel_weights)


class HistogramKL(Divergence):
    """KL divergence of soft histograms.

    Args:
        problem: what the pictures are made for.
        bins: number of bins of each histogram, at least 4.
        options: as :class:`Divergence`.
    """

    variant = "kl_histogram"

    def __init__(self, problem: Problem, bins: int = BINS, **options: Any) -> None:
        self.bins = whole_number("objective.alignment.bins", bins, FEWEST_BINS)
        super().__init__(problem, **options)

    def distance(self, features: Tensor, reference: Tensor, channel_weights: Tensor | None) -> Tensor:
        """Return the divergence from the references in nats, mean over channels."""
        return histogram_kl(features, reference, channel_weights, self.bins)


class MomentMatching(DistributionTerm):
    """Squared differences of mean, standard deviation and skewness.

    Args:
        problem: what the pictures are made for.
        highest: 1 compares means, 2 also standard deviations, 3 also skewness.
        options: as :class:`DistributionTerm`.
    """

    variant = "moments"

    def __init__(self, problem: Problem, highest: int = HIGHEST_MOMENT, **options: Any) -> None:
        self.highest = whole_number("objective.alignment.highest", highest, 1)
        if highest > HIGHEST_MOMENT:
            raise UsageError("objective.alignment.highest", highest, f"at most {HIGHEST_MOMENT}")
        super().__init__(problem, **options)

    def distance(self, features: Tensor, reference: Tensor, channel_weights: Tensor | None) -> Tensor:
        """Return the squared differences, mean over channels."""
        return moment_matching(features, reference, channel_weights, self.highest)


class GramMatching(DistributionTerm):
    """Squared difference between a picture's Gram matrix and the references' mean Gram matrix (Gatys et al. 2016).

    The references run through the network once more for their Gram matrices, which quantiles do not determine.
    """

    variant = "gram"

    def __init__(self, problem: Problem, **options: Any) -> None:
        super().__init__(problem, **options)
        self.grams = mean_grams(problem, tuple(self.layer_weights)) if self.weight else {}

    def reference(self, layer: str, positions: int) -> Tensor:
        """Return the references' mean Gram matrices, (N, C, C)."""
        return self.grams[layer]

    def distance(self, features: Tensor, reference: Tensor, channel_weights: Tensor | None) -> Tensor:
        """Return the mean squared difference of the Gram matrices."""
        return gram_matching(features, reference, channel_weights)
