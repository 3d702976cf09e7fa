"""Inception Score, FID and KID, from given logits or features.

torchmetrics computes the values. The bootstrap intervals are ours: resampling with torchmetrics would decompose a
D x D matrix for each resample; the n x n products of the pictures give the same numbers.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vital_exp.evaluation.intervals import interval_around, resamples
from vital_exp.evaluation.score import NotComputed, Score

FID_RESAMPLES = 200  # each an eigendecomposition
FID_AFFORDABLE = 300  # pictures; with more, a resample takes longer than about 10 ms
KID_SUBSET = 1000  # pictures per subset (Binkowski et al. 2018), where there are enough
KID_SUBSETS = 100


class _Given(nn.Module):
    """A feature extractor for torchmetrics that returns its input: the features are given."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def inception_score(logits: Tensor) -> Score:
    """Return exp of the mean KL divergence of each picture's class probabilities from their mean (one split).

    Args:
        logits: (N, K) of any classifier, float32.

    Examples:
        >>> import torch
        >>> from vital_exp.evaluation.distances import inception_score
        >>> round(inception_score(100 * torch.eye(4)).value, 3)  # four pictures of four classes, without doubt
        4.0
    """
    from torchmetrics.image.inception import InceptionScore

    _need_pictures(len(logits), 2)
    with _without_warnings():
        metric = InceptionScore(feature=_Given(logits.shape[1]), splits=1)
        metric.update(logits)
        value = float(metric.compute()[0])
    probabilities = logits.double().softmax(dim=1).numpy()
    return _with_interval(value, _inception_scores(probabilities), len(logits))


def _inception_scores(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """The score of each resample, (R,): a resample only changes the weights of the pictures."""
    weights = _weights(len(probabilities))  # (R, N), rows sum to 1
    entropies = np.where(probabilities > 0, probabilities * np.log(np.maximum(probabilities, 1e-300)), 0).sum(axis=1)
    marginal = weights @ probabilities  # (R, K)
    of_marginal = np.where(marginal > 0, marginal * np.log(np.maximum(marginal, 1e-300)), 0).sum(axis=1)
    scores: NDArray[np.float64] = np.exp(weights @ entropies - of_marginal)
    return scores


def fid(pictures: Tensor, natural: Tensor) -> Score:
    """Return the Frechet distance between Gaussians fitted to two sets of features (Heusel et al. 2017).

    Args:
        pictures: (N, D) features.
        natural: (M, D) features of natural images.

    Examples:
        >>> import torch
        >>> from vital_exp.evaluation.distances import fid
        >>> natural = torch.eye(3).repeat(2, 1)
        >>> round(fid(natural + 1, natural).value, 3)  # the squared distance of the means
        3.0
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    _need_pictures(len(pictures), 2)
    _need_natural(len(natural), 2)
    metric = FrechetInceptionDistance(feature=_Given(pictures.shape[1]))
    metric.update(natural, real=True)
    metric.update(pictures, real=False)
    value = float(metric.compute())
    note = _singular(pictures, natural)
    if len(pictures) > FID_AFFORDABLE:
        unaffordable = f"no interval: resampling more than {FID_AFFORDABLE} pictures takes too long"
        return Score(value, n=len(pictures), reason=f"{note}; {unaffordable}" if note else unaffordable)
    found = _with_interval(value, _resampled_fid(pictures.double(), natural.double()), len(pictures), note)
    return replace(found, low=max(0.0, found.low or 0.0))  # no distance is below 0


def _singular(pictures: Tensor, natural: Tensor) -> str | None:
    count, dimensions = min(len(pictures), len(natural)), pictures.shape[1]
    if count > dimensions:
        return None
    return f"{count} images in {dimensions} dimensions: the covariance is singular, read KID beside it"


def _resampled_fid(pictures: Tensor, natural: Tensor) -> NDArray[np.float64]:
    """The distance of each resample of the pictures, (R,).

    X is the pictures' features minus their mean, C their covariance, and S the natural covariance. tr (C S)^(1/2) is
    then the sum of the square roots of the eigenvalues of X S X^T / (n - 1), an n x n matrix. All features are first
    shifted so that the natural mean is 0.
    """
    origin = natural.mean(dim=0)
    shifted, centred = pictures - origin, natural - origin
    count = len(pictures)
    across = (shifted @ centred.T) / (len(natural) - 1) ** 0.5  # (N, M)
    through, inner = across @ across.T, shifted @ shifted.T  # (N, N): X S X^T and X X^T
    spread = float(centred.square().sum() / (len(natural) - 1))  # tr S
    found = []
    for chosen in torch.from_numpy(resamples(count, count=FID_RESAMPLES)):
        products = inner[chosen][:, chosen]
        mean_square = products.mean()  # |mean of the resample - natural mean|^2
        trace = (products.diagonal().sum() - count * mean_square) / (count - 1)
        centred_through = _doubly_centred(through[chosen][:, chosen]) / (count - 1)
        roots = torch.linalg.eigvalsh(centred_through).clamp(min=0).sqrt().sum()
        found.append(float(mean_square + trace + spread - 2 * roots))
    return np.asarray(found)


def _doubly_centred(matrix: Tensor) -> Tensor:
    return matrix - matrix.mean(dim=0, keepdim=True) - matrix.mean(dim=1, keepdim=True) + matrix.mean()


def kid(pictures: Tensor, natural: Tensor, subset_size: int | None = None) -> Score:
    """Return KID: the squared maximum mean discrepancy of two sets of features, with the kernel (x.y / D + 1)^3.

    It is the mean over 100 random subsets (Binkowski et al. 2018).

    Args:
        pictures: (N, D) features.
        natural: (M, D) features of natural images.
        subset_size: number of pictures, and of natural images, in a subset; None: 1000, or all where there are fewer.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    least = subset_size or 2
    _need_pictures(len(pictures), least)
    _need_natural(len(natural), least)
    size = subset_size or min(KID_SUBSET, len(pictures), len(natural))
    whole = size == len(pictures) == len(natural)  # then each subset is the whole set, and one is enough
    with torch.random.fork_rng(devices=[]), _without_warnings():
        torch.manual_seed(0)  # torchmetrics draws subsets from the global generator
        subsets = 1 if whole else KID_SUBSETS
        metric = KernelInceptionDistance(_Given(pictures.shape[1]), subsets=subsets, subset_size=size)
        metric.update(natural, real=True)
        metric.update(pictures, real=False)
        value = float(metric.compute()[0])
    note = None if size == (subset_size or KID_SUBSET) else f"subsets of {size}, as many as there are"
    return _with_interval(value, _resampled_kid(pictures.double(), natural.double()), len(pictures), note)


def _resampled_kid(pictures: Tensor, natural: Tensor) -> NDArray[np.float64]:
    """The unbiased discrepancy of each resample of the pictures, (R,); copies of one picture are not compared."""

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    own, cross = kernel(pictures, pictures).fill_diagonal_(0).numpy(), kernel(pictures, natural).mean(dim=1).numpy()
    others = kernel(natural, natural)
    constant = float((others.sum() - others.diagonal().sum()) / (len(natural) * (len(natural) - 1)))
    weights = _weights(len(pictures))  # (R, N)
    pairs = 1 - np.square(weights).sum(axis=1)  # the share of pairs of different pictures
    within = ((weights @ own) * weights).sum(axis=1) / np.maximum(pairs, np.finfo(np.float64).tiny)
    found: NDArray[np.float64] = within + constant - 2 * weights @ cross
    defined: NDArray[np.float64] = found[pairs > 0]
    return defined


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Ignore torchmetrics' warnings: that it keeps all features, and that one subset has no deviation."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _weights(count: int) -> NDArray[np.float64]:
    """The share of each of ``count`` pictures in each resample, (R, count); rows sum to 1."""
    chosen = resamples(count)
    counts = np.zeros((len(chosen), count))
    np.add.at(counts, (np.arange(len(chosen))[:, None], chosen), 1 / count)
    return counts


def _with_interval(value: float, statistics: NDArray[np.float64], n: int, reason: str | None = None) -> Score:
    low, high = interval_around(value, statistics)
    return Score(value, low, high, n, reason)


def _need_pictures(there: int, least: int) -> None:
    if there < least:
        raise NotComputed(f"needs at least {least} pictures, and there {'is' if there == 1 else 'are'} {there}")


def _need_natural(there: int, least: int) -> None:
    if there < least:
        raise NotComputed(f"needs at least {least} natural images, and there {'is' if there == 1 else 'are'} {there}")
