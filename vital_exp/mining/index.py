"""The result of mining: one SQLite file of the images and patches that drive each unit."""

from __future__ import annotations

import json
import logging
import os
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from vital_exp.errors import UsageError
from vital_exp.mining.activity import Histogram
from vital_exp.mining.images import ImageFolder
from vital_exp.mining.meta import (
    FORMAT,
    Meta,
    describe_images,
    images_difference,
    network_difference,
)
from vital_exp.mining.patches import Box
from vital_exp.mining.units import directions_hash
from vital_exp.mining.windows import AUTO, check_window, place_of, window_around, window_side
from vital_exp.models.identity import identity_of
from vital_exp.models.network import VisionNetwork
from vital_exp.notebook_html import CELL_SIDE, ROWS_SHOWN, lines, table
from vital_exp.references.facets import Facet
from vital_exp.targets.autoencoder import SparseAutoencoder
from vital_exp.whole_files import whole_path

NAME = "index.sqlite"
KEY = "references.index"
WAIT = 60.0  # seconds to wait while another process writes facets
UNITS_PICTURED, PICTURED = 12, 4  # a notebook shows thumbnails for so many units, so many of each
TOP, BOTTOM = "top", "bottom"
IMAGE, PATCH = "image", "patch"

logger = logging.getLogger(__name__)

SCHEMA = """
-- One row per unit, side, region and rank.
CREATE TABLE units (
  layer TEXT NOT NULL,       -- module name
  channel INTEGER NOT NULL,  -- from 0; where meta.layers names directions, the number of the direction
  side TEXT NOT NULL,        -- top: drives the unit most; bottom: least
  region TEXT NOT NULL,      -- image: whole images; patch: windows of the top images, at most one of each
  rank INTEGER NOT NULL,     -- from 1
  image TEXT NOT NULL,       -- path relative to meta.folder, with / (bytes where it is no text)
  activation REAL NOT NULL,  -- of the unit, pooled over positions; a patch is first enlarged to the network's input
  x0 INTEGER, y0 INTEGER, x1 INTEGER, y1 INTEGER,
      -- box of a patch, null for whole images: px of the network's input (the image resized and cropped as
      -- meta.preprocessing says), x to the right, y down, x1 and y1 outside
  position INTEGER,          -- of an image: the position in the layer's map (meta.maps) where the unit is strongest,
      -- counted row by row; null for a patch
  PRIMARY KEY (layer, channel, side, region, rank)
) WITHOUT ROWID;
-- The facets of units, added after mining; the clearest first.
CREATE TABLE facets (
  layer TEXT NOT NULL, channel INTEGER NOT NULL,
  settings TEXT NOT NULL,    -- JSON: region, window, candidates, count, facets, seed, embedding
  facet INTEGER NOT NULL,    -- from 0
  share REAL NOT NULL,       -- share of the candidates that belong to the facet
  coherence REAL NOT NULL,   -- mean pairwise cosine of the members
  members TEXT NOT NULL,     -- JSON: places of the members among the candidates, rank - 1, nearest to the centre first
  PRIMARY KEY (layer, channel, settings, facet)
) WITHOUT ROWID;
-- The distribution of each unit's activation over all images.
CREATE TABLE activity (
  layer TEXT NOT NULL, channel INTEGER NOT NULL,
  awake REAL NOT NULL,       -- share of the images whose activation is above 0
  low REAL NOT NULL, high REAL NOT NULL,  -- the least and the largest activation in a sample of the images
  counts TEXT NOT NULL,      -- JSON: a histogram of the sample: images per bin, bins of equal width from low to high
  PRIMARY KEY (layer, channel)
) WITHOUT ROWID;
CREATE TABLE corrupt (image TEXT NOT NULL, reason TEXT NOT NULL);     -- files that could not be read
-- The network, images, units and settings that were mined; values are JSON.
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Row:
    """One image, or one patch or window of an image, that ranks for a unit.

    Attributes:
        layer, channel: the unit; where directions were mined, ``channel`` is the number of the direction.
        rank: from 1.
        side: ``"top"`` or ``"bottom"``.
        image: path relative to the folder.
        activation: the unit's activation for this image or patch, pooled over positions.
        box: (x0, y0, x1, y1) of a patch or window in px of the network's input, x1 and y1 outside; None: the whole
            image.
        position: the position in the layer's map where the unit is strongest, counted row by row; None for a patch.
    """

    layer: str
    channel: int
    rank: int
    side: str
    image: str
    activation: float
    box: Box | None = None
    position: int | None = None


class Index:
    """A finished index. Each query opens and closes the file.

    Attributes:
        path: the SQLite file.
        meta: the network, images, units and settings that were mined, see :func:`vital_exp.mining.meta.describe`.
        corrupt: the files that could not be read: error by path.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        meta = self._query("SELECT key, value FROM meta")
        self.meta: dict[str, Any] = {key: json.loads(value) for key, value in meta}
        self.corrupt: dict[str, str] = {
            _path(image): reason for image, reason in self._query("SELECT image, reason FROM corrupt ORDER BY rowid")
        }

    def __repr__(self) -> str:
        """Units, network, number of images and path in one line."""
        layers = ", ".join(entry["layer"] for entry in self.meta["layers"])
        units = f"{len(self.units())} units of {layers} in {self.meta['network']}"
        return f"Index({units}, {self.meta['images']} images, {self.path})"

    def _repr_html_(self) -> str:
        rows = [
            {
                "layer": layer,
                "unit": channel,
                "largest activation": self.largest_activation(layer, channel),
                "active images": f"{100 * self.histogram(layer, channel).awake:.3g}%",
                "strongest images": self._thumbnails(layer, channel)
                if place < UNITS_PICTURED
                else self.top(layer, channel, 1)[0].image,
            }
            for place, (layer, channel) in enumerate(self.units()[:ROWS_SHOWN])
        ]
        return lines([repr(self)]) + table(rows)

    def _thumbnails(self, layer: str, channel: int) -> list[Image.Image] | str:
        """Return thumbnails of a unit's strongest images; the path of the first if an image cannot be read."""
        found, rows = [], self.top(layer, channel, PICTURED)
        for row in rows:
            try:
                with Image.open(Path(self.meta["folder"]) / row.image) as image:
                    image.thumbnail((CELL_SIDE, CELL_SIDE))
                    found.append(image.convert("RGB"))
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
                return rows[0].image
        return found

    @classmethod
    def open(cls, path: str | Path, key: str = KEY) -> Index:
        """Open an index file, or the index file of a folder.

        Raises:
            UsageError: there is no such file, or it is not an index, or an index of another version.
        """
        file = Path(str(path)).expanduser()
        file = file / NAME if file.is_dir() else file
        if not file.is_file():
            raise UsageError(key, path, f"no {NAME} there; vital-mine writes one when it is finished")
        try:
            index = cls(file.resolve())
        except (sqlite3.Error, ValueError) as error:
            raise UsageError(key, path, f"is not an index of vital-mine ({error})") from None
        if index.meta.get("format") != FORMAT:
            raise UsageError(key, path, "is an index of another version; mine again")
        return index

    def top(self, layer: str, channel: int, k: int | None = None) -> list[Row]:
        """Return the images that drive a unit most, strongest first, at most ``k``.

        Raises:
            UsageError: the unit was not mined.
        """
        return self._rows(layer, channel, TOP, IMAGE, k)

    def bottom(self, layer: str, channel: int, k: int | None = None) -> list[Row]:
        """Return the images that drive a unit least, lowest first; empty for a feature of an autoencoder."""
        return self._rows(layer, channel, BOTTOM, IMAGE, k)

    def patches(self, layer: str, channel: int, k: int | None = None) -> list[Row]:
        """Return the strongest patches of the top images, at most one of each image; see :meth:`top`."""
        return self._rows(layer, channel, TOP, PATCH, k)

    def windows(self, layer: str, channel: int, k: int | None = None, window: str | float = AUTO) -> list[Row]:
        """Return the top images with the box of a window around the unit's strongest position; see :meth:`top`.

        Args:
            layer, channel, k: see :meth:`top`.
            window: side of the windows: the layer's effective receptive field (``"auto"``), a share of the shorter side
                of the network's input in (0, 1], or px. The box is None where the strongest position has no place in
                the image, as that of a class token.

        Raises:
            UsageError: the unit was not mined; the window is larger than the input.
        """
        rows, size = self.top(layer, channel, k), self.input_size
        shape = self.meta["maps"][layer]
        check_window(window, size)

        def box(row: Row) -> Box | None:
            place = place_of(int(row.position or 0), shape, size)
            return place and window_around(place, size, self.window_side(layer, window))

        return [replace(row, box=box(row)) for row in rows]

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) of the network's input."""
        height, width = self.meta["input"]
        return height, width

    def window_side(self, layer: str, window: str | float = AUTO) -> int:
        """Return the side in px of the windows of a layer's units; see :meth:`windows`.

        Raises:
            UsageError: the window is larger than the input, or auto where the receptive field could not be measured.
        """
        return window_side(window, self.meta["fields"][layer], self.input_size)

    def facets(self, layer: str, channel: int, settings: Mapping[str, object]) -> list[Facet]:
        """Return a unit's facets that are stored for these settings, the clearest first; empty if there are none."""
        rows = self._query(
            "SELECT share, coherence, members FROM facets WHERE layer = ? AND channel = ? AND settings = ?"
            " ORDER BY facet",
            (layer, channel, json.dumps(settings, sort_keys=True)),
        )
        return [Facet(share, coherence, tuple(json.loads(members))) for share, coherence, members in rows]

    def keep_facets(self, layer: str, channel: int, settings: Mapping[str, object], facets: Sequence[Facet]) -> None:
        """Store the facets of a unit in the index; a file that cannot be written is left as it is."""
        text = json.dumps(settings, sort_keys=True)
        rows = [
            (layer, channel, text, number, facet.share, facet.coherence, json.dumps(facet.members))
            for number, facet in enumerate(facets)
        ]
        try:
            with closing(sqlite3.connect(self.path, timeout=WAIT)) as connection, connection:
                connection.executemany("INSERT OR REPLACE INTO facets VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
        except sqlite3.OperationalError as error:  # a read-only index: its facets are then computed in every run
            logger.info("%s: facets cannot be stored there (%s)", self.path, error)

    def largest_activation(self, layer: str, channel: int) -> float:
        """Return the unit's activation for the image that drives it most."""
        return self.top(layer, channel, 1)[0].activation

    def strongest_images(self, layer: str) -> list[tuple[int, str]]:
        """Return each unit of a layer that any image drives, ascending, with the image that drives it most."""
        query = (
            "SELECT channel, image FROM units WHERE layer = ? AND side = ? AND region = ? AND rank = 1 ORDER BY channel"
        )
        return [(channel, _path(image)) for channel, image in self._query(query, (layer, TOP, IMAGE))]

    def histogram(self, layer: str, channel: int) -> Histogram:
        """Return the distribution of a unit's activation over all images.

        Raises:
            UsageError: the unit was not mined.
        """
        query = "SELECT awake, low, high, counts FROM activity WHERE layer = ? AND channel = ?"
        rows = self._query(query, (layer, channel))
        if not rows:
            self._explain(layer, channel, IMAGE)
        awake, low, high, counts = rows[0]
        return Histogram(awake, low, high, json.loads(counts))

    def units(self) -> list[tuple[str, int]]:
        """Return (layer, channel) of every unit, layers in the order they were asked for."""
        order = {entry["layer"]: place for place, entry in enumerate(self.meta["layers"])}
        units = self._query("SELECT DISTINCT layer, channel FROM units")
        return sorted(units, key=lambda unit: (order[unit[0]], unit[1]))

    def check(self, network: VisionNetwork, folder: ImageFolder, key: str = KEY) -> None:
        """Make sure that this network and these images, as they are now, were mined.

        Raises:
            UsageError: the network or the images differ; the message says how.
        """
        difference = network_difference(self.meta, identity_of(network))
        difference = difference or images_difference(self.meta, describe_images(folder))
        if difference:
            raise UsageError(key, self.path, f"was mined with {difference}")

    def check_directions(self, layer: str, directions: Tensor | SparseAutoencoder | None, key: str = KEY) -> None:
        """Make sure that these directions of a layer were mined; with None, that its channels were mined.

        Raises:
            UsageError: the index holds other directions, or channels in their place.
        """
        mined = next((entry["directions"] for entry in self.meta["layers"] if entry["layer"] == layer), None)
        now = None if directions is None else directions_hash(directions)
        if mined != now:
            problem = f"was mined for other directions of {layer} ({mined or 'its channels'}; now {now or 'channels'})"
            raise UsageError(key, self.path, problem)

    def _rows(self, layer: str, channel: int, side: str, region: str, k: int | None) -> list[Row]:
        rows = self._query(
            "SELECT rank, image, activation, x0, y0, x1, y1, position FROM units"
            " WHERE layer = ? AND channel = ? AND side = ? AND region = ? AND rank <= ? ORDER BY rank",
            (layer, channel, side, region, self.meta["k"] if k is None else k),
        )
        if not rows and (side == TOP or not self._rows(layer, channel, TOP, region, 1)):  # features have no weakest
            self._explain(layer, channel, region)
        return [
            Row(
                layer, channel, rank, side, _path(image), activation, None if x0 is None else (x0, y0, x1, y1), position
            )
            for rank, image, activation, x0, y0, x1, y1, position in rows
        ]

    def _explain(self, layer: str, channel: int, region: str) -> None:
        """Raise the UsageError that explains why a query found no rows."""
        mined = {entry["layer"]: entry for entry in self.meta["layers"]}
        if layer not in mined:
            raise UsageError("layer", layer, f"was not mined; {self.path} has {', '.join(mined)}", mined)
        if region == PATCH and self.meta["patch"] is None:
            raise UsageError(KEY, self.path, "was mined without patches; references.region=image takes whole images")
        awake = self._query("SELECT awake FROM activity WHERE layer = ? AND channel = ?", (layer, channel))
        if awake and awake[0][0] == 0:
            problem = f"of {layer}: no image activates this feature; its activation is never above 0"
            raise UsageError("channel", channel, problem)
        units = "directions" if mined[layer]["directions"] else "channels"
        raise UsageError("channel", channel, f"of {layer} only the {units} {mined[layer]['channels']} were mined")

    def _query(self, query: str, values: tuple[object, ...] = ()) -> list[Any]:
        with closing(sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            return connection.execute(query, values).fetchall()


def write_index(
    path: Path,
    rows: Iterable[Row],
    corrupt: Mapping[str, str],
    meta: Meta,
    histograms: Iterable[tuple[str, int, Histogram]] = (),
) -> Index:
    """Write an index and open it; a temporary file is renamed at the end, so that no half-written index is seen."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_path(path) as temporary, closing(sqlite3.connect(temporary)) as connection, connection:
        connection.executescript(SCHEMA)
        connection.executemany("INSERT INTO units VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", map(_values, rows))
        activity = ((layer, channel, h.awake, h.low, h.high, json.dumps(h.counts)) for layer, channel, h in histograms)
        connection.executemany("INSERT INTO activity VALUES (?, ?, ?, ?, ?, ?)", activity)
        connection.executemany("INSERT INTO corrupt VALUES (?, ?)", ((text_path(p), r) for p, r in corrupt.items()))
        write_meta(connection, meta)
    return Index(path)


def write_meta(connection: sqlite3.Connection, meta: Meta) -> None:
    """Write the description of an index."""
    connection.executemany("INSERT INTO meta VALUES (?, ?)", ((k, json.dumps(v)) for k, v in meta.items()))


def _values(row: Row) -> tuple[object, ...]:
    region, box = (PATCH, row.box) if row.box else (IMAGE, (None,) * 4)
    unit = (row.layer, row.channel, row.side, region, row.rank)
    return (*unit, text_path(row.image), row.activation, *box, row.position)


def text_path(path: str) -> str | bytes:
    """Return a path for SQLite: as text, or as bytes where the file name is no valid Unicode."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return os.fsencode(path)
    return path


def _path(stored: str | bytes) -> str:
    return os.fsdecode(stored) if isinstance(stored, bytes) else stored
