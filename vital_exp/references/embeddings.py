"""Embeddings of the images that compete for facets: each image once, however many units it drives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Protocol

import torch
from torch import Tensor

from vital_exp.references.base import Candidate
from vital_exp.references.decoding import CorruptImageError
from vital_exp.targets.unit import Target

# Through the embedding network, always as many: an embedding depends on nothing but its image.
IMAGES_PER_PASS = 8
MOST_KEPT = 20_000  # embeddings; those of 2,048 channels take 160 MB


class Embedding(Protocol):
    """What images are clustered by."""

    def identity(self, target: Target, /) -> str:
        """Return all that the embedding of a target's images depends on."""
        ...

    def __call__(self, target: Target, /, pictures: Tensor) -> Tensor:
        """Return (n, D) for pictures (n, 3, H, W) RGB."""
        ...


class Embeddings:
    """Embeds the images of unit after unit; an image that several units have is read and embedded once.

    Args:
        embedding: what images are clustered by.
        most: embeddings that are kept; the oldest go first.
    """

    def __init__(self, embedding: Embedding, most: int = MOST_KEPT) -> None:
        self.embedding, self.most = embedding, most
        self._kept: dict[tuple[str, str | int], Tensor] = {}

    def of(self, unit: Target, candidates: Sequence[Candidate]) -> tuple[dict[int, Tensor], list[str]]:
        """Return the embedding (D,) of each image of a unit by its place, and what is wrong with those left out."""
        identity = self.embedding.identity(unit)
        keys = [None if one.shared is None else (identity, one.shared) for one in candidates]
        found = {place: self._kept[key] for place, key in enumerate(keys) if key in self._kept}
        corrupt: list[str] = []
        waiting = [place for place in range(len(candidates)) if place not in found]
        for place, embedding in self._embedded(unit, _readable(candidates, waiting, corrupt)):
            found[place] = embedding
            if (key := keys[place]) is not None:
                self._keep(key, embedding)
        return dict(sorted(found.items())), corrupt

    def forget(self) -> None:
        """Free the embeddings that are kept."""
        self._kept.clear()

    def _embedded(self, unit: Target, images: Iterator[tuple[int, Tensor]]) -> Iterator[tuple[int, Tensor]]:
        """Yield place and embedding of images."""
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
    """Yield place and image (3, H, W) of those that can be read; what is wrong with the others goes to ``corrupt``."""
    for place in places:
        try:
            yield place, candidates[place].load()
        except CorruptImageError as error:
            corrupt.append(str(error))
