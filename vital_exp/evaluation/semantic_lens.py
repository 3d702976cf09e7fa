"""Clarity, redundancy and polysemanticity of units (SemanticLens, Dreyer et al. 2025; docs/methods/metrics.md).

They describe units, not the quality of pictures: pictures that all look the same have a high clarity, even of noise.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vital_exp.evaluation.score import NotComputed

KMEANS_STEPS = 50  # two groups of a handful of vectors converge in fewer
LEAST_FOR_GROUPS = 3


def clarity(embeddings: Tensor) -> float:
    """Return the mean cosine over pairs of a unit's images: (|mean v|^2 - 1/n) n / (n - 1), v their unit vectors.

    Args:
        embeddings: (n, D), of the unit's images, n at least 2.

    Raises:
        NotComputed: there are fewer than 2 images.
    """
    count = len(embeddings)
    if count < 2:
        raise NotComputed(f"needs at least 2 images of a unit, and there is {count}")
    mean = normalize(embeddings.double(), dim=1).mean(dim=0)
    return float((mean @ mean - 1 / count) * count / (count - 1))


def redundancy(concepts: Tensor) -> Tensor:
    """Return for each unit the cosine to the most similar other unit, (T,).

    Args:
        concepts: (T, D), one embedding per unit, T at least 2.

    Raises:
        NotComputed: there are fewer than 2 units.
    """
    if len(concepts) < 2:
        raise NotComputed(f"needs at least 2 units, and there is {len(concepts)}")
    unit = normalize(concepts.double(), dim=1)
    return (unit @ unit.T).fill_diagonal_(-torch.inf).amax(dim=1)


def polysemanticity(embeddings: Tensor) -> float:
    """Return 1 - clarity of the centres of two groups of a unit's images: 0 where both groups show the same thing.

    k-means with k = 2 on unit vectors finds the groups, starting from the least similar pair.

    Args:
        embeddings: (n, D), of the unit's images, n at least 3.

    Raises:
        NotComputed: there are fewer than 3 images.
    """
    if len(embeddings) < LEAST_FOR_GROUPS:
        raise NotComputed(f"needs at least {LEAST_FOR_GROUPS} images of a unit, and there are {len(embeddings)}")
    unit = normalize(embeddings.double(), dim=1)
    alike = unit @ unit.T
    centres = unit[[*divmod(int(alike.argmin()), len(unit))]]
    member = (unit @ centres.T).argmax(dim=1)
    for _ in range(KMEANS_STEPS):
        if member.unique().numel() < 2:  # all images have the same embedding
            return 0.0
        centres = torch.stack([unit[member == group].mean(dim=0) for group in range(2)])
        moved = torch.cdist(unit, centres).argmin(dim=1)
        if torch.equal(moved, member):
            break
        member = moved
    return 1 - clarity(centres)
