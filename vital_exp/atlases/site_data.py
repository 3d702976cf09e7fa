"""What the pages of an atlas load: its SQLite file as a few scripts, each below 2 MB, which open from disk.

A browser fetches no JSON from disk, but loads scripts: each file calls ``vitalAtlas.add(key, value)``. A layer has
parts (``names-0``, ``measures-0``: ``PART`` units in columns) and shards (``3``: the details of ``SHARD`` units).
"""

from __future__ import annotations

import json
import math
import re
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vital_exp.atlases.cells_data import cells_of
from vital_exp.atlases.measure_words import MAP_COLUMNS, Measure, measures
from vital_exp.atlases.store import DONE, FAILED, MINED, NAME, ORDERS, WAIT
from vital_exp.atlases.thumbnails import made_thumbnails
from vital_exp.models.network_names import network_title
from vital_exp.reporting.pages import folder_words
from vital_exp.whole_files import write_whole

DATA = "data"  # folder of the scripts
SHARD = 32  # units whose details are one script, of some 250 kB
PART = 4096  # units whose names, and whose measures, are one script, of at most 0.5 MB
CLASSES = 20  # of a unit, the strongest
NAMED_CLASSES = 2  # by which a unit is found
SHOWN = 12  # units that stand for a layer at the entrance
LETTERS = {DONE: "d", MINED: "m", FAILED: "f"}  # a status in the column of a part
DIGITS = 4
UNIT_WORDS = {"sae": "feature"}  # what pages call a unit of a kind, where that is another word
NOT_THERE = -1  # in place of the thumbnails of a unit that the atlas leaves out
FACTS = ("method", "recipe", "seed", "steps")  # of meta, told at the entrance where they are there

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Reader:
    """One connection to the file of an atlas, which may grow meanwhile."""

    connection: sqlite3.Connection

    def meta(self) -> dict[str, Any]:
        """Return what the atlas was made from."""
        return {key: json.loads(value) for key, value in self.connection.execute("SELECT key, value FROM meta")}

    def layers(self) -> list[Row]:
        """Return the layers in the order of the network."""
        return self.connection.execute(f"SELECT * FROM layers ORDER BY {ORDERS['layers']}").fetchall()

    def statuses(self, layer: str) -> dict[int, str]:
        """Return the status of each unit of a layer that stands in the file."""
        return dict(self.connection.execute("SELECT unit, status FROM units WHERE layer = ? ORDER BY unit", (layer,)))

    def rows(self, table: str, layer: str, units: range) -> list[Row]:
        """Return what a table says of units whose numbers are in a range."""
        question = f"SELECT * FROM {table} WHERE layer = ? AND unit >= ? AND unit < ? ORDER BY {ORDERS[table]}"
        return self.connection.execute(question, (layer, units.start, units.stop)).fetchall()

    def by_unit(self, table: str, layer: str, units: range) -> dict[int, list[Row]]:
        """Return the rows of a table by unit."""
        found: dict[int, list[Row]] = {}
        for row in self.rows(table, layer, units):
            found.setdefault(row["unit"], []).append(row)
        return found

    def name(self, layer: str, unit: int) -> str | None:
        """Return what a unit is called, empty where nothing names it; None: it is not in the atlas."""
        row = self.connection.execute("SELECT name FROM units WHERE layer = ? AND unit = ?", (layer, unit)).fetchone()
        return None if row is None else row["name"] or ""

    def clearest(self, layer: str) -> list[int]:
        """Return the units that stand for a layer: those with pictures first, the clearest of them."""
        order = f"status = '{FAILED}', status != '{DONE}', clarity DESC, maximum DESC, unit"
        rows = self.connection.execute(
            f"SELECT unit FROM units WHERE layer = ? ORDER BY {order} LIMIT {SHOWN}", (layer,)
        )
        return [row["unit"] for row in rows]

    def measured(self) -> list[Measure]:
        """Return the measures that any unit has."""
        known = measures()
        ((*counts,),) = self.connection.execute(f"SELECT {', '.join(f'count({one.key})' for one in known)} FROM units")
        return [one for one, count in zip(known, counts, strict=True) if count]


@contextmanager
def reading(folder: Path) -> Iterator[Reader]:
    """Open the file of an atlas for reading."""
    address = f"{(folder / NAME).absolute().as_uri()}?mode=ro"
    with closing(sqlite3.connect(address, uri=True, timeout=WAIT)) as connection:
        connection.row_factory = sqlite3.Row
        yield Reader(connection)


def layer_folders(layers: Sequence[Row]) -> dict[str, str]:
    """Return a folder's name for each layer, safe on every file system, and no two alike."""
    found: dict[str, str] = {}
    for row in layers:
        name = re.sub(r"[^A-Za-z0-9._-]", "_", row["layer"]).strip(".") or "layer"
        taken = {one.lower() for one in found.values()}
        found[row["layer"]] = f"{name}-{row['position']}" if name.lower() in taken else name
    return found


def write_script(folder: Path, key: str, value: object) -> Path:
    """Write ``data/<key>.js``, which hands the value to the page."""
    path = folder / DATA / f"{key}.js"
    path.parent.mkdir(parents=True, exist_ok=True)
    encoder = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return write_whole(path, (f"vitalAtlas.add({json.dumps(key)},", encoder.encode(value), ");\n"))


def rounded(value: float | None) -> float | None:
    """Return a number in a few digits; None for none, and where it is not finite."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.{DIGITS}g}")


def entrance(reader: Reader, folder: Path, folders: Mapping[str, str]) -> dict[str, Any]:
    """Return what every page needs: network, images, measures, and the layers with their progress."""
    meta = reader.meta()
    return {
        "network": network_title(str(meta.get("network", ""))),
        "images": meta.get("images"),
        "folder": folder_words(str(meta["folder"])) if meta.get("folder") else "",
        "facts": [[key, str(meta[key])] for key in FACTS if meta.get(key) not in (None, "", [], {})],
        "versions": meta.get("versions") or {},
        "finished": bool(meta.get("finished")),
        "input": input_size(meta),
        "edges": meta.get("edges") or {},
        "shard": SHARD,
        "measures": [{"key": one.key, "title": one.title, "meaning": one.meaning} for one in reader.measured()],
        "layers": [_layer(reader, folder, row, folders, meta) for row in reader.layers()],
    }


def input_size(meta: Mapping[str, Any]) -> list[int]:
    """Return height and width in px of the network's input; empty where that is not recorded."""
    value = meta.get("input")
    if isinstance(value, int):
        return [value, value]
    return [int(side) for side in list(value)[-2:]] if value else []


def _layer(
    reader: Reader, folder: Path, row: Row, folders: Mapping[str, str], meta: Mapping[str, Any]
) -> dict[str, Any]:
    layer = row["layer"]
    statuses = list(reader.statuses(layer).items())
    named = ("layer", "units", "height", "width")
    return {
        **{key: row[key] for key in named},
        "kind": UNIT_WORDS.get(row["kind"], row["kind"]),
        "field": row["receptive_field"],
        "feeds": json.loads(row["feeds"]),
        "folder": folders[layer],
        "cells": cells_of(folder, layer) is not None,
        "command": (meta.get("commands") or {}).get(layer),
        "planned": (meta.get("planned") or {}).get(layer, row["units"]),
        **{name: sum(status == name for _, status in statuses) for name in LETTERS},
        "parts": sorted({unit // PART for unit, _ in statuses}),
        "shown": [[unit, made_thumbnails(folder, folders[layer], unit)] for unit in reader.clearest(layer)],
    }


def names_and_measures(
    reader: Reader, folder: Path, layer: str, place: str, units: range
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the two parts of a range of units, in columns: by what units are found, by what they are sorted."""
    rows, classes = reader.rows("units", layer, units), reader.by_unit("classes", layer, units)
    found = {
        "units": [row["unit"] for row in rows],
        "names": [row["name"] or "" for row in rows],
        "classes": [[one["class"] for one in classes.get(row["unit"], [])[:NAMED_CLASSES]] for row in rows],
    }
    columns = {one.key: [rounded(row[one.key]) for row in rows] for one in reader.measured()}
    letters = "".join(LETTERS[row["status"]] for row in rows)
    made = "".join(str(made_thumbnails(folder, place, row["unit"])) for row in rows)
    where = {key: [rounded(row[key]) for row in rows] for key in MAP_COLUMNS}
    return found, {"status": letters, "made": made, "measures": columns, **where}


def details(
    reader: Reader, folder: Path, layer: str, units: range, folders: Mapping[str, str]
) -> dict[int, dict[str, Any]]:
    """Return the details of a range of units, by number."""
    tables = {table: reader.by_unit(table, layer, units) for table in ("facets", "images", "neighbours", "classes")}
    found, meta = {}, reader.meta()
    for row in reader.rows("units", layer, units):
        own = {table: rows.get(row["unit"], []) for table, rows in tables.items()}
        found[row["unit"]] = {
            "status": row["status"],
            "error": row["error"],
            "histogram": json.loads(row["histogram"]) if row["histogram"] else None,
            "facets": [_facet(one) for one in own["facets"]],
            "images": [_image(one) for one in own["images"]],
            "neighbours": [_neighbour(reader, folder, one, folders) for one in own["neighbours"]],
            "classes": [[one["class"], rounded(one["value"])] for one in own["classes"][:CLASSES]],
            "classCount": len(own["classes"]),
            "audits": (meta.get("audits") or {}).get(f"{layer}/{row['unit']}", []),
            "circuit": (meta.get("circuits") or {}).get(f"{layer}/{row['unit']}"),
        }
    return found


def _facet(row: Row) -> dict[str, Any]:
    numbers = ("share", "coherence", "activation", "activation_ratio", "probability", "seconds")
    texts = ("facet", "members", "picture", "masked")
    return {**{key: row[key] for key in texts}, **{key: rounded(row[key]) for key in numbers}}


def _image(row: Row) -> dict[str, Any]:
    box = json.loads(row["box"]) if row["box"] else None
    texts = ("kind", "rank", "facet", "file", "path", "overlay")
    return {**{key: row[key] for key in texts}, "value": rounded(row["value"]), "box": box}


def _neighbour(reader: Reader, folder: Path, row: Row, folders: Mapping[str, str]) -> list[Any]:
    """Return kind, layer, unit, value, name, and which thumbnails the unit has; -1 if it is not in the atlas."""
    layer, unit = row["other_layer"], row["other_unit"]
    name = reader.name(layer, unit)
    made = NOT_THERE if name is None or layer not in folders else made_thumbnails(folder, folders[layer], unit)
    return [row["kind"], layer, unit, rounded(row["value"]), name or "", made]
