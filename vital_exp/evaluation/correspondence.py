"""Does a picture look like what its unit answers to? Part (b) of VITAL's human study, by a network's embedding.

The share of pairs, of a natural image of the picture's own unit and one of another unit, in which the own one is more
like the picture: an area under the ROC curve, 0.5 by chance.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vital_exp.evaluation.ranking import auc

# Cosine from which on two embeddings are of one image, read in two batches: they differ by 1e-4 of their length.
SAME = 1 - 1e-8


def correspondence(picture: Tensor, own: Tensor, others: Tensor) -> float:
    """Return the share of pairs in which the own image is more like the picture, ties half; NaN without a pair.

    Args:
        picture: (D,) its embedding, of length 1.
        own: (P, D) of natural images of its unit or facet.
        others: (Q, D) of natural images of other units.
    """
    return _share(own @ picture, others @ picture)


def natural_correspondence(own: Tensor, others: Tensor) -> float:
    """Return what natural images of a unit reach, the ceiling of its pictures: the mean over them, each left out.

    Each in turn is the picture and is left out, with its copies: units often share an image that drives them most.

    Args:
        own: (P, D) embeddings, of length 1.
        others: (Q, D) likewise.

    Returns:
        NaN with fewer than two own images, or without others.
    """
    within, across = own @ own.T, own @ others.T
    within.fill_diagonal_(1)
    found = [_share(mine[mine < SAME], theirs[theirs < SAME]) for mine, theirs in zip(within, across, strict=True)]
    finite = [value for value in found if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def _share(own: Tensor, others: Tensor) -> float:
    if not len(own) or not len(others):
        return math.nan
    return 1 - auc(others, own)  # the few own ones are sorted, not the many others


def unit_vectors(features: Tensor) -> Tensor:
    """Return (N, D) float64 rows of length 1."""
    return torch.nn.functional.normalize(features.double(), dim=1)
