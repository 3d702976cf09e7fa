"""The page of mined concepts: one contact sheet of all, and a sheet of each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from PIL import Image

from vital_exp.concepts.concepts import Concepts
from vital_exp.concepts.importance import NAMES
from vital_exp.mining.images import ImageFolder
from vital_exp.mining.index import Index
from vital_exp.mining.sheets import COLUMNS, JPEG_QUALITY, Sheets, write_sheets
from vital_exp.mining.units import Units
from vital_exp.reporting.found import Found
from vital_exp.reporting.mining import write_page
from vital_exp.reporting.tiles import rows_of_tiles
from vital_exp.whole_files import whole_path

SHEET = "concepts.jpg"


def write_report(
    concepts: Concepts,
    index: Index,
    folder: ImageFolder,
    out: Path,
    note: Callable[[tuple[str, int]], str],
    progress: bool = False,
    mined: Units | None = None,
    found: Found | None = None,
) -> Path:
    """Write ``concepts.jpg``, ``sheets/<layer>/<concept>.jpg`` and ``index.html``; return the page's path.

    ``note`` returns the names of a concept, which may be empty. With ``mined`` the sheets mark where concepts are
    active. ``found`` holds the concepts that answer to a query, for a section above the others.
    """
    with whole_path(out / SHEET) as path:
        contact_sheet(concepts, index, folder).save(path, "JPEG", quality=JPEG_QUALITY, optimize=True)
    units = list(write_sheets(index, folder, out, progress, mined))
    notes = {unit: "; ".join(filter(None, [caption(concepts, unit[1]), note(unit)])) for unit in units}
    return write_page(index, out, units, notes, "concept", found)


def caption(concepts: Concepts, number: int) -> str:
    """Return words for a concept's importance and the class it is for; empty where no importance was computed."""
    if concepts.importance is None:
        return ""
    kind = NAMES[concepts.meta["importance"]]
    return f"{kind} {float(concepts.importance[number]):.3g} for {concepts.meta['label']}"


def contact_sheet(concepts: Concepts, index: Index, folder: ImageFolder) -> Image.Image:
    """Return a picture with a row of the strongest patches per concept."""
    sheets, rows = Sheets(index, folder), []
    for number in range(len(concepts)):
        label = ", ".join(filter(None, [f"concept {number}", caption(concepts, number)]))
        patches = index.patches(concepts.layer, number, COLUMNS)
        rows.append((label, [sheets.tile(row.image, row.box) for row in patches]))
    return rows_of_tiles(rows)
