"""Objectives: weighted sums of terms, each of which maps pictures and activations to one value per picture, (N,)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from vital_exp.errors import UsageError
from vital_exp.models.folding import FoldedNorms
from vital_exp.models.layers import Alignment
from vital_exp.models.network import VisionNetwork
from vital_exp.models.packing import PackedConvolutions
from vital_exp.models.precision import exact, scales_of
from vital_exp.models.refusals import check_gradients
from vital_exp.objectives.algebra import caption
from vital_exp.references.statistics import ReferenceStatistics
from vital_exp.relevance.weights import Relevance
from vital_exp.targets.readout import Readout
from vital_exp.targets.unit import Target

# Before the name of a layer: its activation for the pictures a term compares with; the mask of its relevance.
GIVEN, MASK = "given/", "relevance mask/"


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
        starts: (N, 3, H, W) RGB, the pictures before the first step where they start from an image; None for noise.
        size: (height, width) of the pictures; None for the network's input size.
        views: how many transformed views of each picture are in the batch; the targets are repeated, view by view.
    """

    network: VisionNetwork
    targets: tuple[Target, ...]
    readout: Readout
    alignment: Alignment
    statistics: ReferenceStatistics
    relevance: Relevance | None = None
    starts: Tensor | None = None
    size: tuple[int, int] | None = None
    views: int = 1


class ObjectivePart:
    """What takes part in an objective: a term, or a rule for the gradient."""

    def during(self, step: int) -> AbstractContextManager[None]:
        """Return what surrounds the forward pass of a step (from 0): where a part watches or changes the network."""
        return nullcontext()


class GradientRule(ObjectivePart, ABC):
    """Changes how gradients flow back through the network; it has no value of its own.

    Args:
        problem: what the pictures are made for.
    """

    until = 0  # the first step at which it no longer acts; 0 for a rule that always does

    def __init__(self, problem: Problem) -> None:
        self.network = problem.network

    @abstractmethod
    def during(self, step: int) -> AbstractContextManager[None]:
        """Return what changes the gradients of a forward pass made inside it."""


class Term(ObjectivePart, ABC):
    """One term: its weight in the sum, the layers it reads, and its value.

    Args:
        problem: what the pictures are made for.
        weight: its factor in the objective; 0 leaves the term out.
    """

    layers: tuple[str, ...] = ()
    variant = ""  # which of the group below its option, "kl_gaussian" of alignment
    knows_target = True  # False for priors, which are the same whatever the target
    to_the_end = False  # whether the whole network must run, whatever layers are read
    given: Tensor | None = None  # (N, 3, H, W) normalised pictures to compare with; they take the same transforms
    compared: tuple[str, ...] = ()  # the layers of the given pictures that are read, under "given/<layer>"
    masked: tuple[str, ...] = ()  # the layers whose relevance masks are read, (N, C, P) under "relevance mask/<layer>"

    def __init__(self, problem: Problem, weight: float) -> None:
        self.weight = float(weight)

    @abstractmethod
    def __call__(self, pictures: Tensor, activations: Mapping[str, Tensor]) -> Tensor:
        """Return (N,) values for normalised pictures (N, 3, H, W) and the activations (N, C, ...) of ``layers``."""


class Objective:
    """A weighted sum of terms over one forward pass that ends at the last layer any of them reads.

    Terms do not run the network. The relevance masks that they read come from one more pass, which they share.

    Args:
        network: the frozen network.
        parts: by name; terms of weight 0 are left out.
        fold_batch_norms: whether norms are part of the convolutions before them while the network runs.
        pack_weights: whether a CPU's convolutions have their weights in its own order while the network runs.
        relevance: of the pictures' features, where a term reads its masks.

    Attributes:
        terms: the terms of the sum, by name.
        scales: of the losses before a backward pass, see :func:`vital_exp.models.precision.scaled_gradient`.
        settled: the first step from which on no rule ends: gradients before it are not the network's own.
        given: by the name of a term the normalised pictures (N, 3, H, W) it compares with. Whoever transforms the
            pictures of a step hands these over likewise transformed.
    """

    def __init__(
        self,
        network: VisionNetwork,
        parts: Mapping[str, ObjectivePart],
        fold_batch_norms: bool = False,
        pack_weights: bool = False,
        relevance: Relevance | None = None,
    ) -> None:
        named = {name: part for name, part in parts.items() if isinstance(part, Term)}
        self.terms = {name: term for name, term in named.items() if term.weight != 0}
        if not self.terms:
            raise UsageError("objective", list(parts), "at least one term with a weight other than 0")
        rules = [part for part in parts.values() if isinstance(part, GradientRule)]
        self.settled = max((rule.until for rule in rules), default=0)
        self.parts: list[ObjectivePart] = [*rules, *self.terms.values()]
        self.taps = network.taps(list(dict.fromkeys(sum((t.layers for t in self.terms.values()), ()))))
        self.to_the_end = any(term.to_the_end for term in self.terms.values())
        self.scales = scales_of(network.module)
        self.norms = FoldedNorms(network, self.taps) if fold_batch_norms else None
        self.convolutions = PackedConvolutions(network) if pack_weights else None
        self.given = {name: term.given for name, term in self.terms.items() if term.given is not None}
        self.relevance = relevance
        self.masked = tuple(dict.fromkeys(sum((t.masked for t in self.terms.values()), ())))
        self.given_taps = {name: network.taps(self.terms[name].compared) for name in self.given}

    def __call__(
        self, pictures: Tensor, *, step: int = 0, given: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the total (N,) and each term's weighted share of it, (N,), for normalised pictures (N, 3, H, W).

        Args:
            pictures: as the network takes them, after the transforms.
            step: of the optimisation, from 0; rules for the gradient may end after some steps.
            given: ``self.given`` after the same transforms; None takes it as it is.
        """
        with ExitStack() as around:
            for part in self.parts:
                around.enter_context(part.during(step))
            for faster in (self.norms, self.convolutions):
                if faster:
                    around.enter_context(faster.active())
            found, _ = self.taps(pictures, to_the_end=self.to_the_end)
        activations = {name: exact(values) for name, values in found.items()}
        if pictures.requires_grad:
            check_gradients(activations)
        compared = self._given_activations(self.given if given is None else given)
        activations |= self._masks(pictures)
        shares = {
            name: term.weight * term(pictures, {**activations, **compared.get(name, {})})
            for name, term in self.terms.items()
        }
        return torch.stack(list(shares.values())).sum(dim=0), shares

    @torch.no_grad()
    def _given_activations(self, given: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """Return the activations of the pictures that terms compare with, under the names of their terms."""
        found = {name: self.given_taps[name](pictures)[0] for name, pictures in given.items()}
        return {name: {GIVEN + layer: exact(values) for layer, values in one.items()} for name, one in found.items()}

    def _masks(self, pictures: Tensor) -> dict[str, Tensor]:
        """Return the relevance masks that terms read, all from one pass of the network; constants of the step."""
        if not self.masked or self.relevance is None:
            return {}
        return {MASK + layer: mask for layer, mask in self.relevance.masks(pictures, self.masked).items()}

    @property
    def caption(self) -> str:
        """The sum in words: ``alignment/sort + 0.5 diversity``."""
        named = {f"{name}/{term.variant}" if term.variant else name: term.weight for name, term in self.terms.items()}
        return caption(named)

    def aimed(self, shares: Mapping[str, Tensor]) -> Tensor:
        """Return the sum of the shares of the terms that know the target, (N,); a plain 0 when there is none."""
        known = [share for name, share in shares.items() if self.terms[name].knows_target]
        return torch.stack(known).sum(dim=0) if known else torch.zeros(())
