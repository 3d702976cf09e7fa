"""Compositional labels of units: a formula of labels with and, or, not (INVERT, Bykov et al. 2023), by beam search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vital_exp.evaluation.ranking import auc_of_ranks

BEAM = 5  # formulas per unit that are lengthened in each round
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Formula:
    """A formula of labels.

    Attributes:
        text: ``"(heart or star) and not tree"``.
        auc: the unit's AUC for images that satisfy the formula against the others, in [0, 1].
        mask: (N,), whether each image satisfies the formula.
    """

    text: str
    auc: float
    mask: Mask


def best_formulas(values: Tensor, owners: Sequence[Sequence[str]], labels: Sequence[str], length: int) -> list[Formula]:
    """Return the formula of largest AUC for each unit; of formulas with equal AUC the shortest.

    In each round every kept formula is lengthened by ``and`` or ``or`` and a label or its negation; the ``BEAM`` best
    are kept.

    Args:
        values: (N, U), each unit's activation for each image.
        owners: the labels of each image, one or several.
        labels: the labels that formulas may contain.
        length: the most labels of a formula.
    """
    from scipy.stats import rankdata

    own = [set(names) for names in owners]
    literals = []
    for label in labels:
        mask = np.array([label in names for names in own])
        literals += [(label, mask), (f"not {label}", ~mask)]
    return [_search(ranks, literals, length) for ranks in rankdata(values.double().numpy(), axis=0).T]


def rank_auc(ranks: NDArray[np.float64], mask: Mask) -> float:
    """Return the AUC of images inside a mask against images outside, by their ranks; -1 where one side is empty."""
    return float(auc_of_ranks(ranks, mask)) if mask.any() and not mask.all() else -1.0


def _search(ranks: NDArray[np.float64], literals: Sequence[tuple[str, Mask]], length: int) -> Formula:
    beam = _best([Formula(text, rank_auc(ranks, mask), mask) for text, mask in literals])
    found = beam[0]
    for _ in range(length - 1):
        longer = []
        for formula in beam:
            for text, mask in literals:
                both, either = formula.mask & mask, formula.mask | mask
                longer.append(Formula(f"{_bracketed(formula.text)} and {text}", rank_auc(ranks, both), both))
                longer.append(Formula(f"{_bracketed(formula.text)} or {text}", rank_auc(ranks, either), either))
        beam = _best(longer)
        if beam[0].auc > found.auc:
            found = beam[0]
    return found


def _best(formulas: Sequence[Formula]) -> list[Formula]:
    """Return the ``BEAM`` best formulas; of formulas that the same images satisfy, only the first."""
    different = {formula.mask.tobytes(): formula for formula in reversed(formulas)}
    return sorted(different.values(), key=lambda formula: -formula.auc)[:BEAM]


def _bracketed(text: str) -> str:
    """Return a formula, in brackets if it has several labels."""
    return f"({text})" if " and " in text or " or " in text else text
