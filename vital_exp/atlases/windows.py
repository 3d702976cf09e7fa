"""The images of a unit as files: thumbnails of whole images, and windows that show where the unit fires."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from vital_exp.atlases.store import MEMBER, STRONGEST, WEAKEST, ImageRow, safe_name
from vital_exp.images.output import as_image, to_uint8
from vital_exp.mining.images import ImageFolder
from vital_exp.mining.index import Index, Row
from vital_exp.mining.overlays import Key, strongest_maps
from vital_exp.mining.patches import Box
from vital_exp.mining.units import Units
from vital_exp.models.channels import as_rgb
from vital_exp.references.decoding import CorruptImageError, printable
from vital_exp.whole_files import whole_path

IMAGES, WINDOWS = "images", "windows"
IMAGE_SIDE, WINDOW_SIDE = 192, 160  # px
QUALITY = 80  # of WebP
MEMBERS_SHOWN = 8  # of each facet, beside its picture
DIM = 0.25  # share of the light that is left where the unit does not fire
VIEWS_KEPT = 256  # decoded images, as large as the network's input; units share many


class Windows:
    """Writes the images of units.

    Args:
        index: the finished index.
        folder: its images.
        units: the mined units.
        out: the folder of the atlas.
        shown: how many of a unit's strongest images are shown, and of its weakest.
    """

    def __init__(self, index: Index, folder: ImageFolder, units: Units, out: Path, shown: int) -> None:
        self.index, self.folder, self.units, self.out, self.shown = index, folder, units, out, shown
        self._view = lru_cache(VIEWS_KEPT)(self._load)
        self._numbers = {path: number for number, path in enumerate(folder.paths)}

    def maps(self, units: Sequence[tuple[str, int]]) -> dict[Key, Tensor]:
        """Return where some units fire in their strongest images; each image passes through the network once."""
        return strongest_maps(self.index, self.units, self.folder, units, self.shown)

    def rows(self, layer: str, unit: int) -> list[ImageRow]:
        """Return the images of a unit; no files are made."""
        both = ((STRONGEST, self._top(layer, unit, self.shown)), (WEAKEST, self.index.bottom(layer, unit, self.shown)))
        return [_row(layer, unit, kind, row) for kind, rows in both for row in rows]

    def _top(self, layer: str, unit: int, count: int | None = None) -> list[Row]:
        """Return the strongest images, with windows where the layer has places."""
        boxed = self.index.meta["fields"][layer] is not None
        return (self.index.windows if boxed else self.index.top)(layer, unit, count)

    def _members(self, layer: str, unit: int, facets: Mapping[str, int]) -> list[ImageRow]:
        """Return the strongest members of each facet that are not among the images shown anyway."""
        found, counts = [], Counter[int]()
        for number, row in enumerate(self._top(layer, unit) if facets else []):
            facet = facets.get(row.image)
            if facet is not None and counts[facet] < MEMBERS_SHOWN:
                counts[facet] += 1
                if number >= self.shown:
                    found.append(replace(_row(layer, unit, MEMBER, row), facet=facet, file=self._image(row)))
        return found

    def write(self, layer: str, unit: int, maps: Mapping[Key, Tensor], facets: Mapping[str, int]) -> list[ImageRow]:
        """Write the files of a unit's images, and return their rows: strongest, weakest, further members of facets.

        Args:
            layer, unit: the unit.
            maps: where units fire, of :meth:`maps`.
            facets: the facet of each image that belongs to one, by its path.
        """
        found = []
        plain = [*self.index.top(layer, unit, self.shown), *self.index.bottom(layer, unit, self.shown)]
        for row, own in zip(self.rows(layer, unit), plain, strict=True):
            overlay = None
            if row.kind == STRONGEST and (heat := maps.get((layer, unit, own.image))) is not None:
                overlay = self._overlay(row, own.image, heat)
            facet = facets.get(own.image) if row.kind == STRONGEST else None
            found.append(replace(row, facet=facet, file=self._image(own), overlay=overlay))
        return found + self._members(layer, unit, facets)

    def _image(self, row: Row) -> str | None:
        """Write the thumbnail of an image, once for all units that show it; return its file."""
        name = f"{IMAGES}/{self._numbers[row.image]}.webp"
        if (self.out / name).is_file():
            return name
        view = self._view(row.image)
        if view is None:
            return None
        height = max(1, round(IMAGE_SIDE * view.height / view.width))
        return self._save(view.resize((IMAGE_SIDE, height), Image.Resampling.BICUBIC), name)

    def _overlay(self, row: ImageRow, path: str, heat: Tensor) -> str | None:
        view = self._view(path)
        if view is None:
            return None
        box = row.box or (0, 0, view.width, view.height)
        tile = _cut(view, box)
        kept = (DIM + (1 - DIM) * heat.float().square()).mul(255).round().to(torch.uint8)
        mask = _cut(as_image(kept[None]).resize(view.size, Image.Resampling.BICUBIC), box)
        lit = Image.composite(tile, Image.new("RGB", tile.size), mask)
        return self._save(lit, f"{WINDOWS}/{safe_name(row.layer)}/{row.unit}/{row.rank}.webp")

    def _save(self, image: Image.Image, name: str) -> str:
        (self.out / name).parent.mkdir(parents=True, exist_ok=True)
        with whole_path(self.out / name) as temporary:
            image.save(temporary, "WEBP", quality=QUALITY)
        return name

    def _load(self, path: str) -> Image.Image | None:
        try:
            return as_image(to_uint8(as_rgb(self.folder.load(path), self.folder.preprocessing.preview)))
        except CorruptImageError:  # sound when it was mined
            return None


def _row(layer: str, unit: int, kind: str, row: Row) -> ImageRow:
    return ImageRow(layer, unit, kind, row.rank, printable(row.image), row.activation, box=row.box)


def _cut(image: Image.Image, box: Box) -> Image.Image:
    """Return a part of an image, its longer side WINDOW_SIDE px."""
    width, height = box[2] - box[0], box[3] - box[1]
    scale = WINDOW_SIDE / max(width, height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return image.resize(size, Image.Resampling.BICUBIC, box)
