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
from vital_exp.targets.unit import Target


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
