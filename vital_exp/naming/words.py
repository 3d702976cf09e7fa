"""Words for units: those of a vocabulary that CLIP finds most like the patches that drive a unit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vital_exp.evaluation.clip import NAMED, Clip, best_words
from vital_exp.mining.images import ImageFolder
from vital_exp.mining.index import Index
from vital_exp.mining.references import MinedReferences
from vital_exp.targets.unit import Target

PATCHES = 20  # of each unit, at most


def unit_words(index: Index, folder: ImageFolder, clip: Clip, words: Sequence[str]) -> dict[tuple[str, int], list[str]]:
    """Return the best words of each unit of an index, the most like its patches (or images) first.

    Args:
        index: finished.
        folder: its images.
        clip: reads pictures and words.
        words: of the vocabulary, at least three.
    """
    embedded = clip.names(words)  # (W, D)
    units = index.units()
    means = torch.stack([_mean_embedding(index, folder, clip, unit) for unit in units])
    best = best_words(means, embedded, NAMED).tolist()
    return {unit: [words[place] for place in places] for unit, places in zip(units, best, strict=True)}


def _mean_embedding(index: Index, folder: ImageFolder, clip: Clip, unit: tuple[str, int]) -> Tensor:
    """Return the mean embedding (D,) of what drives a unit most, of length 1."""
    directed = {one["layer"]: bool(one["directions"]) for one in index.meta["layers"]}
    target = Target("direction" if directed[unit[0]] else "channel", unit[1], unit[0])
    region = "patch" if index.meta["patch"] else "image"
    source = MinedReferences(lambda: index, "", folder, min(PATCHES, index.meta["k"]), region)
    pictures = torch.stack(list(source.images(target)))
    return normalize(clip(pictures).features.mean(dim=0), dim=0)
