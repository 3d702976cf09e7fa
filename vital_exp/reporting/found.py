"""The sheet of the units that answer to a query: find.jpg, one row of patches per unit."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from vital_exp.data_uris import JPEG, data_uri
from vital_exp.images.output import as_image, to_uint8
from vital_exp.mining.images import ImageFolder
from vital_exp.mining.index import Index
from vital_exp.mining.sheets import COLUMNS, JPEG_QUALITY, TILE, Sheets
from vital_exp.models.channels import as_rgb
from vital_exp.naming.find import FoundUnit, Query
from vital_exp.references.decoding import printable
from vital_exp.reporting.tiles import rows_of_tiles
from vital_exp.whole_files import whole_file

SHEET = "find.jpg"


@dataclass(frozen=True)
class Found:
    """A query and its units, for the page.

    Attributes:
        text: the query, words or the path of an image.
        measure: words for the score that ranks the units.
        units: (layer, channel), the best first.
        src: the sheet as a data URI.
        width, height: of the sheet, in px.
    """

    text: str
    measure: str
    units: Sequence[tuple[str, int]]
    src: str
    width: int
    height: int

    name = SHEET


def write_found(query: Query, matches: Sequence[FoundUnit], index: Index, folder: ImageFolder, out: Path) -> Found:
    """Write ``out/find.jpg``: the query's image, if it is one, and a row of patches per unit."""
    text = printable(query.text)
    sheet = rows_of_tiles([*_asked(query, text, folder), *_rows(matches, Sheets(index, folder))])
    data = io.BytesIO()
    sheet.save(data, "JPEG", quality=JPEG_QUALITY, optimize=True)
    with whole_file(out / SHEET, binary=True) as file:
        file.write(data.getvalue())
    units, src = [match.unit for match in matches], data_uri(data.getvalue(), JPEG)
    return Found(text, query.measure(index), units, src, sheet.width, sheet.height)


def _asked(query: Query, text: str, folder: ImageFolder) -> list[tuple[str, list[Image.Image]]]:
    if query.picture is None:
        return [(f"units for: {text}", [])]
    view = as_image(to_uint8(as_rgb(query.picture, folder.preprocessing.preview)))
    tile = view.resize((TILE, round(TILE * view.height / view.width)), Image.Resampling.BICUBIC)
    return [(f"units for: {text}", [tile])]


def _rows(matches: Sequence[FoundUnit], sheets: Sheets) -> list[tuple[str, list[Image.Image]]]:
    return [
        (
            f"{rank}. {match.name}, {match.score:.3g}",
            [sheets.tile(row.image, row.box) for row in match.rows[:COLUMNS]],
        )
        for rank, match in enumerate(matches, start=1)
    ]
