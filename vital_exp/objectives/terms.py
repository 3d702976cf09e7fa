"""Objectives: weighted sums of terms. A term maps pictures and activations to one value per picture, (N,)."""

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

# Prefixes of layer names, for the activations of the pictures that a term compares with, and for relevance masks.
GIVEN, MASK = "given/", "relevance mask/"


@dataclass(frozen=True)
class Problem:
    """The data that the terms of a batch of pictures need.

    Attributes:
        network: the frozen network.
        targets: one per picture, all of one layer or all classes.
        readout: the read-outs of the targets from their layer, or from the network's output.
        alignment: the network's recipe: the layers to align, their weights, the weights of the priors.
        statistics: reference statistics of the targets.
        relevance: computes the relevance of features for hidden units; None for classes.
        starts: (N, 3, H, W) RGB in [0, 1], the images that the pictures start from; None for noise.
        size: (height, width) of the pictures; None for the network's input size.
        views: number of transformed views of each picture in the batch; ``targets`` are repeated, view by view.
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
    """A part of an objective: a term, or a gradient rule."""

    def during(self, step: int) -> AbstractContextManager[None]:
        """Return a context for the forward pass of a step (from 0); in it a part may observe or change the network."""
        return nullcontext()


class GradientRule(ObjectivePart, ABC):
    """A rule that changes gradients (or activations) in the network; it has no value.

    Args:
        problem: what the pictures are made for.
    """

    until = 0  # the first step without the rule; 0 for a rule that never ends

    def __init__(self, problem: Problem) -> None:
        self.network = problem.network

    @abstractmethod
    def during(self, step: int) -> AbstractContextManager[None]:
        """Return a context that changes the gradients of forward passes inside it."""


class Term(ObjectivePart, ABC):
    """One term of an objective: its weight, the layers that it reads, and its value.

    Args:
        problem: what the pictures are made for.
        weight: factor of the term in the objective; 0 leaves the term out.
    """

    layers: tuple[str, ...] = ()
    variant = ""  # name in the group below the term's option, such as "kl_gaussian" of alignment
    knows_target = True  # False for priors, which do not depend on the target
    to_the_end = False  # whether the forward pass must run to the network's output
    given: Tensor | None = None  # (N, 3, H, W) normalised pictures to compare with; they take the same transforms
    compared: tuple[str, ...] = ()  # layers whose activations for ``given`` the term reads, under "given/<layer>"
    masked: tuple[str, ...] = ()  # layers whose relevance masks (N, C, P) it reads, under "relevance mask/<layer>"

    def __init__(self, problem: Problem, weight: float) -> None:
        self.weight = float(weight)

    @abstractmethod
    def __call__(self, pictures: Tensor, activations: Mapping[str, Tensor]) -> Tensor:
        """Return (N,) values for normalised pictures (N, 3, H, W) and the activations (N, C, ...) of ``layers``."""


class Objective:
    """A weighted sum of terms over one forward pass, which ends at the last layer that a term reads.

    Terms do not run the network themselves. One further pass computes the relevance masks for all terms.

    Args:
        network: the frozen network.
        parts: terms and gradient rules by name; terms of weight 0 are left out.
        fold_batch_norms: whether batch norms are folded into the convolutions before them while the network runs.
        pack_weights: whether the weights of convolutions are reordered for the CPU while the network runs.
        relevance: computes the relevance masks that terms read.

    Attributes:
        terms: the terms of the sum, by name.
        scales: factors of losses before a backward pass; see :func:`vital_exp.models.precision.scaled_gradient`.
        settled: the first step after the end of all gradient rules that end.
        given: the normalised pictures (N, 3, H, W) that terms compare with, by the name of the term. The caller
            transforms them like the pictures of a step, and passes them to :meth:`__call__`.
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
        self,
        pictures: Tensor,
        *,
        step: int = 0,
        given: Mapping[str, Tensor] | None = None,
        masks: Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the total (N,), and the weighted value (N,) of each term by name.

        Args:
            pictures: normalised pictures (N, 3, H, W) after the transforms.
            step: of the optimisation, from 0; gradient rules may end after some steps.
            given: ``self.given`` after the same transforms; None: ``self.given`` without transforms.
            masks: the relevance masks that terms read, from :meth:`masks`; None: those of ``pictures``.
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
        activations |= self.masks(pictures) if masks is None else masks
        shares = {
            name: term.weight * term(pictures, {**activations, **compared.get(name, {})})
            for name, term in self.terms.items()
        }
        return torch.stack(list(shares.values())).sum(dim=0), shares

    @torch.no_grad()
    def _given_activations(self, given: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """Return the activations of the pictures that terms compare with, by term and prefixed layer."""
        found = {name: self.given_taps[name](pictures)[0] for name, pictures in given.items()}
        return {name: {GIVEN + layer: exact(values) for layer, values in one.items()} for name, one in found.items()}

    def masks(self, pictures: Tensor) -> dict[str, Tensor]:
        """Return the relevance masks (N, C, P) that terms read for normalised pictures (N, C, H, W), by prefixed layer.

        One pass computes them, without a graph.
        """
        if not self.masked or self.relevance is None:
            return {}
        return {MASK + layer: mask for layer, mask in self.relevance.masks(pictures, self.masked).items()}

    @property
    def caption(self) -> str:
        """The sum in words: ``alignment/sort + 0.5 diversity``."""
        named = {f"{name}/{term.variant}" if term.variant else name: term.weight for name, term in self.terms.items()}
        return caption(named)

    def aimed(self, shares: Mapping[str, Tensor]) -> Tensor:
        """Return the sum (N,) over the terms that depend on the target; the scalar 0 when there is none."""
        known = [share for name, share in shares.items() if self.terms[name].knows_target]
        return torch.stack(known).sum(dim=0) if known else torch.zeros(())
