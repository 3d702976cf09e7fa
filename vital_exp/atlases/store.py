"""The data of an atlas: one SQLite file, from which all pages are made. A unit is written in one transaction.

The file is plain: ``pandas.read_sql("SELECT * FROM units", sqlite3.connect("atlas.sqlite"))`` reads it.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from vital_exp.errors import UsageError

NAME = "atlas.sqlite"
KEY = "hydra.run.dir"
VERSION = 1  # the file's user_version; raise it when the tables change
WAIT = 60.0  # seconds for another rank that writes
MINED, DONE, FAILED = "mined", "done", "failed"
STRONGEST, WEAKEST, MEMBER = "strongest", "weakest", "member"
SIMILAR, INPUT, OUTPUT = "similar", "input", "output"
PROFILES = "profiles"  # folder: <layer>.npy, (images, units) float16, the activation of each unit by each image
JSON_COLUMNS = ("feeds", "histogram", "box")

SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;  -- what the atlas is of; values are JSON
CREATE TABLE layers (
  layer TEXT PRIMARY KEY,    -- module name
  position INTEGER NOT NULL, -- place in the order of the network, from 0
  kind TEXT NOT NULL,        -- channel, direction, concept, sae, class
  units INTEGER NOT NULL,    -- of the layer, also those that the atlas leaves out
  height INTEGER NOT NULL, width INTEGER NOT NULL,  -- of the map; 1 and 1 for a vector
  receptive_field INTEGER,   -- side in px of the effective receptive field; null: not measured
  feeds TEXT NOT NULL        -- JSON: layers of the atlas that this layer leads to, with no layer of the atlas between
) WITHOUT ROWID;
CREATE TABLE units (
  layer TEXT NOT NULL, unit INTEGER NOT NULL,
  status TEXT NOT NULL,      -- mined: images and measures; done: pictures too, where these are asked for; failed
  error TEXT,                -- why a unit failed
  name TEXT, name_score REAL,            -- what tells it best, and how well (AUC of a label, cosine of a word)
  clarity REAL, redundancy REAL, polysemanticity REAL,  -- of its strongest images (docs/methods/metrics.md)
  coherence REAL,            -- of the clearest facet
  mean REAL, deviation REAL, -- of the activation over all images
  density REAL,              -- share of the images whose activation is above 0
  maximum REAL,              -- the largest activation
  correspondence REAL,       -- of its pictures, mean over facets (docs/methods/metrics.md)
  map_x REAL, map_y REAL,    -- place on the layer's map, each in [0, 1]
  histogram TEXT,            -- JSON: low, high, counts, of the activation over images
  PRIMARY KEY (layer, unit)
) WITHOUT ROWID;
CREATE TABLE facets (
  layer TEXT NOT NULL, unit INTEGER NOT NULL, facet INTEGER NOT NULL,  -- from 0, the clearest first
  share REAL, coherence REAL,  -- share of the strongest images; mean pairwise cosine of the members
  members INTEGER,           -- number of images
  picture TEXT, masked TEXT, -- files, relative to the folder
  activation REAL,           -- of the picture
  activation_ratio REAL,     -- divided by the unit's largest activation by an image
  probability REAL,          -- of a class's picture
  seconds REAL,
  PRIMARY KEY (layer, unit, facet)
) WITHOUT ROWID;
CREATE TABLE images (
  layer TEXT NOT NULL, unit INTEGER NOT NULL,
  kind TEXT NOT NULL,        -- strongest, weakest; member: of a facet, weaker than the strongest that are shown
  rank INTEGER NOT NULL,     -- from 1
  facet INTEGER,             -- that the image belongs to; null: none
  file TEXT,                 -- thumbnail, relative to the folder; null: not made
  path TEXT NOT NULL,        -- of the original, relative to meta.folder
  value REAL NOT NULL,       -- activation
  box TEXT,                  -- JSON: [x0, y0, x1, y1] of the window, px of meta.input; null: no place
  overlay TEXT,              -- file of the window with where the unit fires, relative to the folder; null: not made
  PRIMARY KEY (layer, unit, kind, rank)
) WITHOUT ROWID;
CREATE TABLE neighbours (
  layer TEXT NOT NULL, unit INTEGER NOT NULL,
  kind TEXT NOT NULL,        -- similar: cosine of centred activations; input, output: by weights, or else by activation
  rank INTEGER NOT NULL,     -- from 1
  other_layer TEXT NOT NULL, other_unit INTEGER NOT NULL,
  value REAL NOT NULL,
  PRIMARY KEY (layer, unit, kind, rank)
) WITHOUT ROWID;
CREATE TABLE classes (
  layer TEXT NOT NULL, unit INTEGER NOT NULL,
  class TEXT NOT NULL,       -- folder of the images, by its class's name where that is known
  value REAL NOT NULL,       -- mean activation
  PRIMARY KEY (layer, unit, class)
) WITHOUT ROWID;
"""
ORDERS = {
    "layers": "position",
    "units": "layer, unit",
    "facets": "layer, unit, facet",
    "images": "layer, unit, kind, rank",
    "neighbours": "layer, unit, kind, rank",
    "classes": "layer, unit, value DESC, class",
}


@dataclass(frozen=True)
class LayerRow:
    """A row of the table layers; see ``SCHEMA``."""

    layer: str
    position: int
    kind: str
    units: int
    height: int
    width: int
    receptive_field: int | None = None
    feeds: tuple[str, ...] = ()


@dataclass(frozen=True)
class UnitRow:
    """A row of the table units; see ``SCHEMA``. What was not measured is None."""

    layer: str
    unit: int
    status: str
    error: str | None = None
    name: str | None = None
    name_score: float | None = None
    clarity: float | None = None
    redundancy: float | None = None
    polysemanticity: float | None = None
    coherence: float | None = None
    mean: float | None = None
    deviation: float | None = None
    density: float | None = None
    maximum: float | None = None
    correspondence: float | None = None
    map_x: float | None = None
    map_y: float | None = None
    histogram: dict[str, Any] | None = None


KEPT = ("redundancy", "map_x", "map_y")  # computed for a whole layer: a unit that is written again keeps them
MEASURES = tuple(
    one.name for one in fields(UnitRow) if one.name not in ("layer", "unit", "status", "error", "name", "histogram")
)


@dataclass(frozen=True)
class FacetRow:
    """A row of the table facets; see ``SCHEMA``."""

    layer: str
    unit: int
    facet: int
    share: float | None = None
    coherence: float | None = None
    members: int | None = None
    picture: str | None = None
    masked: str | None = None
    activation: float | None = None
    activation_ratio: float | None = None
    probability: float | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class ImageRow:
    """A row of the table images; see ``SCHEMA``."""

    layer: str
    unit: int
    kind: str
    rank: int
    path: str
    value: float
    facet: int | None = None
    file: str | None = None
    box: tuple[int, int, int, int] | None = None
    overlay: str | None = None


@dataclass(frozen=True)
class NeighbourRow:
    """A row of the table neighbours; see ``SCHEMA``."""

    layer: str
    unit: int
    kind: str
    rank: int
    other_layer: str
    other_unit: int
    value: float


@dataclass(frozen=True)
class ClassRow:
    """A row of the table classes; the column is called class."""

    layer: str
    unit: int
    name: str
    value: float


TABLES: dict[type[Any], str] = {
    LayerRow: "layers",
    UnitRow: "units",
    FacetRow: "facets",
    ImageRow: "images",
    NeighbourRow: "neighbours",
    ClassRow: "classes",
}
COLUMNS = {
    kind: ["class" if table == "classes" and one.name == "name" else one.name for one in fields(kind)]
    for kind, table in TABLES.items()
}
Row = TypeVar("Row", LayerRow, UnitRow, FacetRow, ImageRow, NeighbourRow, ClassRow)


@dataclass(frozen=True)
class Entry:
    """A unit with its rows in other tables; None leaves the rows that are there."""

    unit: UnitRow
    facets: Sequence[FacetRow] | None = None
    images: Sequence[ImageRow] | None = None
    neighbours: Sequence[NeighbourRow] | None = None
    classes: Sequence[ClassRow] | None = None


@dataclass(frozen=True)
class Store:
    """The SQLite file of an atlas; every question opens the file anew, so nothing stays open.

    Attributes:
        folder: the atlas's.
        name: the file's name.
    """

    folder: Path
    name: str = field(default=NAME)

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder / self.name

    @classmethod
    def create(cls, folder: Path, meta: Mapping[str, Any], layers: Iterable[LayerRow] = ()) -> Store:
        """Make the file of a new atlas, or open the one that is there; write ``meta`` and layers.

        Raises:
            UsageError: the folder cannot be written, or holds a file of another kind or version.
        """
        store = cls(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not store.path.is_file():
                with closing(store._connect("rwc")) as connection:
                    connection.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;")
            cls.open(folder)
            store.set_meta(meta)
            store.write_layers(layers)
        except (OSError, sqlite3.OperationalError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UsageError(KEY, folder, f"the folder cannot be written ({reason})") from error
        return store

    @classmethod
    def open(cls, folder: str | Path, key: str = KEY) -> Store:
        """Open the file of an atlas, finished or not.

        Raises:
            UsageError: there is none, or it is another file or one of another version.
        """
        store = cls(Path(folder).expanduser())
        if not store.path.is_file():
            raise UsageError(key, folder, f"no {NAME} there; vital-atlas writes one")
        try:
            ((version,),) = store._ask("PRAGMA user_version")
        except sqlite3.DatabaseError as error:
            raise UsageError(key, folder, f"its {NAME} was not written by vital-atlas ({error})") from None
        if version != VERSION:
            raise UsageError(key, folder, f"holds an atlas of another version ({version}; this is {VERSION})")
        return store

    def meta(self) -> dict[str, Any]:
        """Return what the atlas was made from: network, folder of the images, recipe, seed, input, versions ..."""
        return {key: json.loads(value) for key, value in self._ask("SELECT key, value FROM meta")}

    def set_meta(self, meta: Mapping[str, Any]) -> None:
        """Write values, JSON each, in place of those of the same keys."""
        rows = [(key, json.dumps(value)) for key, value in meta.items()]
        with closing(self._connect("rw")) as connection, connection:
            connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", rows)

    def write_layers(self, layers: Iterable[LayerRow]) -> None:
        """Write layers in place of those of the same names."""
        with closing(self._connect("rw")) as connection, connection:
            _insert(connection, LayerRow, layers)

    def write(self, *entries: Entry) -> None:
        """Write units, with what is given of them, in one transaction."""
        with closing(self._connect("rw")) as connection, connection:
            for entry in entries:
                _insert(connection, UnitRow, [entry.unit], KEPT)
                for kind, rows in _parts(entry):
                    if rows is not None:
                        unit = (entry.unit.layer, entry.unit.unit)
                        connection.execute(f"DELETE FROM {TABLES[kind]} WHERE layer = ? AND unit = ?", unit)
                        _insert(connection, kind, rows)

    def update(self, layer: str, columns: Mapping[str, Mapping[int, object]]) -> None:
        """Write columns of a layer's units, {column: {unit: value}}, in one transaction; other columns stay."""
        with closing(self._connect("rw")) as connection, connection:
            for column, values in columns.items():
                if column not in COLUMNS[UnitRow]:
                    raise ValueError(f"{column} is no column of units")
                rows = [(value, layer, unit) for unit, value in values.items()]
                connection.executemany(f"UPDATE units SET {column} = ? WHERE layer = ? AND unit = ?", rows)

    def write_neighbours(self, layer: str, units: range, rows: Iterable[NeighbourRow]) -> None:
        """Write all neighbours of the units whose numbers are in a range, in one transaction."""
        with closing(self._connect("rw")) as connection, connection:
            block = (layer, units.start, units.stop)
            connection.execute("DELETE FROM neighbours WHERE layer = ? AND unit >= ? AND unit < ?", block)
            _insert(connection, NeighbourRow, rows)

    def layers(self) -> list[LayerRow]:
        """Return the layers in the order of the network."""
        return self._rows(LayerRow)

    def units(self, layer: str | None = None, unit: int | None = None) -> list[UnitRow]:
        """Return the units of a layer, or of all, by number."""
        return self._rows(UnitRow, layer, unit)

    def facets(self, layer: str | None = None, unit: int | None = None) -> list[FacetRow]:
        """Return the facets of a unit, a layer or all, the clearest of each unit first."""
        return self._rows(FacetRow, layer, unit)

    def images(self, layer: str | None = None, unit: int | None = None) -> list[ImageRow]:
        """Return the images of a unit, a layer or all, by kind and rank."""
        return self._rows(ImageRow, layer, unit)

    def neighbours(self, layer: str | None = None, unit: int | None = None) -> list[NeighbourRow]:
        """Return the neighbours of a unit, a layer or all, by kind and rank."""
        return self._rows(NeighbourRow, layer, unit)

    def classes(self, layer: str | None = None, unit: int | None = None) -> list[ClassRow]:
        """Return the classes of a unit, a layer or all, of each unit the strongest first."""
        return self._rows(ClassRow, layer, unit)

    def statuses(self, layer: str) -> dict[int, str]:
        """Return the status of every unit of a layer that stands in the file, by its number."""
        return dict(self._ask("SELECT unit, status FROM units WHERE layer = ? ORDER BY unit", (layer,)))

    def count(self, layer: str | None = None, status: str | None = None) -> int:
        """Return how many units stand in the file, of a layer or all, of a status or any."""
        asked = {key: value for key, value in (("layer", layer), ("status", status)) if value is not None}
        ((found,),) = self._ask(f"SELECT count(*) FROM units{_where(asked)}", tuple(asked.values()))
        return int(found)

    def _rows(self, kind: type[Row], layer: str | None = None, unit: int | None = None) -> list[Row]:
        asked = {key: value for key, value in (("layer", layer), ("unit", unit)) if value is not None}
        table, columns = TABLES[kind], COLUMNS[kind]
        question = f"SELECT {', '.join(columns)} FROM {table}{_where(asked)} ORDER BY {ORDERS[table]}"
        return [kind(*map(_decoded, columns, row)) for row in self._ask(question, tuple(asked.values()))]

    def _ask(self, question: str, values: tuple[object, ...] = ()) -> list[Any]:
        with closing(self._connect("ro")) as connection:
            return connection.execute(question, values).fetchall()

    def _connect(self, mode: str) -> sqlite3.Connection:
        return sqlite3.connect(f"{self.path.absolute().as_uri()}?mode={mode}", uri=True, timeout=WAIT)


def _where(asked: Iterable[str]) -> str:
    """Return the condition that columns have given values; nothing where none is given."""
    conditions = " AND ".join(f"{column} = ?" for column in asked)
    return f" WHERE {conditions}" if conditions else ""


def safe_name(layer: str) -> str:
    """Return a layer's name as folders and files are called."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", layer)


def _parts(entry: Entry) -> list[tuple[type[Any], Sequence[Any] | None]]:
    return [
        (FacetRow, entry.facets),
        (ImageRow, entry.images),
        (NeighbourRow, entry.neighbours),
        (ClassRow, entry.classes),
    ]


def _insert(connection: sqlite3.Connection, kind: type[Any], rows: Iterable[Any], kept: Sequence[str] = ()) -> None:
    """Insert rows in place of those of the same keys; of the columns ``kept``, null leaves what is there."""
    columns, table = COLUMNS[kind], TABLES[kind]
    places = ", ".join("?" * len(columns))
    question = f"INSERT OR REPLACE INTO {table} ({', '.join(columns)}) VALUES ({places})"
    if kept:
        new = {one: f"coalesce(excluded.{one}, {one})" if one in kept else f"excluded.{one}" for one in columns}
        changes = ", ".join(f"{one} = {value}" for one, value in new.items())
        question = f"{question.replace(' OR REPLACE', '')} ON CONFLICT (layer, unit) DO UPDATE SET {changes}"
    connection.executemany(question, ([_encoded(value) for value in asdict(row).values()] for row in rows))


def _encoded(value: object) -> object:
    """Return a value as SQLite holds it: lists and dicts as JSON."""
    return json.dumps(value) if isinstance(value, (list, tuple, dict)) else value


def _decoded(column: str, value: Any) -> Any:
    if column not in JSON_COLUMNS or value is None:
        return value
    found = json.loads(value)
    return tuple(found) if isinstance(found, list) else found
