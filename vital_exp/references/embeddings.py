"""Embeddings of the images that compete for facets; an image that drives several units is embedded once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Protocol

import torch
from torch import Tensor

from vital_exp.references.base import Candidate
from vital_exp.references.decoding import CorruptImageError
from vital_exp.targets.unit import Target

# Every pass of the embedding network has this many images, so that an embedding depends on its image alone: the batch
# size would change its last bits.
IMAGES_PER_PASS = 8
MOST_KEPT = 20_000  # embeddings in memory; at 2,048 channels they take 160 MB


class Embedding(Protocol):
    """Maps images to the vectors that they are clustered by."""

    def identity(self, target: Target, /) -> str:
        """Return a string of everything that the embedding of a target's images depends on, for cache keys."""
        ...

    def __call__(self, target: Target, /, pictures: Tensor) -> Tensor:
        """Return the embeddings (n, D) of images (n, 3, H, W) RGB in [0, 1]."""
        ...


class Embeddings:
    """Embeds the images of one unit after the other; an image that several units share is read and embedded once.

    Args:
        embedding: maps images to vectors.
        most: how many embeddings are kept; the oldest are dropped first.
    """

    def __init__(self, embedding: Embedding, most: int = MOST_KEPT) -> None:
        self.embedding, self.most = embedding, most
        self._kept: dict[tuple[str, str | int], Tensor] = {}

    def of(self, unit: Target, candidates: Sequence[Candidate]) -> tuple[dict[int, Tensor], list[str]]:
        """Return the embedding (D,) of each readable image of a unit by its place, and an error text for each other."""
        identity = self.embedding.identity(unit)
        keys = [None if one.shared is None else (identity, one.shared) for one in candidates]
        vectors = {place: self._kept[key] for place, key in enumerate(keys) if key in self._kept}
        corrupt: list[str] = []
        waiting = [place for place in range(len(candidates)) if place not in vectors]
        for place, embedding in self._embedded(unit, _readable(candidates, waiting, corrupt)):
            vectors[place] = embedding
            if (key := keys[place]) is not None:
                self._keep(key, embedding)
        return dict(sorted(vectors.items())), corrupt

    def forget(self) -> None:
        """Free the embeddings that are kept."""
        self._kept.clear()

    def _embedded(self, unit: Target, images: Iterator[tuple[int, Tensor]]) -> Iterator[tuple[int, Tensor]]:
        """Yield the place and the embedding (D,) of each image."""
        while chunk := list(islice(images, IMAGES_PER_PASS)):
            filled = [image for _, image in chunk] + [chunk[-1][1]] * (IMAGES_PER_PASS - len(chunk))
            vectors = self.embedding(unit, torch.stack(filled))
            yield from ((place, vectors[i].clone()) for i, (place, _) in enumerate(chunk))

    def _keep(self, key: tuple[str, str | int], embedding: Tensor) -> None:
        if len(self._kept) >= self.most:
            del self._kept[next(iter(self._kept))]
        self._kept[key] = embedding


def _readable(
    candidates: Sequence[Candidate], places: Sequence[int], corrupt: list[str]
) -> Iterator[tuple[int, Tensor]]:
    """Yield the place and the image (3, H, W) of each readable candidate; errors of the others go to ``corrupt``."""
    for place in places:
        try:
            yield place, candidates[place].load()
        except CorruptImageError as error:
            corrupt.append(str(error))
