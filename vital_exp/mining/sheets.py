"""Contact sheets: one picture per unit, of the images and patches that drive the unit most and least."""

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
from vital_exp.progress_bars import hidden
from vital_exp.references.decoding import CorruptImageError
from vital_exp.whole_files import whole_path

FOLDER = "sheets"
# Nobody looks at more sheets, and drawing them takes long: the first units of each layer are drawn.
MOST_SHEETS = 2048
COLUMNS, PATCH_ROWS = 10, 2
TILE, GAP, MARGIN, LINE, TEXT = 96, 4, 14, 30, 18  # px
QUIET, PAPER, NO_IMAGE = "#6b6862", "#ffffff", "#d8d5cf"
FRAME = ("#ffffff", "#1d1c1a")  # a light line inside a dark line is visible on any image
FADED = 0.1  # opacity of an image where the unit is inactive
JPEG_QUALITY = 82
IMAGES_KEPT = 512  # decoded images at the network's input size; units share many images


class Sheets:
    """Draws contact sheets of the units of an index.

    Args:
        index: the finished index.
        folder: the images that were mined.
        maps: where units are active in their strongest images (:func:`vital_exp.mining.overlays.strongest_maps`).
    """

    def __init__(self, index: Index, folder: ImageFolder, maps: Mapping[Key, Tensor] | None = None) -> None:
        self.index, self.folder, self.maps = index, folder, maps or {}
        self._image = lru_cache(IMAGES_KEPT)(self._load)
        self._font = ImageFont.load_default(TEXT)

    def draw(self, layer: str, channel: int) -> Image.Image:
        """Return the sheet of a unit.

        From top to bottom: the strongest patches, the strongest images with these patches framed, the same images
        faded where the unit is inactive, the weakest images. If the index has no patches, windows around the strongest
        positions take their place.
        """
        title, patches = self._patches(layer, channel, COLUMNS * PATCH_ROWS)
        top = self.index.top(layer, channel, COLUMNS)
        bottom = self.index.bottom(layer, channel, COLUMNS)
        mapped = [row for row in top if (layer, channel, row.image) in self.maps]
        boxes = {row.image: row.box for row in patches}
        overlays = [self.overlay(row.image, self.maps[layer, channel, row.image]) for row in mapped]
        parts = [
            (title, patches, [self.tile(row.image, row.box) for row in patches]),
            ("images that drive it most", top, [self.tile(row.image, frame=boxes.get(row.image)) for row in top]),
            ("where it is active in them", mapped, overlays),
            ("images that drive it least", bottom, [self.tile(row.image) for row in bottom]),
        ]
        return self._page([part for part in parts if part[1]])

    def _patches(self, layer: str, channel: int, count: int) -> tuple[str, list[Row]]:
        """Return a title and the patches that drive a unit most; windows if there are no patches."""
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
        """Width and height in px of a tile that holds a whole image."""
        height, width = self.folder.preprocessing.size
        return TILE, round(TILE * height / width)

    def tile(self, path: str, box: Box | None = None, frame: Box | None = None) -> Image.Image:
        """Return an image, or a box of the image, as a tile; a line is drawn around the box ``frame``."""
        image = self._image(path)
        if image is None:
            return Image.new("RGB", self._size, NO_IMAGE)
        tile = image.resize(self._size if box is None else (TILE, TILE), Image.Resampling.BICUBIC, box)
        if frame is not None:
            scale = self._size[0] / image.width
            x0, y0, x1, y1 = (round(side * scale) for side in frame)
            for outset, colour in enumerate(reversed(FRAME)):
                inside = (x0 + outset, y0 + outset, x1 - 1 - outset, y1 - 1 - outset)
                ImageDraw.Draw(tile).rectangle(inside, outline=colour)
        return tile

    def overlay(self, path: str, heat: Tensor) -> Image.Image:
        """Return an image as a tile that fades to paper where a map (rows, columns) in [0, 1] is low.

        The map is squared for contrast: a place half as active as the strongest keeps about a third of its colour.
        """
        tile = self.tile(path)
        opacity = (FADED + (1 - FADED) * heat.float().square()).mul(255).round().to(torch.uint8)
        mask = as_image(opacity[None]).resize(tile.size, Image.Resampling.BICUBIC)
        return Image.composite(tile, Image.new("RGB", tile.size, PAPER), mask)

    def _load(self, path: str) -> Image.Image | None:
        try:
            return _as_image(self.folder.load(path), self.folder.preprocessing.preview)
        except CorruptImageError:  # the file was readable when it was mined and has changed since
            return None


def _as_image(pixels: Tensor, preview: Sequence[int] | None) -> Image.Image:
    return as_image(to_uint8(as_rgb(pixels, preview)))


def sheet_path(layer: str, channel: int) -> str:
    """Return the path of a unit's sheet, relative to the run folder."""
    return f"{FOLDER}/{re.sub(r'[^A-Za-z0-9._-]', '_', layer)}/{channel}.jpg"


def drawn_units(index: Index) -> list[tuple[str, int]]:
    """Return the units that get a sheet: all units or, above MOST_SHEETS, the first ones of each layer."""
    units, layers = index.units(), [entry["layer"] for entry in index.meta["layers"]]
    each = max(1, MOST_SHEETS // len(layers))
    by_layer = {layer: [unit for unit in units if unit[0] == layer] for layer in layers}
    return [unit for layer in layers for unit in by_layer[layer][: each if len(units) > MOST_SHEETS else None]]


def write_sheets(
    index: Index, folder: ImageFolder, out: Path, progress: bool = False, mined: Units | None = None
) -> Iterator[tuple[str, int]]:
    """Write the sheets ``out/sheets/<layer>/<channel>.jpg`` that do not exist yet; yield each unit that has one.

    With ``mined`` the sheets also show where units are active in their strongest images: these pass the network again.
    """
    units = drawn_units(index)
    missing = [unit for unit in units if not (out / sheet_path(*unit)).is_file()]
    sheets = Sheets(index, folder, strongest_maps(index, mined, folder, missing, COLUMNS) if mined else None)
    for layer, channel in tqdm(units, desc="sheets", unit="sheet", disable=hidden(progress)):
        path = out / sheet_path(layer, channel)
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole_path(path) as temporary:
                sheets.draw(layer, channel).save(temporary, "JPEG", quality=JPEG_QUALITY, optimize=True)
        yield layer, channel
