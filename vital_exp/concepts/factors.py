"""Factorisations of activations: NMF as in CRAFT (Fel et al., CVPR 2023), k-means and PCA, by scikit-learn."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vital_exp.errors import UsageError
from vital_exp.values import one_of

Array = NDArray[np.float64]
# Iterations of coordinate descent (NMF) and of Lloyd's algorithm (k-means), at most; few problems need a tenth of them.
MOST_ITERATIONS = 1000
RESTARTS = 4  # starts of k-means; the best result is kept


@dataclass(frozen=True)
class Factors:
    """Activations as a mean plus coefficients times components.

    Attributes:
        method: ``"nmf"``, ``"kmeans"`` or ``"pca"``.
        components: (K, C) float32; a concept adds its row, times its coefficient, to an activation.
        mean: (C,) float32, the activation without any concept; 0 for NMF.
        directions: (K, C) float32, the vectors whose products with an activation read the concepts: for NMF the
            pseudo-inverse of the components, which gives the least-squares coefficients without the constraint to be
            non-negative; for PCA and k-means the components (k-means: centre minus mean).
    """

    method: str
    components: Tensor
    mean: Tensor
    directions: Tensor

    def coefficients(self, activations: Tensor) -> Tensor:
        """Return the coefficients of the concepts in activations (n, C): (n, K) float32.

        NMF: non-negative least squares; PCA: projections; k-means: 1 for the nearest centre, else 0.
        """
        values = activations.detach().cpu().double().numpy()
        found = METHODS[self.method].encode(values, self)
        return torch.from_numpy(np.ascontiguousarray(found, dtype=np.float32)).to(activations.device)


def factorise(activations: Tensor, count: int, method: str = "nmf", seed: int = 0) -> Factors:
    """Return ``count`` concepts of activations (n, C).

    Args:
        activations: (n, C); for NMF not negative.
        count: K, at most n and C.
        method: ``"nmf"``, ``"kmeans"`` or ``"pca"``.
        seed: of the random start; PCA has none.

    Raises:
        UsageError: an unknown method, more concepts than activations or channels, negative activations for NMF.

    Examples:
        >>> import torch
        >>> from vital_exp.concepts.factors import factorise
        >>> two = torch.tensor([[1.0, 0.0, 0.0], [2.0, 0.0, 0.0], [0.0, 3.0, 3.0]])  # along two directions
        >>> found = factorise(two, 2)
        >>> again = found.coefficients(two) @ found.components + found.mean
        >>> torch.allclose(again, two, atol=1e-3)
        True
    """
    one_of("concepts", method, METHODS)
    patches, channels = activations.shape
    if count > min(patches, channels):
        raise UsageError(
            "concepts.count", count, f"at most {min(patches, channels)}: {patches} patches, {channels} channels"
        )
    values = activations.detach().cpu().double().numpy()
    if method == "nmf" and values.min() < 0:
        raise UsageError("concepts", method, f"needs activations of at least 0, and the smallest is {values.min():.3g}")
    components, mean, directions = METHODS[method].fit(values, count, seed)
    return Factors(
        method, *(torch.from_numpy(np.ascontiguousarray(a, dtype=np.float32)) for a in (components, mean, directions))
    )


def _fit_nmf(values: Array, count: int, seed: int) -> tuple[Array, Array, Array]:
    from sklearn.decomposition import NMF

    model = NMF(count, init="nndsvda", max_iter=MOST_ITERATIONS, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Maximum number of iterations")
        model.fit(values)
    components: Array = model.components_
    return components, np.zeros(values.shape[1]), np.linalg.pinv(components).T


def _encode_nmf(values: Array, factors: Factors) -> Array:
    from sklearn.decomposition import non_negative_factorization

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Maximum number of iterations")
        found: Array = non_negative_factorization(
            np.maximum(values, 0),  # a position may be negative where no mean over a patch was
            H=factors.components.double().numpy(),
            n_components=len(factors.components),
            update_H=False,
            max_iter=MOST_ITERATIONS,
        )[0]
    return found


def _fit_pca(values: Array, count: int, seed: int) -> tuple[Array, Array, Array]:
    from sklearn.decomposition import PCA

    model = PCA(count, svd_solver="full").fit(values)
    return model.components_, model.mean_, model.components_


def _encode_pca(values: Array, factors: Factors) -> Array:
    found: Array = (values - factors.mean.double().numpy()) @ factors.components.double().numpy().T
    return found


def _fit_kmeans(values: Array, count: int, seed: int) -> tuple[Array, Array, Array]:
    from sklearn.cluster import KMeans

    model = KMeans(count, n_init=RESTARTS, max_iter=MOST_ITERATIONS, random_state=seed).fit(values)
    mean = values.mean(axis=0)
    apart = model.cluster_centers_ - mean
    return apart, mean, apart


def _encode_kmeans(values: Array, factors: Factors) -> Array:
    centres = (factors.mean + factors.components).double().numpy()
    squares = (centres**2).sum(axis=1) - 2 * values @ centres.T  # squared distances, less a constant of each row
    found: Array = np.eye(len(centres))[squares.argmin(axis=1)]
    return found


@dataclass(frozen=True)
class Method:
    """A factorisation: ``fit`` returns (components, mean, directions), ``encode`` the coefficients of activations."""

    fit: Callable[[Array, int, int], tuple[Array, Array, Array]]
    encode: Callable[[Array, Factors], Array]


METHODS: Mapping[str, Method] = {
    "nmf": Method(_fit_nmf, _encode_nmf),
    "kmeans": Method(_fit_kmeans, _encode_kmeans),
    "pca": Method(_fit_pca, _encode_pca),
}
