"""The result of mining: one sqlite file that says which images drive which unit."""

from __future__ import annotations

import json
import os
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vital_exp.errors import UsageError
from vital_exp.mining.images import ImageFolder
from vital_exp.models.network import VisionNetwork

FORMAT = 1
SCHEMA = """
-- One row per unit, side and rank.
CREATE TABLE units (
    layer TEXT NOT NULL,        -- module name
    channel INTEGER NOT NULL,   -- of the layer, or the number of a direction
    rank INTEGER NOT NULL,      -- from 0
    side TEXT NOT NULL,         -- top: largest values; bottom: smallest; patch: best windows of the top images
    image TEXT NOT NULL,        -- path relative to the folder, with /
    activation REAL NOT NULL,   -- the unit's pooled value; a patch's is that of the window enlarged to the input
    x0 INTEGER, y0 INTEGER, x1 INTEGER, y1 INTEGER,  -- box in px of the image as the network sees it; NULL: all of it
    PRIMARY KEY (layer, channel, side, rank)
) WITHOUT ROWID;
CREATE TABLE corrupt (image TEXT PRIMARY KEY, reason TEXT NOT NULL);  -- files that were passed over
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);        -- JSON values: network, folder, settings
"""
SIDES = ("top", "bottom", "patch")


@dataclass(frozen=True)
class Row:
    """One image or patch of a unit; see the columns of the table."""

    layer: str
    channel: int
    rank: int
    side: str
    image: str
    activation: float
    box: tuple[int, int, int, int] | None


@dataclass(frozen=True)
class Index:
    """A finished mining index.

    Attributes:
        path: the sqlite file.
    """

    path: Path

    @classmethod
    def open(cls, path: str | Path) -> Index:
        """Return the index of a file, or of the folder that holds it.

        Raises:
            UsageError: no such file, or it is no finished index of this version.
        """
        place = Path(path).expanduser()
        place = place / "index.sqlite" if place.is_dir() else place
        if not place.is_file():
            raise UsageError("references.index", path, "no such file; vital-mine writes index.sqlite")
        index = cls(place)
        try:
            known = index.meta.get("format")
        except (sqlite3.DatabaseError, ValueError):
            known = None
        if known != FORMAT:
            raise UsageError("references.index", path, "is no index of vital-mine, or of another version")
        return index

    @cached_property
    def meta(self) -> dict[str, Any]:
        """The network, folder and settings: model, weights, folder, fingerprint, layers, k, pooling, patch, images."""
        with self._connection() as connection:
            return {key: json.loads(value) for key, value in connection.execute("SELECT key, value FROM meta")}

    @property
    def corrupt(self) -> dict[str, str]:
        """The images that were passed over, with the reason."""
        with self._connection() as connection:
            return dict(connection.execute("SELECT image, reason FROM corrupt ORDER BY image"))

    def top(self, layer: str, channel: int, k: int | None = None) -> list[Row]:
        """Return the images that drive a unit most, the strongest first."""
        return self._rows(layer, channel, "top", k)

    def bottom(self, layer: str, channel: int, k: int | None = None) -> list[Row]:
        """Return the images that drive a unit least, the weakest first."""
        return self._rows(layer, channel, "bottom", k)

    def patches(self, layer: str, channel: int, k: int | None = None) -> list[Row]:
        """Return the best patches of the strongest images, at most one of each, the strongest first."""
        return self._rows(layer, channel, "patch", k)

    def largest_activation(self, layer: str, channel: int) -> float:
        """Return the unit's largest value over all images."""
        return self.top(layer, channel, 1)[0].activation

    def units(self) -> list[tuple[str, int]]:
        """Return (layer, channel) of every unit."""
        query = "SELECT DISTINCT layer, channel FROM units ORDER BY layer, channel"
        with self._connection() as connection:
            return [(layer, channel) for layer, channel in connection.execute(query)]

    def check(self, network: VisionNetwork, folder: ImageFolder) -> None:
        """Make sure that the index was made with a network, and of a folder as it is now.

        Raises:
            UsageError: it was not; says of which.
        """
        if self.meta["weights"] != network.weights_hash():
            problem = f"was mined with {self.meta['model']} ({self.meta['weights']}), not {network.name}"
            raise UsageError("references.index", self.path, f"{problem} ({network.weights_hash()})")
        if self.meta["preprocessing"] != repr(network.preprocessing):
            raise UsageError("references.index", self.path, f"was mined with {self.meta['preprocessing']}")
        if self.meta["fingerprint"] != folder.fingerprint:
            changed = Path(self.meta["folder"]) == folder.root.resolve()
            what = "the folder has changed since" if changed else f"not {folder.root}"
            raise UsageError("references.index", self.path, f"was mined of {self.meta['folder']}, {what}")

    def _rows(self, layer: str, channel: int, side: str, k: int | None) -> list[Row]:
        query = "SELECT * FROM units WHERE layer = ? AND channel = ? AND side = ? ORDER BY rank LIMIT ?"
        with self._connection() as connection:
            found = connection.execute(query, (layer, channel, side, -1 if k is None else k)).fetchall()
        if not found:
            known = [f"{layer}:{channel}" for layer, channel in self.units()]
            unit = f"{layer}:{channel}"
            raise UsageError("references.index", unit, f"this unit was not mined; {self.path} has {len(known)}", known)
        return [_row(columns) for columns in found]

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        uri = f"{self.path.resolve().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True)) as connection:
            yield connection


def _row(columns: tuple[Any, ...]) -> Row:
    layer, channel, rank, side, image, activation, *box = columns
    return Row(
        layer, channel, rank, side, image, activation, None if box[0] is None else (box[0], box[1], box[2], box[3])
    )


def write_index(path: Path, rows: Iterable[Row], corrupt: dict[str, str], meta: dict[str, Any]) -> Index:
    """Write an index, which appears under its name only when it is complete."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
    os.close(handle)
    try:
        with closing(sqlite3.connect(temporary)) as connection, connection:
            connection.executescript(SCHEMA)
            flat = (
                (*(r.layer, r.channel, r.rank, r.side, r.image, r.activation), *(r.box or [None] * 4)) for r in rows
            )
            connection.executemany(f"INSERT INTO units VALUES ({', '.join('?' * 10)})", flat)
            connection.executemany("INSERT INTO corrupt VALUES (?, ?)", corrupt.items())
            values = ((key, json.dumps(value)) for key, value in {"format": FORMAT, **meta}.items())
            connection.executemany("INSERT INTO meta VALUES (?, ?)", values)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return Index(path)
