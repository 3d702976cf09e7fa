"""Small copies of a sweep's pictures beside its page: thousands of them are loaded one by one, when they are seen."""

from __future__ import annotations

import shutil
from pathlib import Path

from PIL import Image

from vital_exp.whole_files import whole_path

SIDE = 320  # px; twice the width of a cell, for dense screens
QUALITY = 88  # of WebP, 0 to 100
SMALL = 128  # pictures up to this side are copied as they are: enlarged without new artefacts
BROKEN = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


def thumbnail(picture: Path, folder: Path, stem: str) -> str | None:
    """Write a small copy of a picture, unless a newer one is there.

    Args:
        picture: PNG or JPEG.
        folder: where the copy goes.
        stem: the copy's name without its ending.

    Returns:
        The copy's name; None when the picture is missing or broken.
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
    """Copy a file so that it appears whole; return its name."""
    with whole_path(place) as temporary:
        shutil.copyfile(source, temporary)
    return place.name


def tiles(strip: Path) -> int | None:
    """Return how many square tiles a strip of references has; None when it is missing or broken."""
    try:
        with Image.open(strip, formats=("JPEG", "PNG")) as image:
            share: float = image.width / image.height
            return max(1, round(share))
    except BROKEN:
        return None
