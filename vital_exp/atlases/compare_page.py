"""The page of a comparison: units of two atlases side by side, those that changed most first."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from vital_exp.atlases.site import write_pages
from vital_exp.atlases.site_data import NOT_THERE, Reader, layer_folders, reading, rounded, write_script
from vital_exp.atlases.store import WAIT
from vital_exp.atlases.thumbnails import ENDINGS, FOLDER, thumbnail_path
from vital_exp.models.network_names import network_title

NAME = "compare.sqlite"
PAGES = ("compare.html",)
SCRIPTS = ("atlas.css", "atlas.js", "grid.js", "compare.js")
PART = 4096  # pairs in one script, of at most 0.6 MB
SIDES = ("a", "b")


@dataclass(frozen=True)
class Side:
    """One of the two atlases.

    Attributes:
        key: a or b.
        source: its folder.
        reader: of its data.
        folders: name of each layer's folder.
    """

    key: str
    source: Path
    reader: Reader
    folders: Mapping[str, str]

    def shown(self, folder: Path, layer: str | None, unit: int | None) -> list[Any]:
        """Copy a unit's thumbnails into the comparison.

        Returns:
            Layer, unit, its name, and which thumbnails it has; -1 for a unit that its atlas leaves out.
        """
        if layer is None or unit is None:
            return [None, None, "", 0]
        name = self.reader.name(layer, unit)
        if name is None:
            return [layer, unit, "", NOT_THERE]
        place = self.folders.get(layer, "")
        made = 0
        for what in ENDINGS:
            source = thumbnail_path(self.source, place, unit, what)
            if source.is_file():
                copy = thumbnail_path(folder, f"{self.key}/{place}", unit, what)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, copy)
                made += what
        return [layer, unit, name, made]


def write_comparison(folder: Path) -> Path:
    """Write the page of a comparison, ``compare.html``, with copies of both atlases' thumbnails; return its path.

    Args:
        folder: of the comparison; ``compare.sqlite`` there has the matches and says where the two atlases are.
    """
    folder = Path(folder)
    write_pages(folder, PAGES, SCRIPTS)
    shutil.rmtree(folder / FOLDER, ignore_errors=True)
    with ExitStack() as stack:
        matches = stack.enter_context(closing(sqlite3.connect(folder / NAME, timeout=WAIT)))
        meta = {key: json.loads(value) for key, value in matches.execute("SELECT key, value FROM meta")}
        a, b = (_side(key, folder / str(meta[key]), stack) for key in SIDES)
        parts = 0
        for parts, pairs in enumerate(_parts(matches, folder, a, b), start=1):
            write_script(folder, f"pairs-{parts - 1}", pairs)
        ((count,),) = matches.execute("SELECT count(*) FROM matches")
        described = {side.key: _described(side, folder) for side in (a, b)}
        write_script(
            folder,
            "entrance",
            {**described, "parts": parts, "count": count, "images": meta.get("images", a.reader.meta().get("images"))},
        )
    return folder / PAGES[0]


def _side(key: str, source: Path, stack: ExitStack) -> Side:
    reader = stack.enter_context(reading(source))
    return Side(key, source, reader, layer_folders(reader.layers()))


def _described(side: Side, folder: Path) -> dict[str, Any]:
    """Return what the page says of one atlas, and where its pages are, seen from the comparison."""
    try:
        link = quote(Path(os.path.relpath(side.source.resolve(), folder.resolve())).as_posix())
    except ValueError:  # on another drive
        link = None
    network = network_title(str(side.reader.meta().get("network", "")))
    return {"network": network, "name": side.source.resolve().name, "link": link, "folders": side.folders}


def _parts(matches: sqlite3.Connection, folder: Path, a: Side, b: Side) -> Iterator[list[list[Any]]]:
    """Yield the pairs, those that changed most first, ``PART`` at a time."""
    columns = "layer, unit, other_layer, other_unit, correlation, change"
    cursor = matches.execute(f"SELECT {columns} FROM matches ORDER BY rank")
    while rows := cursor.fetchmany(PART):
        yield [
            [*a.shown(folder, layer, unit), *b.shown(folder, other, number), rounded(correlation), rounded(change)]
            for layer, unit, other, number, correlation, change in rows
        ]
