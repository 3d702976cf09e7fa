"""Sparse words for embeddings of CLIP: SpLiCE (Bhalla et al. 2024; docs/methods/naming.md)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vital_exp.evaluation.clip import Clip
from vital_exp.mining.images import ImageFolder
from vital_exp.mining.index import Index
from vital_exp.naming.embeddings import embedded, unit_embeddings

PASSES, TOLERANCE = 10_000, 1e-6  # most iterations of coordinate descent; its tolerance (dual gap)
IMAGES = 256  # about so many images of the folder, evenly spread, give the images' mean
SHOWN = 8  # most words of a unit, by weight


def sparse_weights(pictures: Tensor, words: Tensor, image_mean: Tensor, penalty: float = 0.5) -> Tensor:
    """Return the non-negative weights of words whose weighted sum approximates each embedding, (N, W) float64.

    They are the w >= 0 that minimise 1/2 |z - C^T w|^2 + penalty c_max sum(w). z is the embedding minus the images'
    mean, the rows of C are the words minus their mean, all scaled to length 1. c_max is the largest cosine of z with a
    word: with this penalty or a larger one, w is 0. ``penalty`` is a share of c_max, which is ours.

    Args:
        pictures: (N, D), embeddings of images or units, of length 1.
        words: (W, D), embeddings of the vocabulary, of length 1.
        image_mean: (D,), the mean embedding of images.
        penalty: in (0, 1); the larger, the fewer words.
    """
    from sklearn.linear_model import Lasso

    dictionary = normalize(words.double() - words.double().mean(dim=0), dim=1)  # (W, D)
    centred = normalize(pictures.double() - image_mean.double(), dim=1)  # (N, D)
    largest = (centred @ dictionary.T).amax(dim=1)
    found = torch.zeros(len(pictures), len(words), dtype=torch.float64)
    for number, (target, most) in enumerate(zip(centred, largest.tolist(), strict=True)):
        if most > 0:  # else no word has a positive cosine, and all weights are 0
            lasso = Lasso(
                penalty * most / len(target), positive=True, fit_intercept=False, max_iter=PASSES, tol=TOLERANCE
            )
            found[number] = torch.from_numpy(lasso.fit(dictionary.T.numpy(), target.numpy()).coef_)
    return found


def image_mean(folder: ImageFolder, clip: Clip) -> Tensor:
    """Return the mean embedding (D,) of images of a folder, evenly spread over its paths."""
    numbers = range(0, len(folder.paths), max(1, len(folder.paths) // IMAGES))
    parts = [
        embedded(batch.rgb(torch.device("cpu")), folder, clip).double()
        for batch in folder.batches(numbers, 32)
        if batch.pixels is not None
    ]
    return torch.cat(parts).mean(dim=0)


def sparse_words(
    index: Index, folder: ImageFolder, clip: Clip, words: Sequence[str], penalty: float
) -> dict[tuple[str, int], list[str]]:
    """Return the words of each unit of an index with their weights, ``"fur 0.21"``, the largest first.

    Args:
        index: a finished index.
        folder: the images of the index.
        clip: embeds images and words.
        words: the vocabulary, at least three words.
        penalty: see :func:`sparse_weights`.
    """
    weights = sparse_weights(unit_embeddings(index, folder, clip), clip.names(words), image_mean(folder, clip), penalty)
    return {unit: _with_weights(row, words) for unit, row in zip(index.units(), weights, strict=True)}


def _with_weights(weights: Tensor, words: Sequence[str]) -> list[str]:
    best = weights.topk(min(SHOWN, len(weights)))
    pairs = zip(best.values.tolist(), best.indices.tolist(), strict=True)
    return [f"{words[place]} {value:.2f}" for value, place in pairs if value > 0]
