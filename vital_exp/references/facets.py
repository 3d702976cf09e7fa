"""Facets: the images that drive a unit most are clustered, for a unit may answer to several things.

Each image is a unit vector in an embedding; k-means clusters the vectors. With ``auto``, the number of facets is the
number from 2 to ``MOST_FACETS`` with the largest mean silhouette, numbers that leave a cluster of fewer than
``LEAST_MEMBERS`` images excepted. If the images have much in common (a mean cosine of at least ``IN_COMMON``), that
silhouette must also exceed the silhouette of each of ``NULLS`` samples from one Gaussian with the images' mean and
covariance; else there is one facet.

The clearest facet comes first: the facet with the largest product of coherence and mean strength of its members. The
size would be the wrong order: k-means gathers the images that fit nowhere in one cluster, which is often the largest,
and these images have nothing in common that a picture could show (benchmarks/results/hidden_units.md).
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
MOST_FACETS = 8  # facets that auto looks for
STARTS = 10  # starts of k-means; the best result is kept
NULLS = 5  # samples without clusters that a clustering is compared with
# From this mean cosine on, images may show one thing. Measured with activations of a MobileNetV2's last convolution:
# 0.50 to 0.56 for photographs of one class, 0.32 to 0.35 for the 80 images that drive a unit most.
IN_COMMON = 0.45
# Numbers are compared to this many decimals: embeddings of equal images may differ by rounding.
DIGITS = 6


@dataclass(frozen=True)
class Facet:
    """One of the things that a unit answers to.

    Attributes:
        share: the share of the clustered images that belong to the facet, in (0, 1].
        coherence: the mean pairwise cosine of the members' embeddings; 1 for a single member.
        members: places of the members among the clustered images, the nearest to the facet's centre first.
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
    raise UsageError(KEY, facets, "must be auto, or a whole number of at least 1", [AUTO])


def check_enough(facets: str | int, count: int, images: str) -> None:
    """Make sure that there are enough images for a number of facets.

    Args:
        facets: a number, or auto, which needs enough images for two facets.
        count: the number of images that compete.
        images: describes the images in the message.

    Raises:
        UsageError: there are too few images.
    """
    most, wanted = count // LEAST_MEMBERS, 2 if facets == AUTO else int(facets)
    if most < wanted:
        allowed = f"at most {most}" if most > 1 else "too few for 2"
        problem = f"{count} {images}, and a facet needs at least {LEAST_MEMBERS} of them: {allowed}"
        raise UsageError(KEY, facets, problem)


def find_facets(
    embeddings: Tensor, facets: str | int, count: int, seed: int = 0, strengths: Sequence[float] | None = None
) -> list[Facet]:
    """Return the facets of images, the clearest first; see this module's description.

    Args:
        embeddings: (n, D), one vector per image, of any length.
        facets: the number of facets, at most n // ``LEAST_MEMBERS``; or ``"auto"``.
        count: the most members of a facet; those nearest to its centre are kept.
        seed: the seed of the clustering.
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
    # Coordinates in an orthonormal basis of the vectors' span have the same cosines, and are fewer where D > n.
    coordinates = vectors @ np.linalg.qr(vectors.T)[0]  # (n, min(n, D))
    different = len(np.unique(coordinates.round(DIGITS), axis=0))
    if facets == AUTO:
        labels = _automatic(coordinates, different, seed)
    else:
        if int(facets) > different:
            problem = f"only {different} of the images that compete are different: at most {different}"
            raise UsageError(KEY, facets, problem)
        labels = _clusters(coordinates, int(facets), seed)
    unordered = [_facet(vectors, np.flatnonzero(labels == label), count) for label in np.unique(labels)]
    weights = np.ones(len(vectors)) if strengths is None else np.asarray(strengths, dtype=np.float64)
    return sorted(unordered, key=partial(_rank, weights))


def _rank(strengths: Array, facet: Facet) -> tuple[bool, float, float, int]:
    """Return a facet's sort key; a facet of few images comes last, since it is coherent by chance."""
    few = round(facet.share * len(strengths)) < LEAST_MEMBERS
    clearness = facet.coherence * float(strengths[list(facet.members)].mean())
    return few, -round(clearness, DIGITS), -facet.share, min(facet.members)


def _unit(vectors: Array) -> Array:
    """Return vectors (n, D) at length 1; vectors of length 0 stay 0."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Array = vectors / np.where(lengths > 0, lengths, 1.0)
    return unit


def _automatic(vectors: Array, different: int, seed: int) -> NDArray[np.int64]:
    """Return each vector's facet, (n,), with the number of facets chosen by silhouette."""
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
    """Return samples (n, D) of one Gaussian with the vectors' mean and covariance, at length 1, so without clusters."""
    stream = np.random.default_rng(seed)
    mean, n = vectors.mean(axis=0), len(vectors)
    deviations = (vectors - mean) / np.sqrt(n - 1)  # random mixtures of these have the vectors' covariance
    return [_unit(mean + stream.standard_normal((n, n)) @ deviations) for _ in range(NULLS)]


def _clusters(vectors: Array, k: int, seed: int) -> NDArray[np.int64]:
    """Return each vector's cluster by k-means, (n,) from 0 to k - 1."""
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


def _facet(vectors: Array, places: NDArray[np.int64], count: int) -> Facet:
    """Return the facet made of the vectors at ``places``."""
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
