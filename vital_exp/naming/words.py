"""Words for units: those of a vocabulary that CLIP finds most like the patches that drive a unit."""

from __future__ import annotations

from collections.abc import Sequence

from vital_exp.evaluation.clip import NAMED, Clip, best_words
from vital_exp.mining.images import ImageFolder
from vital_exp.mining.index import Index
from vital_exp.naming.embeddings import unit_embeddings


def unit_words(index: Index, folder: ImageFolder, clip: Clip, words: Sequence[str]) -> dict[tuple[str, int], list[str]]:
    """Return the best words of each unit of an index, the most like its patches (or images) first.

    Args:
        index: finished.
        folder: its images.
        clip: reads pictures and words.
        words: of the vocabulary, at least three.
    """
    embedded = clip.names(words)  # (W, D)
    best = best_words(unit_embeddings(index, folder, clip), embedded, NAMED).tolist()
    return {unit: [words[place] for place in places] for unit, places in zip(index.units(), best, strict=True)}
