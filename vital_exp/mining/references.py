"""Mined images and patches as reference images of hidden units (METHODS 1.4)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from vital_exp.errors import UsageError
from vital_exp.mining.images import ImageFolder
from vital_exp.mining.index import Index, Row
from vital_exp.mining.patches import enlarged
from vital_exp.references.decoding import CorruptImageError, printable
from vital_exp.references.folder import warn_of_few
from vital_exp.targets.unit import Target

REGIONS = ("patch", "image")


@dataclass
class MinedReferences:
    """The images that drive each unit most, or the strongest patch of each of them.

    Attributes:
        mine: returns the finished index; called when the first image, or a unit's largest value, is asked for.
        key: of the mining (``Mining.key``, ``index.meta["key"]``): what the index depends on.
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
        """Yield a unit's references, strongest first, each float32 (3, H, W) RGB in [0, 1] at the network's input size.

        A patch is cut out and enlarged, a whole image is as the network sees it. Warns of fewer than asked for.

        Raises:
            UsageError: a class, a unit that was not mined, or an image that can no longer be read.
        """
        rows = self.rows(target)
        if len(rows) < self.count and target.name not in self._told:
            self._told.add(target.name)
            warn_of_few(target, len(rows), self.count)
        yield from map(self._picture, rows)

    def rows(self, target: Target) -> list[Row]:
        """Return which images, or patches, a unit's references are."""
        layer, number = self._mined(target)
        read = self.index.patches if self.region == "patch" else self.index.top
        return read(layer, number, self.count)

    def fingerprint(self, target: Target) -> str:
        """Return a hash of the mining, of the files' sizes and times, and of the unit; nothing is mined for it."""
        layer, number = self._unit(target)
        parts = (self.key, self.folder.fingerprint, layer, number, target.kind, self.count, self.region)
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def class_indices(self) -> None:
        """Return None: the images serve hidden units."""

    def largest_activation(self, target: Target) -> float:
        """Return the unit's largest natural activation."""
        return self.index.largest_activation(*self._mined(target))

    def _mined(self, target: Target) -> tuple[str, int]:
        """Return the unit, after making sure that the index has such units of its layer."""
        layer, number = self._unit(target)
        kinds = {one["layer"]: "direction" if one["directions"] else "channel" for one in self.index.meta["layers"]}
        kind = "direction" if target.is_direction else "channel"
        if kinds.get(layer, kind) != kind:
            problem = f"{target.name} is none of the {kinds[layer]}s that were mined of {layer}"
            raise UsageError("references.index", self.index.path, problem)
        return layer, number

    @staticmethod
    def _unit(target: Target) -> tuple[str, int]:
        if target.layer is None:
            raise UsageError("references", "mined", "hidden units only: classes take references=folder")
        return target.layer, target.index

    def _picture(self, row: Row) -> Tensor:
        try:
            view = self.folder.load(row.image)
        except CorruptImageError as error:
            problem = f"{printable(row.image)} can no longer be read: {error.reason}"
            raise UsageError(self.folder.key, printable(self.folder.root), problem) from None
        return view if row.box is None else enlarged(view, row.box)
