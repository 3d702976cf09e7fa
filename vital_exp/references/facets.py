"""Facets: what a unit answers to may be several things, found by clustering the images that it answers to most.

Images are unit vectors in an embedding, clustered by k-means. How many facets there are, where that is not said: of all
numbers from 2 on whose facets have at least ``LEAST_MEMBERS`` images each, the one of the largest mean silhouette.
There is one facet where all images have much in common (a mean cosine of ``IN_COMMON``), unless that silhouette is
larger than in each of ``NULLS`` samples of one Gaussian of the same mean and covariance.

The clearest facet comes first: that of the largest coherence, times how far its members drive the unit on average. The
largest would not do: k-means leaves what fits nowhere in one cluster, which is often the largest, and whose images have
nothing in common that a picture could show (benchmarks/results/hidden_units.md).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vital_exp.errors import UsageError
from vital_exp.values import is_whole

Array = NDArray[np.float64]
AUTO = "auto"
KEY = "references.facets"
LEAST_MEMBERS = 8  # images of a facet
MOST_FACETS = 8  # that auto looks for
STARTS = 10  # of k-means; the best is kept
NULLS = 5  # samples without clusters that a clustering is compared with
# Mean cosine of images that may show one thing. Measured by activations of a MobileNetV2's last convolution: 0.50 to
# 0.56 for photographs of one class, 0.32 to 0.35 for the 80 images that drive a unit most.
IN_COMMON = 0.45
# Cosines are compared to this many digits: equal images are equal embeddings but for rounding.
DIGITS = 6


@dataclass(frozen=True)
class Facet:
    """One of the things that a unit answers to.

    Attributes:
        share: of the images that were clustered.
        coherence: mean pairwise cosine of its members' embeddings; 1 for a single member.
        members: their places among the images that were clustered, the nearest to the facet's centre first.
    """

    share: float
    coherence: float
    members: tuple[int, ...]


def check_facets(facets: object) -> None:
    """Check ``references.facets``.

    Raises:
        UsageError: neither auto nor a whole number of at least 1.
    """
    if facets == AUTO or is_whole(facets, 1):
        return
    raise UsageError(KEY, facets, "auto, or a whole number of at least 1", [AUTO])


def check_enough(facets: str | int, count: int, what: str) -> None:
    """Make sure that so many images can have so many facets.

    Args:
        facets: a number, or auto, which needs enough for two.
        count: images that compete.
        what: they are, for the message.

    Raises:
        UsageError: there are too few.
    """
    most, wanted = count // LEAST_MEMBERS, 2 if facets == AUTO else int(facets)
    if most < wanted:
        allowed = f"at most {most}" if most > 1 else "too few for 2"
        problem = f"{count} {what}, and a facet needs at least {LEAST_MEMBERS} of them: {allowed}"
        raise UsageError(KEY, facets, problem)


def find_facets(
    embeddings: Tensor, facets: str | int, count: int, seed: int = 0, strengths: Sequence[float] | None = None
) -> list[Facet]:
    """Return the facets of images, the clearest first; see this module's description.

    Args:
        embeddings: (n, D) of the images, of any length.
        facets: how many, at most n // ``LEAST_MEMBERS``; or ``"auto"``.
        count: members of a facet, at most: those nearest to its centre.
        seed: of the clustering.
        strengths: (n,) how far each image drives the unit; None: all alike.

    Raises:
        UsageError: more facets than different images.

    Examples:
        >>> from torch import eye
        >>> from vital_exp.references.facets import find_facets
        >>> two = eye(2).repeat_interleave(8, dim=0)  # 16 images of two kinds
        >>> [(facet.share, facet.coherence) for facet in find_facets(two, 2, count=8)]
        [(0.5, 1.0), (0.5, 1.0)]
    """
    vectors = _unit(embeddings.detach().cpu().double().numpy())  # (n, D)
    # In an orthonormal basis of what the vectors span: the same cosines in fewer numbers.
    coordinates = vectors @ np.linalg.qr(vectors.T)[0]  # (n, min(n, D))
    different = len(np.unique(coordinates.round(DIGITS), axis=0))
    if facets == AUTO:
        labels = _automatic(coordinates, different, seed)
    else:
        if int(facets) > different:
            raise UsageError(KEY, facets, f"more than there are different images among the strongest: {different}")
        labels = _clusters(coordinates, int(facets), seed)
    found = [_facet(vectors, np.flatnonzero(labels == label), count) for label in np.unique(labels)]
    known = np.ones(len(vectors)) if strengths is None else np.asarray(strengths, dtype=np.float64)
    return sorted(found, key=partial(_place, known))


def _place(strengths: Array, facet: Facet) -> tuple[bool, float, float, int]:
    """Return what orders the facets of images (n,): one of few images is coherent by chance and comes last."""
    few = round(facet.share * len(strengths)) < LEAST_MEMBERS
    clear = facet.coherence * float(strengths[list(facet.members)].mean())
    return few, -round(clear, DIGITS), -facet.share, min(facet.members)


def _unit(vectors: Array) -> Array:
    """Return vectors (n, D) at length 1; those of length 0 stay."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    found: Array = vectors / np.where(lengths > 0, lengths, 1.0)
    return found


def _automatic(vectors: Array, different: int, seed: int) -> NDArray[np.int64]:
    """Return each vector's facet, how many there are being found."""
    most = min(MOST_FACETS, len(vectors) // LEAST_MEMBERS, different - 1)
    tried = [_clusters(vectors, k, seed) for k in range(2, most + 1)]
    fitting = [labels for labels in tried if np.bincount(labels).min() >= LEAST_MEMBERS]
    one = np.zeros(len(vectors), dtype=np.int64)
    if not fitting:
        return one
    scores = [_silhouette(vectors, labels) for labels in fitting]
    best = int(np.argmax(scores))
    if _coherence(vectors) < IN_COMMON:
        return fitting[best]
    k = int(fitting[best].max()) + 1
    chance = [_silhouette(null, _clusters(null, k, seed)) for null in _nulls(vectors, seed)]
    return fitting[best] if scores[best] > max(chance) else one


def _nulls(vectors: Array, seed: int) -> list[Array]:
    """Return samples of a Gaussian of the vectors' mean and covariance, at length 1: one cluster each."""
    stream = np.random.default_rng(seed)
    mean, n = vectors.mean(axis=0), len(vectors)
    apart = (vectors - mean) / np.sqrt(n - 1)
    return [_unit(mean + stream.standard_normal((n, n)) @ apart) for _ in range(NULLS)]


def _clusters(vectors: Array, k: int, seed: int) -> NDArray[np.int64]:
    """Return each vector's cluster, 0 to k - 1, by k-means."""
    if k == 1:
        return np.zeros(len(vectors), dtype=np.int64)
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different vectors than clusters
        labels: NDArray[np.int64] = KMeans(k, n_init=STARTS, random_state=seed).fit_predict(vectors).astype(np.int64)
    return labels


def _silhouette(vectors: Array, labels: NDArray[np.int64]) -> float:
    from sklearn.metrics import silhouette_score

    if len(np.unique(labels)) < 2:
        return -1.0
    return float(silhouette_score(vectors, labels, metric="cosine"))


def _facet(vectors: Array, own: Sequence[int] | NDArray[np.int64], count: int) -> Facet:
    """Return the facet of the vectors at some places."""
    places = np.asarray(own)
    centre = _unit(vectors[places].mean(axis=0, keepdims=True))[0]
    nearest = np.argsort(-(vectors[places] @ centre).round(DIGITS), kind="stable")[:count]
    members = places[nearest]
    return Facet(len(places) / len(vectors), _coherence(vectors[members]), tuple(members.tolist()))


def _coherence(vectors: Array) -> float:
    """Return the mean cosine of all pairs of vectors of length 1."""
    n = len(vectors)
    if n < 2:
        return 1.0
    return float((np.square(vectors.sum(axis=0)).sum() - np.square(vectors).sum()) / (n * (n - 1)))
