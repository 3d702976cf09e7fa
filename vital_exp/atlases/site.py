"""The site of an atlas: pages, style and scripts beside the data that they load. It opens from disk, half done too."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vital_exp.atlases.cells_data import cells_of
from vital_exp.atlases.site_data import (
    DATA,
    PART,
    SHARD,
    Reader,
    details,
    entrance,
    input_size,
    layer_folders,
    names_and_measures,
    reading,
    write_script,
)
from vital_exp.atlases.thumbnails import write_cell_thumbnail, write_sprite, write_thumbnails
from vital_exp.reporting.pages import environment
from vital_exp.whole_files import write_json, write_whole

PACKAGE = "vital_exp.atlases"  # whose templates hold the pages
ASSETS = "assets"
PAGES = ("index.html", "layer.html", "unit.html", "cells.html")
OWN_SCRIPTS = ("entrance.js", "layer.js", "unit.js", "cells.js")
SCRIPTS = ("atlas.css", "atlas.js", "grid.js", "map.js", "picture_dialog.js", *OWN_SCRIPTS)
FORMAT = 1  # of the data; raise it when the pages expect other data, so that all units are written again
EXPORTED = "exported.json"  # in each layer's folder of data: what the site shows of which unit


def write_site(folder: Path, everything: bool = False) -> Path:
    """Write the site of an atlas, as far as the atlas is, and return its entrance, ``index.html``.

    Only the units whose status has changed since the last call are written, with the files that list them, so that a
    call after every few units costs little. Of all units memory holds number and status, the rest in parts.

    Args:
        folder: of the atlas.
        everything: whether all units are written, as after a change of names, neighbours or measures.
    """
    folder = Path(folder)
    write_pages(folder, PAGES, SCRIPTS)
    with reading(folder) as reader:
        folders = layer_folders(reader.layers())
        changed = {layer: _changed(reader, folder, layer, place, everything) for layer, place in folders.items()}
        size = input_size(reader.meta())
        for layer, units in changed.items():  # of all layers first: neighbours are shown by their thumbnails
            _write_thumbnails(reader, folder, layer, folders[layer], units, size)
        for layer, units in changed.items():
            _write_layer(reader, folder, layer, units, folders)
        for layer, place in folders.items():
            _write_cells(folder, layer, place)
        write_script(folder, "entrance", entrance(reader, folder, folders))
    return folder / PAGES[0]


def write_pages(folder: Path, pages: Sequence[str], scripts: Sequence[str], **values: object) -> None:
    """Write pages, and the style and scripts that they load; what is there already as it is stays."""
    made = environment(PACKAGE)
    (folder / ASSETS).mkdir(parents=True, exist_ok=True)
    places = {name: folder / name for name in pages} | {name: folder / ASSETS / name for name in scripts}
    for name, place in places.items():
        text = made.get_template(name).render(**values)
        if not place.is_file() or place.read_text(encoding="utf-8") != text:
            write_whole(place, text)


def _changed(reader: Reader, folder: Path, layer: str, place: str, everything: bool) -> set[int]:
    """Return the units of a layer that the site does not show as they are."""
    statuses = reader.statuses(layer)
    shown = {} if everything else _exported(folder / DATA / place / EXPORTED)
    return {unit for unit, status in statuses.items() if shown.get(str(unit)) != status}


def _exported(path: Path) -> Mapping[str, str]:
    """Return the status that the site shows of each unit, by number; none where the file is of another format."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content["units"] if isinstance(content, dict) and content.get("format") == FORMAT else {}


def _shards(units: set[int], length: int) -> Iterator[range]:
    """Yield the ranges of ``length`` numbers that hold any of the units."""
    for number in sorted({unit // length for unit in units}):
        yield range(number * length, (number + 1) * length)


def _write_thumbnails(
    reader: Reader, folder: Path, layer: str, place: str, units: set[int], size: Sequence[int]
) -> None:
    for shard in _shards(units, SHARD):
        facets, images = (reader.by_unit(table, layer, shard) for table in ("facets", "images"))
        for unit in units.intersection(shard):
            write_thumbnails(folder, place, unit, facets.get(unit, []), images.get(unit, []), size)


def _write_cells(folder: Path, layer: str, place: str) -> None:
    """Write the activation atlas of a layer, if there is one: its data, and a thumbnail of each cell."""
    found = cells_of(folder, layer)
    if found is None:
        return
    cells = [
        {**cell, "shown": write_cell_thumbnail(folder, place, number, str(cell["picture"]))}
        for number, cell in enumerate(found["cells"])
    ]
    write_script(folder, f"{place}/cells", {**found, "cells": cells})


def _write_layer(reader: Reader, folder: Path, layer: str, units: set[int], folders: Mapping[str, str]) -> None:
    """Write what the site says of some units of a layer, and the parts and sprites that list them."""
    place = folders[layer]
    statuses: dict[str, Any] = {}
    for shard in _shards(units, SHARD):
        found = details(reader, folder, layer, shard, folders)
        number = shard.start // SHARD
        write_script(folder, f"{place}/{number}", found)
        write_sprite(folder / DATA / place / f"{number}.webp", folder, place, found, shard.start, SHARD)
        statuses.update({str(unit): one["status"] for unit, one in found.items()})
    for part in _shards(units, PART):
        names, measures = names_and_measures(reader, folder, layer, place, part)
        write_script(folder, f"{place}/names-{part.start // PART}", names)
        write_script(folder, f"{place}/measures-{part.start // PART}", measures)
    if units:
        path = folder / DATA / place / EXPORTED
        write_json(path, {"format": FORMAT, "units": {**_exported(path), **statuses}})
