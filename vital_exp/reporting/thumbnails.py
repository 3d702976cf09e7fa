"""Thumbnails of a sweep's pictures, as files beside its page: the browser loads each when it comes into view."""

from __future__ import annotations

import shutil
from pathlib import Path

from PIL import Image

from vital_exp.whole_files import whole_path

SIDE = 320  # px; twice the width of a cell, for screens of high resolution
QUALITY = 88  # of WebP, 0 to 100
SMALL = 128  # px; pictures up to this side are copied unchanged, since artefacts of WebP would show when enlarged
BROKEN = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


def thumbnail(picture: Path, folder: Path, stem: str) -> str | None:
    """Write the thumbnail of a picture, unless there is one that is newer than the picture.

    Args:
        picture: the file, PNG or JPEG.
        folder: the folder for the thumbnail.
        stem: the thumbnail's name without its suffix.

    Returns:
        The thumbnail's name; None where the picture is missing or broken.
    """
    try:
        with Image.open(picture, formats=("PNG", "JPEG")) as image:
            ending = picture.suffix.lower() if max(image.size) <= SMALL else ".webp"
            place = folder / f"{stem}{ending}"
            if place.is_file() and place.stat().st_mtime >= picture.stat().st_mtime:
                return place.name
            if ending != ".webp":
                image.load()
                return copied(picture, place)
            small = image.convert("RGB")
    except BROKEN:
        return None
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    with whole_path(place) as temporary:
        small.save(temporary, "WEBP", quality=QUALITY)
    return place.name


def copied(source: Path, place: Path) -> str:
    """Copy a file (under another name, then renamed) and return the copy's name."""
    with whole_path(place) as temporary:
        shutil.copyfile(source, temporary)
    return place.name


def tiles(strip: Path) -> int | None:
    """Return the number of square tiles in a strip of references; None where it is missing or broken."""
    try:
        with Image.open(strip, formats=("JPEG", "PNG")) as image:
            share: float = image.width / image.height
            return max(1, round(share))
    except BROKEN:
        return None
