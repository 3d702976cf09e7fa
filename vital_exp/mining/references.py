"""Mined images and patches as reference images of hidden units."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from vital_exp.errors import UsageError
from vital_exp.mining.images import ImageFolder
from vital_exp.mining.index import Index, Row
from vital_exp.mining.patches import crops
from vital_exp.references.folder import warn_of_few
from vital_exp.targets.unit import Target

REGIONS = ("patch", "image")


@dataclass
class MinedReferences:
    """The images that drive each unit most, or the best patches of them.

    Attributes:
        mine: returns the finished index; called when the first image, or a unit's largest value, is asked for.
        key: of the mining; with the unit it says which images these are.
        folder: the images.
        count: references per unit.
        region: ``"patch"`` (METHODS 1.4, the paper) or ``"image"`` (the published code).
    """

    mine: Callable[[], Index]
    key: str
    folder: ImageFolder
    count: int
    region: str
    _told: set[str] = field(default_factory=set)

    @cached_property
    def index(self) -> Index:
        """The mining index; mined first if need be."""
        return self.mine()

    def images(self, target: Target) -> Iterator[Tensor]:
        """Yield a unit's references, the strongest first, each (3, H, W) float32 RGB at the network's input size."""
        rows = self._rows(target)
        if len(rows) < self.count and target.name not in self._told:
            self._told.add(target.name)
            warn_of_few(target, len(rows), self.count)
        for row in rows:
            image = self.folder.load(row.image)
            yield image if row.box is None else crops(image, [row.box])[0]

    def fingerprint(self, target: Target) -> str:
        """Return a hash of the folder, the settings and the unit; nothing is mined for it."""
        layer, index = self._unit(target)
        parts = (self.key, self.folder.fingerprint, layer, index, target.kind, self.count, self.region)
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def class_indices(self) -> None:
        """Return None: the images serve hidden units."""

    def largest_activation(self, target: Target) -> float:
        """Return the unit's largest natural activation."""
        return self.index.largest_activation(*self._unit(target))

    def _rows(self, target: Target) -> list[Row]:
        layer, index = self._unit(target)
        side = self.index.patches if self.region == "patch" else self.index.top
        return side(layer, index, self.count)

    @staticmethod
    def _unit(target: Target) -> tuple[str, int]:
        if target.layer is None:
            raise UsageError("references", "mined", "hidden units only: classes take references=folder")
        return target.layer, target.index
