"""Mined images and patches as reference images of hidden units (docs/methods/mining.md)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

from torch import Tensor

from vital_exp.errors import UsageError
from vital_exp.mining.images import ImageFolder
from vital_exp.mining.index import Index, Row
from vital_exp.mining.patches import cut, enlarged
from vital_exp.mining.windows import AUTO
from vital_exp.references.base import PER_TARGET, Candidate, Competing
from vital_exp.references.decoding import CorruptImageError, printable
from vital_exp.references.facets import Facet
from vital_exp.references.folder import warn_of_few
from vital_exp.targets.unit import Target

REGIONS = ("patch", "image", "window")


@dataclass
class MinedReferences(Competing):
    """The images that drive each unit most, or their strongest patches or windows.

    Attributes:
        mine: returns the finished index; called when the first image, or a unit's largest activation, is asked for.
        key: the hash of everything that the index depends on (``Mining.key``, ``index.meta["key"]``).
        folder: the images.
        count: references per unit.
        region: ``"patch"`` (VITAL's paper), ``"image"`` (VITAL's published code) or ``"window"``, the part of each
            image around the unit's strongest position.
        window: the side of windows, see :meth:`Index.windows`.
        candidates_count: images, patches or windows that compete for the facets of a unit.
        enlarge: whether windows are enlarged to the network's input size; False: they keep their size.
        is_mined: returns whether the index exists, without mining.
        plan: returns the plan of each pass of mining, by the pass's name; None for an index that is given.
    """

    mine: Callable[[], Index]
    key: str
    folder: ImageFolder
    count: int
    region: str
    window: str | float = AUTO
    candidates_count: int = PER_TARGET
    enlarge: bool = True
    is_mined: Callable[[], bool] = lambda: True
    plan: Callable[[], dict[str, str]] | None = None
    _told_few: set[str] = field(default_factory=set)

    @cached_property
    def index(self) -> Index:
        """The mining index; mining runs now if the index does not exist."""
        return self.mine()

    def images(self, target: Target) -> Iterator[Tensor]:
        """Yield a unit's references, strongest first, each float32 (C, H, W) in [0, 1] at the network's input size.

        Patches and windows are cut out and enlarged; with ``enlarge`` False they keep their size. Whole images are
        resized and cropped to the network's input. Warns once per target if there are fewer images than asked for.

        Raises:
            UsageError: the target is a class, its unit was not mined, or an image can no longer be read.
        """
        rows = self.rows(target)
        if len(rows) < self.count and target.name not in self._told_few:
            self._told_few.add(target.name)
            warn_of_few(target, len(rows), self.count)
        yield from map(self._picture, rows)

    def rows(self, target: Target) -> list[Row]:
        """Return the rows of the index that are a unit's references."""
        return self._strongest(target, self.count)

    def _strongest(self, target: Target, count: int) -> list[Row]:
        layer, number = self.unit_of(target)
        if self.region == "window":
            return self.index.windows(layer, number, count, self.window)
        read = self.index.patches if self.region == "patch" else self.index.top
        return read(layer, number, count)

    def fingerprint(self, target: Target) -> str:
        """Return a hash of the mining, of the files' sizes and times, and of the unit; nothing is mined."""
        layer, number = self._unit(target)
        parts = [self.key, self.folder.fingerprint, layer, number, target.kind, self.count, self.region, self.window]
        parts += [] if self.enlarge else ["as large as they are"]
        return hashlib.sha256(repr(tuple(parts)).encode()).hexdigest()

    def candidates(self, target: Target) -> list[Candidate]:
        """Return the images, patches or windows that compete for a unit's facets, the strongest first."""
        rows = self._strongest(target, self.candidates_count)
        most = max((row.activation for row in rows), default=0.0)
        return [
            Candidate(
                printable(row.image),
                partial(self._picture, row),
                row.image if row.box is None else None,
                max(0.0, row.activation / most) if most > 0 else 1.0,
            )
            for row in rows
        ]

    def competition(self, target: Target) -> dict[str, object]:
        """Return the settings that decide which rows of the index compete."""
        settings: dict[str, object] = {
            "region": self.region,
            "window": self.window,
            "candidates": self.candidates_count,
        }
        return settings if self.enlarge else {**settings, "enlarge": False}

    def side(self, target: Target) -> int | None:
        """Return the side in px of a unit's windows; None for patches, whole images, and layers without a map.

        Mining runs first if the index does not exist.
        """
        layer, _ = self.unit_of(target)
        shape = self.index.meta["maps"][layer]
        if self.region != "window" or len(shape) != 2 or max(shape) == 1:  # a token or a vector may have no place
            return None
        return self.index.window_side(layer, self.window)

    def class_indices(self) -> None:
        """Return None: the images serve hidden units."""

    def largest_activation(self, target: Target) -> float:
        """Return the unit's largest activation among the mined images."""
        return self.index.largest_activation(*self.unit_of(target))

    def unit_of(self, target: Target) -> tuple[str, int]:
        """Return (layer, number) of a target's unit.

        Raises:
            UsageError: the target is a channel where directions of the layer were mined, or the reverse; or a class.
        """
        layer, number = self._unit(target)
        mined = {entry["layer"]: bool(entry["directions"]) for entry in self.index.meta["layers"]}
        if mined.get(layer, target.is_direction) != target.is_direction:
            kinds = "directions" if mined[layer] else "channels"
            problem = f"{target.name} is not one of the {kinds} that were mined of {layer}"
            raise UsageError("references.index", self.index.path, problem)
        return layer, number

    @staticmethod
    def _unit(target: Target) -> tuple[str, int]:
        if target.layer is None:
            raise UsageError("references", "mined", "hidden units only: classes take references=folder")
        return target.layer, target.index

    def _picture(self, row: Row) -> Tensor:
        try:
            image = self.folder.load(row.image)
        except CorruptImageError as error:
            problem = f"{printable(row.image)} can no longer be read: {error.reason}"
            raise UsageError(self.folder.key, printable(self.folder.root), problem) from None
        if row.box is None:
            return image
        return enlarged(image, row.box) if self.enlarge else cut(image, row.box)


@dataclass(frozen=True)
class IndexFacets:
    """Stores facets in the index of mined references; a :class:`vital_exp.references.faceted.FacetStore`."""

    references: MinedReferences

    def read(self, target: Target, settings: Mapping[str, object]) -> list[Facet] | None:
        """Return the facets that the index holds; None if there are none, or no index yet."""
        if not self.references.is_mined():
            return None
        layer, number = self.references.unit_of(target)
        return self.references.index.facets(layer, number, settings) or None

    def write(self, target: Target, settings: Mapping[str, object], facets: Sequence[Facet]) -> None:
        """Write the facets of a unit into the index."""
        layer, number = self.references.unit_of(target)
        self.references.index.keep_facets(layer, number, settings, facets)
