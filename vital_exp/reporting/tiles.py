"""Pictures of labelled rows of tiles."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from vital_exp.mining.sheets import COLUMNS, GAP, LINE, MARGIN, PAPER, QUIET, TEXT, TILE


def rows_of_tiles(rows: Sequence[tuple[str, Sequence[Image.Image]]]) -> Image.Image:
    """Return a picture of rows of at most ten tiles, each row below its label."""
    font, width = ImageFont.load_default(TEXT), 2 * MARGIN + COLUMNS * (TILE + GAP) - GAP
    heights = [LINE + max((tile.height for tile in tiles), default=0) + GAP for _, tiles in rows]
    page = Image.new("RGB", (width, MARGIN + sum(heights)), PAPER)
    pen, y = ImageDraw.Draw(page), 0
    for (label, tiles), height in zip(rows, heights, strict=True):
        pen.text((MARGIN, y + LINE - 8), label, QUIET, font, anchor="ls")
        for column, tile in enumerate(tiles[:COLUMNS]):
            page.paste(tile, (MARGIN + column * (TILE + GAP), y + LINE))
        y += height
    return page
