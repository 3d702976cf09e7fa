"""Small WebP copies of an atlas's pictures: one file per unit for tiles, one per shard for the map."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from vital_exp.atlases.store import STRONGEST
from vital_exp.reporting.thumbnails import BROKEN
from vital_exp.whole_files import whole_path

FOLDER = "thumbnails"
SIDE = 192  # px of a tile
QUALITY, EFFORT = 80, 2  # of WebP: 0 to 100; 0 to 6, 2 is three times as fast as 6 at a tenth more bytes
SMALL = 128  # pictures up to this side are kept without loss: enlarged without new artefacts
PER_SIDE = 2  # strongest images of a tile, across and down
SPRITE, COLUMNS = 48, 8  # px of a unit on a sprite, units in a row of it
PICTURE, IMAGES = 1, 2  # which thumbnails a unit has: bits of one number
FORMATS = ("PNG", "JPEG", "WEBP")
ENDINGS = {PICTURE: ".webp", IMAGES: "_images.webp"}

Row = Mapping[str, Any]


def thumbnail_path(folder: Path, layer: str, unit: int, what: int) -> Path:
    """Return where a unit's thumbnail is: of its picture, or of its strongest images."""
    return folder / FOLDER / layer / f"{unit}{ENDINGS[what]}"


def made_thumbnails(folder: Path, layer: str, unit: int) -> int:
    """Return which thumbnails a unit has: 1 of its picture, 2 of its images, 3 both, 0 none."""
    return sum(what for what in ENDINGS if thumbnail_path(folder, layer, unit, what).is_file())


def write_thumbnails(
    folder: Path, layer: str, unit: int, facets: Sequence[Row], images: Sequence[Row], size: Sequence[int]
) -> None:
    """Write the thumbnails of a unit that are older than their files; a missing or broken file gets none.

    Args:
        folder: the atlas's.
        layer: name of the layer's folder.
        unit: number.
        facets, images: rows of the atlas's tables. The first facet with a picture is shown, and the windows of the
            strongest images; whole images where there is no window.
        size: height and width of the network's input, which windows are in px of.
    """
    picture = next((folder / row["picture"] for row in facets if row["picture"]), None)
    strongest = [row for row in images if row["kind"] == STRONGEST and row["file"]][: PER_SIDE**2]
    tiles = [(folder / row["file"], _shares(row["box"], size)) for row in strongest]
    if picture is not None:
        _write(thumbnail_path(folder, layer, unit, PICTURE), [picture], lambda: _shrunk(picture))
    if tiles:
        _write(thumbnail_path(folder, layer, unit, IMAGES), [path for path, _ in tiles], lambda: _mosaic(tiles))


def write_cell_thumbnail(folder: Path, layer: str, number: int, picture: str) -> str:
    """Write the thumbnail of a cell's picture if it is older; return its file, or the picture's if that is broken."""
    place = folder / FOLDER / layer / f"cell-{number}.webp"
    _write(place, [folder / picture], lambda: _shrunk(folder / picture))
    return place.relative_to(folder).as_posix() if place.is_file() else picture


def _shares(box: str | None, size: Sequence[int]) -> tuple[float, ...] | None:
    """Return a window, JSON in px, as shares of the image's width and height; None for all of it."""
    if not box or len(size) != 2:
        return None
    height, width = size
    return tuple(side / of for side, of in zip(json.loads(box), (width, height, width, height), strict=True))


def _write(place: Path, sources: Sequence[Path], make: Callable[[], Image.Image]) -> None:
    try:
        newest = max(source.stat().st_mtime for source in sources)
        if place.is_file() and place.stat().st_mtime >= newest:
            return
        made = make()
    except BROKEN:
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    with whole_path(place) as temporary:
        made.save(temporary, "WEBP", quality=QUALITY, method=EFFORT, lossless=max(made.size) <= SMALL)


def _shrunk(source: Path) -> Image.Image:
    with Image.open(source, formats=FORMATS) as image:
        picture: Image.Image = image.convert("RGB")
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return picture


def _mosaic(tiles: Sequence[tuple[Path, tuple[float, ...] | None]]) -> Image.Image:
    """Return up to four windows as one square; a single one fills it."""
    across = 1 if len(tiles) == 1 else PER_SIDE
    side = SIDE // across
    made = Image.new("RGB", (SIDE, SIDE), "white")
    for number, (source, shares) in enumerate(tiles):
        made.paste(_square(source, side, shares), (number % across * side, number // across * side))
    return made


def _square(source: Path, side: int, shares: tuple[float, ...] | None = None) -> Image.Image:
    """Return a window of an image, given in shares of its size, or its middle square."""
    with Image.open(source, formats=FORMATS) as image:
        width, height = image.size
        edge = min(width, height)
        left, top = (width - edge) / 2, (height - edge) / 2
        box = (left, top, left + edge, top + edge)
        if shares is not None:
            box = (shares[0] * width, shares[1] * height, shares[2] * width, shares[3] * height)
        picture: Image.Image = image.convert("RGB")
    return picture.resize((side, side), Image.Resampling.LANCZOS, box)


def write_sprite(place: Path, folder: Path, layer: str, units: Iterable[int], first: int, count: int) -> None:
    """Write the tiles of a shard as one image: unit ``first`` + n is the n-th, row by row; a missing one is clear.

    Args:
        place: of the sprite.
        folder: the atlas's.
        layer: name of the layer's folder.
        units: the numbers of the units in the atlas.
        first: number of the shard's first unit.
        count: of the shard's units.
    """
    sprite = Image.new("RGBA", (COLUMNS * SPRITE, -(-count // COLUMNS) * SPRITE))
    for unit in units:
        sources = (thumbnail_path(folder, layer, unit, what) for what in ENDINGS)
        source = next((one for one in sources if one.is_file()), None)
        if source is not None:
            row, column = divmod(unit - first, COLUMNS)
            sprite.paste(_square(source, SPRITE), (column * SPRITE, row * SPRITE))
    with whole_path(place) as temporary:
        sprite.save(temporary, "WEBP", quality=QUALITY, method=EFFORT)
