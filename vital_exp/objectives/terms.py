"""Objectives: weighted sums of terms, each of which maps pictures and activations to one value per picture, (N,)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vital_exp.errors import UsageError
from vital_exp.models.layers import Alignment
from vital_exp.models.network import VisionNetwork
from vital_exp.models.taps import Taps
from vital_exp.references.statistics import ReferenceStatistics
from vital_exp.relevance.weights import Relevance
from vital_exp.targets.readout import Readout
from vital_exp.targets.unit import Target


@dataclass(frozen=True)
class Problem:
    """What a batch of pictures is made for.

    Attributes:
        network: the frozen network.
        targets: one per picture, all of one layer or all classes.
        readout: what the targets read from their layer, or from the network's output.
        alignment: the layers to align, their weights, the weights of the priors.
        statistics: of the targets' references.
        relevance: how relevant the pictures' features are for hidden units; None for classes.
    """

    network: VisionNetwork
    targets: tuple[Target, ...]
    readout: Readout
    alignment: Alignment
    statistics: ReferenceStatistics
    relevance: Relevance | None = None


class Term(ABC):
    """One term: its weight in the sum, the layers it reads, and its value.

    Args:
        problem: what the pictures are made for.
        weight: its factor in the objective; 0 leaves the term out.
    """

    layers: tuple[str, ...] = ()
    knows_target = True  # False for priors, which are the same whatever the target

    def __init__(self, problem: Problem, weight: float) -> None:
        self.weight = float(weight)

    @abstractmethod
    def __call__(self, pictures: Tensor, activations: Mapping[str, Tensor]) -> Tensor:
        """Return (N,) values for normalised pictures (N, 3, H, W) and the activations (N, C, ...) of ``layers``."""


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

    def aimed(self, shares: Mapping[str, Tensor]) -> Tensor:
        """Return the sum of the shares of the terms that know the target, (N,); a plain 0 when there is none."""
        known = [share for name, share in shares.items() if self.terms[name].knows_target]
        return torch.stack(known).sum(dim=0) if known else torch.zeros(())
