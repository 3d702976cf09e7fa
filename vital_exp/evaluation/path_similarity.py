"""Path similarity: whether a network processes pictures as it processes natural images.

Geirhos et al., ICML 2024, section 4; formula: docs/methods/metrics.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vital_exp.evaluation.intervals import interval, resamples


@dataclass(frozen=True)
class PathSimilarity:
    """The similarities in one layer, means over classes.

    Attributes:
        value: similarity of pictures to natural images of their class, on a scale where two natural images of one class
            have 1 and two of different classes have 0: (picture - different) / (same - different).
        low, high: the 95 % bootstrap interval of ``value``, over classes.
        n: number of classes.
        picture, same, different: raw similarities: of a picture and a natural image of its class, of two natural
            images of one class, of two natural images of different classes.
        scale_low: the lower end of the 95 % bootstrap interval of ``same - different``. If it is not above 0, natural
            images of one class may be no more similar than others, and ``value`` means nothing.
        by_class: {class: value}, with ``same`` and ``different`` of all classes together.
    """

    value: float
    low: float
    high: float
    n: int
    picture: float
    same: float
    different: float
    scale_low: float
    by_class: dict[int, float]


def path_similarity(
    pictures: Tensor,
    labels: Tensor,
    natural: Tensor,
    natural_labels: Tensor,
    measure: str = "spearman",
    facet_of: Sequence[int] | None = None,
) -> PathSimilarity:
    """Compare the activations of one layer for pictures with those for natural images of the same class.

    Args:
        pictures: (N, D), the layer's activations for pictures, flattened.
        labels: (N,), the class of each picture.
        natural: (M, D), the layer's activations for natural images.
        natural_labels: (M,), their classes. Only classes with at least two images are compared.
        measure: ``"spearman"``, ``"pearson"`` or ``"cosine"``.
        facet_of: for each class, where classes are facets, the unit of the facet. Two facets of one unit count neither
            as the same class nor as different ones. None: each class is a unit.

    Raises:
        ValueError: there are fewer than two classes, or no class has a picture and two natural images.
    """
    shown, real = MEASURES[measure](pictures), MEASURES[measure](natural)
    return _summary(_raw(shown, labels, real, natural_labels, facet_of))


def pooled(
    layers: Mapping[str, Tensor],
    labels: Tensor,
    natural: Mapping[str, Tensor],
    natural_labels: Tensor,
    measure: str = "spearman",
    facet_of: Sequence[int] | None = None,
) -> PathSimilarity:
    """Return :func:`path_similarity` over several layers: raw similarities are averaged over layers before the scaling.

    The early layers would dominate a mean of the scaled values, because natural images of different classes hardly
    differ there.
    """
    prepare = MEASURES[measure]
    parts = [_raw(prepare(layers[name]), labels, prepare(natural[name]), natural_labels, facet_of) for name in layers]
    classes = list(parts[0])
    return _summary({c: np.mean([part[c] for part in parts], axis=0) for c in classes})


def _raw(
    pictures: Tensor, labels: Tensor, natural: Tensor, natural_labels: Tensor, facet_of: Sequence[int] | None
) -> dict[int, NDArray[np.float64]]:
    """For each class ``picture``, ``same`` and ``different`` (see :class:`PathSimilarity`), (3,).

    Rows are unit vectors, so the mean similarity over pairs is a product of sums.
    """
    total = natural.sum(dim=0)
    units = natural_labels if facet_of is None else torch.tensor(facet_of)[natural_labels]
    found = {}
    for label in labels.unique().tolist():
        own = natural[natural_labels == label]
        family = natural[units == (label if facet_of is None else facet_of[int(label)])]  # all facets of the unit
        shown, others = pictures[labels == label], len(natural) - len(family)
        if len(own) < 2 or others < 1:
            continue
        sum_own = own.sum(dim=0)
        picture = float(shown.mean(dim=0) @ sum_own) / len(own)
        same = float(sum_own @ sum_own - own.square().sum()) / (len(own) * (len(own) - 1))
        different = float(sum_own @ (total - family.sum(dim=0))) / (len(own) * others)
        found[int(label)] = np.array([picture, same, different])
    if not found:
        raise ValueError("at least two natural images of a picture's class, and some of another class, are needed")
    return found


def _summary(raw: Mapping[int, NDArray[np.float64]]) -> PathSimilarity:
    table = np.stack(list(raw.values()))  # (classes, 3)
    picture, same, different = table.mean(axis=0)
    scale = same - different
    drawn = table[resamples(len(table))].mean(axis=1)
    low, high = interval(_normalised(drawn))
    scale_low, _ = interval(drawn[:, 1] - drawn[:, 2])
    by_class = {label: float((one[0] - different) / scale) for label, one in raw.items()}
    value = float((picture - different) / scale)
    raw_means = float(picture), float(same), float(different)
    return PathSimilarity(value, low, high, len(table), *raw_means, scale_low, by_class)


def _normalised(means: NDArray[np.float64]) -> NDArray[np.float64]:
    """(picture - different) / (same - different), (R,), of means (R, 3)."""
    picture, same, different = means.T
    found: NDArray[np.float64] = (picture - different) / (same - different)
    return found


def _unit(rows: Tensor) -> Tensor:
    """Rows scaled to unit length; a row of zeros stays zero, with similarity 0 to every row."""
    rows = rows.double()
    scaled: Tensor = rows / rows.norm(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    return scaled


def _centred(rows: Tensor) -> Tensor:
    rows = rows.double()
    return _unit(rows - rows.mean(dim=1, keepdim=True))


def ranks(rows: Tensor) -> Tensor:
    """Return the rank of each value in its row, (N, D) float64 from 0; equal values share their mean rank."""
    found = []
    for row in rows:
        _, group, counts = row.unique(return_inverse=True, return_counts=True)
        last = counts.cumsum(dim=0)
        found.append((last - (counts + 1) / 2)[group])
    return torch.stack(found).double()


# Each maps rows to unit vectors, whose scalar products are the similarities.
MEASURES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "spearman": lambda rows: _centred(ranks(rows)),
    "pearson": _centred,
    "cosine": _unit,
}
