"""The map of a layer's units: units that fire for the same images lie together. UMAP; PCA if umap-learn is missing."""

from __future__ import annotations

import warnings
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

from vital_exp.atlases.profiles import UNITS_AT_ONCE, Profile
from vital_exp.errors import UsageError
from vital_exp.values import one_of

AUTO, UMAP, PCA = "auto", "umap", "pca"
METHODS = (AUTO, UMAP, PCA)
LARGEST = 2**22  # values in memory, 16 MB; of more images every n-th is taken
NEIGHBOURS = 15  # of UMAP, its default; a layer of fewer units is mapped by PCA


def check_method(method: object) -> None:
    """Check the key ``map``.

    Raises:
        UsageError: no such method, or umap-learn is not installed.
    """
    one_of("map", method, METHODS)
    if method == UMAP and not find_spec("umap"):
        raise UsageError("map", method, 'umap-learn is not installed: pip install "vital-exp[atlas]", or map=pca')


def method_of(asked: str, units: int) -> str:
    """Return the method that maps a layer of so many units."""
    there = asked != PCA and find_spec("umap") is not None
    return UMAP if there and units > NEIGHBOURS else PCA


def places(profile: Profile, seed: int, method: str = AUTO) -> NDArray[np.float64]:
    """Return the place of each unit, (U, 2) in [0, 1]; the same for the same seed.

    Units are compared by their activations over the images, less the mean and at length 1 (:meth:`Profile.centred`).
    Fewer than 3 units lie on a line.
    """
    count = len(profile)
    if count < 3:
        return np.stack([np.linspace(0, 1, count + 2)[1:-1], np.full(count, 0.5)], axis=1)
    every = max(1, -(-len(profile.rows) * count // LARGEST))
    vectors = np.concatenate(
        [profile.centred(start, start + UNITS_AT_ONCE)[::every].T.numpy() for start in range(0, count, UNITS_AT_ONCE)]
    )  # (U, images)
    found = _umap(vectors, seed) if method_of(method, count) == UMAP else _pca(vectors, seed)
    low, high = found.min(axis=0), found.max(axis=0)
    spread = np.where(high > low, high - low, 1.0)
    return np.asarray((found - low) / spread, dtype=np.float64)


def _pca(vectors: NDArray[np.float32], seed: int) -> NDArray[np.float64]:
    from sklearn.decomposition import PCA as Components

    parts = min(2, *vectors.shape)
    with np.errstate(invalid="ignore"):  # units that are all the same have no variance to explain
        found = Components(parts, random_state=seed).fit_transform(vectors.astype(np.float64))
    return np.pad(found, ((0, 0), (0, 2 - parts)))


def _umap(vectors: NDArray[np.float32], seed: int) -> NDArray[np.float64]:
    import umap

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = umap.UMAP(n_neighbors=NEIGHBOURS, random_state=seed, n_jobs=1).fit_transform(vectors)
    return np.asarray(found, dtype=np.float64)
