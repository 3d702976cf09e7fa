"""Correspondence of pictures and natural images, by a network's embedding: a proxy of part (b) of VITAL's human study.

Take all pairs of a natural image of the picture's own unit and one of another unit. Correspondence is the share in
which the picture is more similar to its own unit's image: an area under the ROC curve, 0.5 by chance.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vital_exp.evaluation.ranking import auc

# Two embeddings with at least this cosine are of one image: read in two batches, they differ by 1e-4 of their length.
SAME = 1 - 1e-8


def correspondence(picture: Tensor, own: Tensor, others: Tensor) -> float:
    """Return the share of pairs in which the picture is more similar to the own image; a tie counts half.

    Args:
        picture: (D,), the picture's embedding, a unit vector.
        own: (P, D), embeddings of natural images of its unit or facet.
        others: (Q, D), embeddings of natural images of other units.

    Returns:
        A number in [0, 1]; NaN without a pair.
    """
    return _share(own @ picture, others @ picture)


def natural_correspondence(own: Tensor, others: Tensor) -> float:
    """Return the mean correspondence of a unit's natural images: the ceiling for its pictures.

    Each natural image takes the place of the picture in turn. It and its copies are left out of the pairs, because
    units often share the image that drives them most.

    Args:
        own: (P, D), embeddings of the unit's natural images, unit vectors.
        others: (Q, D), embeddings of natural images of other units, unit vectors.

    Returns:
        A number in [0, 1]; NaN with fewer than two own images, or without others.
    """
    within, across = own @ own.T, own @ others.T
    within.fill_diagonal_(1)
    found = [_share(mine[mine < SAME], theirs[theirs < SAME]) for mine, theirs in zip(within, across, strict=True)]
    finite = [value for value in found if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def _share(own: Tensor, others: Tensor) -> float:
    if not len(own) or not len(others):
        return math.nan
    return 1 - auc(others, own)  # auc sorts its second argument: here the shorter one


def unit_vectors(features: Tensor) -> Tensor:
    """Return the rows scaled to unit length, (N, D) float64."""
    return torch.nn.functional.normalize(features.double(), dim=1)
