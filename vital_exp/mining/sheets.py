"""Contact sheets: one picture per unit of what drives it most and least."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from tqdm import tqdm

from vital_exp.images.output import as_image, to_uint8
from vital_exp.mining.images import ImageFolder
from vital_exp.mining.index import Index, Row
from vital_exp.mining.overlays import Key, strongest_maps
from vital_exp.mining.patches import Box
from vital_exp.mining.units import Units
from vital_exp.models.channels import as_rgb
from vital_exp.references.decoding import CorruptImageError
from vital_exp.whole_files import whole_path

FOLDER = "sheets"
# More than so many are neither looked at nor quick to make: of each layer the first ones are drawn.
MOST_SHEETS = 2048
COLUMNS, PATCH_ROWS = 10, 2
TILE, GAP, MARGIN, LINE, TEXT = 96, 4, 14, 30, 18  # px
QUIET, PAPER, NO_IMAGE = "#6b6862", "#ffffff", "#d8d5cf"
FRAME = ("#ffffff", "#1d1c1a")  # a light line in a dark one: seen on any image
FADED = 0.1  # of an image that is left where the unit does not fire
JPEG_QUALITY = 82
VIEWS_KEPT = 512  # decoded images, of the size of the network's input: units share many


class Sheets:
    """Draws contact sheets of the units of an index.

    Args:
        index: the finished index.
        folder: its images.
        maps: where units fire in their strongest images (:func:`vital_exp.mining.overlays.strongest_maps`).
    """

    def __init__(self, index: Index, folder: ImageFolder, maps: Mapping[Key, Tensor] | None = None) -> None:
        self.index, self.folder, self.maps = index, folder, maps or {}
        self._view = lru_cache(VIEWS_KEPT)(self._load)
        self._font = ImageFont.load_default(TEXT)

    def draw(self, layer: str, channel: int) -> Image.Image:
        """Return the sheet of a unit.

        Strongest patches, strongest images with their patches framed, where the unit fires in these, weakest images.
        An index without patches shows windows around the strongest position in their place.
        """
        named, patches = self._patches(layer, channel, COLUMNS * PATCH_ROWS)
        top = self.index.top(layer, channel, COLUMNS)
        bottom = self.index.bottom(layer, channel, COLUMNS)
        fires = [row for row in top if (layer, channel, row.image) in self.maps]
        boxes = {row.image: row.box for row in patches}
        parts = [
            (named, patches, [self.tile(row.image, row.box) for row in patches]),
            ("images that drive it most", top, [self.tile(row.image, frame=boxes.get(row.image)) for row in top]),
            (
                "where it fires in them",
                fires,
                [self.overlay(row.image, self.maps[layer, channel, row.image]) for row in fires],
            ),
            ("images that drive it least", bottom, [self.tile(row.image) for row in bottom]),
        ]
        return self._page([part for part in parts if part[1]])

    def _patches(self, layer: str, channel: int, count: int) -> tuple[str, list[Row]]:
        """Return the parts of images that drive a unit most, and what they are."""
        if self.index.meta["patch"]:
            return "patches that drive it most", self.index.patches(layer, channel, count)
        if self.index.meta["fields"][layer] is None:
            return "", []
        windows = [row for row in self.index.windows(layer, channel, count) if row.box]
        return "windows of the images that drive it most, where it is strongest", windows

    def _page(self, parts: Sequence[tuple[str, Sequence[Row], Sequence[Image.Image]]]) -> Image.Image:
        height = MARGIN + sum(LINE + self._height(len(tiles)) for _, _, tiles in parts)
        page = Image.new("RGB", (2 * MARGIN + COLUMNS * (TILE + GAP) - GAP, height), PAPER)
        pen, y = ImageDraw.Draw(page), 0
        for text, rows, tiles in parts:
            label = f"{text}: {rows[0].activation:.3g} to {rows[-1].activation:.3g}"
            pen.text((MARGIN, y + LINE - 8), label, QUIET, self._font, anchor="ls")
            y += LINE
            for number, tile in enumerate(tiles):
                row, column = divmod(number, COLUMNS)
                page.paste(tile, (MARGIN + column * (TILE + GAP), y + row * (tile.height + GAP)))
            y += self._height(len(tiles))
        return page

    def _height(self, tiles: int) -> int:
        return -(-tiles // COLUMNS) * (self._size[1] + GAP)

    @property
    def _size(self) -> tuple[int, int]:
        """Width and height of a tile that holds a whole image."""
        height, width = self.folder.preprocessing.size
        return TILE, round(TILE * height / width)

    def tile(self, path: str, box: Box | None = None, frame: Box | None = None) -> Image.Image:
        """Return an image, or the box of it, as a tile; ``frame`` is drawn around a part."""
        view = self._view(path)
        if view is None:
            return Image.new("RGB", self._size, NO_IMAGE)
        tile = view.resize(self._size if box is None else (TILE, TILE), Image.Resampling.BICUBIC, box)
        if frame is not None:
            scale = self._size[0] / view.width
            x0, y0, x1, y1 = (round(side * scale) for side in frame)
            for outset, colour in enumerate(reversed(FRAME)):
                inside = (x0 + outset, y0 + outset, x1 - 1 - outset, y1 - 1 - outset)
                ImageDraw.Draw(tile).rectangle(inside, outline=colour)
        return tile

    def overlay(self, path: str, heat: Tensor) -> Image.Image:
        """Return an image as a tile that fades to paper where a map (rows, columns) in [0, 1] is low.

        The map is squared: what is half as strong as the strongest place is three quarters paper.
        """
        tile = self.tile(path)
        kept = (FADED + (1 - FADED) * heat.float().square()).mul(255).round().to(torch.uint8)
        mask = as_image(kept[None]).resize(tile.size, Image.Resampling.BICUBIC)
        return Image.composite(tile, Image.new("RGB", tile.size, PAPER), mask)

    def _load(self, path: str) -> Image.Image | None:
        try:
            return _as_image(self.folder.load(path), self.folder.preprocessing.preview)
        except CorruptImageError:  # sound when it was mined
            return None


def _as_image(view: Tensor, preview: Sequence[int] | None) -> Image.Image:
    return as_image(to_uint8(as_rgb(view, preview)))


def sheet_path(layer: str, channel: int) -> str:
    """Return where the sheet of a unit is, relative to the run folder."""
    return f"{FOLDER}/{re.sub(r'[^A-Za-z0-9._-]', '_', layer)}/{channel}.jpg"


def drawn_units(index: Index) -> list[tuple[str, int]]:
    """Return the units that get a sheet: all, or as many of each layer."""
    units, layers = index.units(), [one["layer"] for one in index.meta["layers"]]
    each = max(1, MOST_SHEETS // len(layers))
    by_layer = {layer: [unit for unit in units if unit[0] == layer] for layer in layers}
    return [unit for layer in layers for unit in by_layer[layer][: each if len(units) > MOST_SHEETS else None]]


def write_sheets(
    index: Index, folder: ImageFolder, out: Path, progress: bool = False, mined: Units | None = None
) -> Iterator[tuple[str, int]]:
    """Write ``out/sheets/<layer>/<channel>.jpg`` of units, those that are there already excepted; yield the units.

    With ``mined`` sheets show where units fire in their strongest images, which pass the network once more.
    """
    units = drawn_units(index)
    missing = [unit for unit in units if not (out / sheet_path(*unit)).is_file()]
    sheets = Sheets(index, folder, strongest_maps(index, mined, folder, missing, COLUMNS) if mined else None)
    for layer, channel in tqdm(units, desc="sheets", unit="sheet", disable=None if progress else True):
        path = out / sheet_path(layer, channel)
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole_path(path) as temporary:
                sheets.draw(layer, channel).save(temporary, "JPEG", quality=JPEG_QUALITY, optimize=True)
        yield layer, channel
