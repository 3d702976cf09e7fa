"""The result of mining: one sqlite file that says which images and patches drive which unit."""

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
from vital_exp.notebook_html import ROWS_SHOWN, lines, table
from vital_exp.references.facets import Facet
from vital_exp.targets.autoencoder import SparseAutoencoder
from vital_exp.whole_files import whole_path

NAME = "index.sqlite"
KEY = "references.index"
WAIT = 60.0  # seconds for another process that writes facets
TOP, BOTTOM = "top", "bottom"
IMAGE, PATCH = "image", "patch"

logger = logging.getLogger(__name__)

SCHEMA = """
-- One row per unit, side, region and rank.
CREATE TABLE units (
  layer TEXT NOT NULL,       -- module name
  channel INTEGER NOT NULL,  -- of the layer, from 0; the number of the direction where meta.layers says directions
  side TEXT NOT NULL,        -- top: drives the unit most; bottom: least
  region TEXT NOT NULL,      -- image: whole images; patch: windows of the top images, at most one of each
  rank INTEGER NOT NULL,     -- from 1
  image TEXT NOT NULL,       -- path relative to meta.folder, with / (bytes where it is no text)
  activation REAL NOT NULL,  -- the unit's, pooled over positions; a patch's is that of the patch enlarged to the input
  x0 INTEGER, y0 INTEGER, x1 INTEGER, y1 INTEGER,
      -- box of a patch, null for whole images: px of the picture the network sees (resized and cropped as in
      -- meta.preprocessing), x to the right, y down, x1 and y1 outside
  position INTEGER,          -- of an image: where in the layer's map (meta.maps) the unit is strongest, row by row
  PRIMARY KEY (layer, channel, side, region, rank)
) WITHOUT ROWID;
-- The facets of units that were found since, the clearest first.
CREATE TABLE facets (
  layer TEXT NOT NULL, channel INTEGER NOT NULL,
  settings TEXT NOT NULL,    -- JSON: region, window, candidates, count, facets, seed, embedding
  facet INTEGER NOT NULL,    -- from 0
  share REAL NOT NULL,       -- of the candidates
  coherence REAL NOT NULL,   -- mean pairwise cosine of the members
  members TEXT NOT NULL,     -- JSON: their places among the candidates, rank - 1, the nearest to the centre first
  PRIMARY KEY (layer, channel, settings, facet)
) WITHOUT ROWID;
-- How all images drive each unit.
CREATE TABLE activity (
  layer TEXT NOT NULL, channel INTEGER NOT NULL,
  awake REAL NOT NULL,       -- share of the images whose activation is above 0
  low REAL NOT NULL, high REAL NOT NULL,  -- the least and the largest of a sample of the images
  counts TEXT NOT NULL,      -- JSON: how many of these are in each of some bins of equal width from low to high
  PRIMARY KEY (layer, channel)
) WITHOUT ROWID;
CREATE TABLE corrupt (image TEXT NOT NULL, reason TEXT NOT NULL);     -- files that could not be read
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;  -- what the index is of; values are JSON
"""


@dataclass(frozen=True)
class Row:
    """One image, or patch of an image, of a unit.

    Attributes:
        layer, channel: the unit; where directions were mined ``channel`` is the number of one.
        rank: from 1.
        side: ``"top"`` or ``"bottom"``.
        image: path relative to the folder.
        activation: the unit's for this image or patch, pooled over positions.
        box: (x0, y0, x1, y1) of a patch or window in px of the picture the network sees, x1 and y1 outside; None: all
            of it.
        position: where in the layer's map the unit is strongest, row by row; None for a patch.
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
    """A finished index; every question opens the file anew, so nothing stays open.

    Attributes:
        path: the sqlite file.
        meta: what it is of, see :func:`vital_exp.mining.meta.describe`.
        corrupt: reason by path, of the files that could not be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.meta: dict[str, Any] = {key: json.loads(value) for key, value in self._ask("SELECT key, value FROM meta")}
        self.corrupt: dict[str, str] = {
            _path(image): reason for image, reason in self._ask("SELECT image, reason FROM corrupt ORDER BY rowid")
        }

    def __repr__(self) -> str:
        """What it is of, in a line."""
        layers = ", ".join(one["layer"] for one in self.meta["layers"])
        units = f"{len(self.units())} units of {layers} in {self.meta['network']}"
        return f"Index({units}, {self.meta['images']} images, {self.path})"

    def _repr_html_(self) -> str:
        told = [(layer, channel, self.histogram(layer, channel)) for layer, channel in self.units()[: ROWS_SHOWN + 1]]
        rows = [
            {
                "layer": layer,
                "unit": channel,
                "largest activation": self.largest_activation(layer, channel),
                "images that wake it": f"{100 * histogram.awake:.3g}%",
                "strongest image": self.top(layer, channel, 1)[0].image,
            }
            for layer, channel, histogram in told
        ]
        return lines([repr(self)]) + table(rows[:ROWS_SHOWN])

    @classmethod
    def open(cls, path: str | Path, key: str = KEY) -> Index:
        """Open an index file, or the one in a folder.

        Raises:
            UsageError: there is none, or the file is none, or one of another version.
        """
        place = Path(str(path)).expanduser()
        place = place / NAME if place.is_dir() else place
        if not place.is_file():
            raise UsageError(key, path, f"no {NAME} there; vital-mine writes one when it is finished")
        try:
            index = cls(place.resolve())
        except (sqlite3.Error, ValueError) as error:
            raise UsageError(key, path, f"is no index of vital-mine ({error})") from None
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
        """Return the images that drive a unit least, lowest first; a feature of an autoencoder has none."""
        return self._rows(layer, channel, BOTTOM, IMAGE, k)

    def patches(self, layer: str, channel: int, k: int | None = None) -> list[Row]:
        """Return the strongest patches of the top images, at most one of each; see :meth:`top`."""
        return self._rows(layer, channel, TOP, PATCH, k)

    def windows(self, layer: str, channel: int, k: int | None = None, window: str | float = AUTO) -> list[Row]:
        """Return the images that drive a unit most as windows around its strongest position; see :meth:`top`.

        Args:
            layer, channel, k: see :meth:`top`.
            window: side of the windows: the layer's effective receptive field (``"auto"``), a share of the shorter side
                of the network's input in (0, 1], or px. A position without a place, a class token's, has no box.

        Raises:
            UsageError: the unit was not mined; a window larger than the input.
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
            UsageError: a window larger than the input, or none where the receptive field could not be measured.
        """
        return window_side(window, self.meta["fields"][layer], self.input_size)

    def facets(self, layer: str, channel: int, settings: Mapping[str, object]) -> list[Facet]:
        """Return the facets of a unit that were found by these settings, the clearest first; none where none were."""
        found = self._ask(
            "SELECT share, coherence, members FROM facets WHERE layer = ? AND channel = ? AND settings = ?"
            " ORDER BY facet",
            (layer, channel, json.dumps(settings, sort_keys=True)),
        )
        return [Facet(share, coherence, tuple(json.loads(members))) for share, coherence, members in found]

    def keep_facets(self, layer: str, channel: int, settings: Mapping[str, object], facets: Sequence[Facet]) -> None:
        """Write the facets of a unit into the index, unless the file cannot be written."""
        text = json.dumps(settings, sort_keys=True)
        rows = [
            (layer, channel, text, number, one.share, one.coherence, json.dumps(one.members))
            for number, one in enumerate(facets)
        ]
        try:
            with closing(sqlite3.connect(self.path, timeout=WAIT)) as connection, connection:
                connection.executemany("INSERT OR REPLACE INTO facets VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
        except sqlite3.OperationalError as error:  # somebody else's index: its facets are found anew each time
            logger.info("%s: facets are not kept there (%s)", self.path, error)

    def largest_activation(self, layer: str, channel: int) -> float:
        """Return the unit's activation by the image that drives it most."""
        return self.top(layer, channel, 1)[0].activation

    def histogram(self, layer: str, channel: int) -> Histogram:
        """Return how all images drive a unit.

        Raises:
            UsageError: the unit was not mined.
        """
        question = "SELECT awake, low, high, counts FROM activity WHERE layer = ? AND channel = ?"
        found = self._ask(question, (layer, channel))
        if not found:
            self._explain(layer, channel, IMAGE)
        awake, low, high, counts = found[0]
        return Histogram(awake, low, high, json.loads(counts))

    def units(self) -> list[tuple[str, int]]:
        """Return (layer, channel) of every unit, layers in the order they were asked for."""
        order = {one["layer"]: place for place, one in enumerate(self.meta["layers"])}
        found = self._ask("SELECT DISTINCT layer, channel FROM units")
        return sorted(found, key=lambda unit: (order[unit[0]], unit[1]))

    def check(self, network: VisionNetwork, folder: ImageFolder, key: str = KEY) -> None:
        """Make sure that the index is of this network and of these images as they are now.

        Raises:
            UsageError: says which differs.
        """
        differs = network_difference(self.meta, identity_of(network))
        differs = differs or images_difference(self.meta, describe_images(folder))
        if differs:
            raise UsageError(key, self.path, f"was mined with {differs}")

    def check_directions(self, layer: str, directions: Tensor | SparseAutoencoder | None, key: str = KEY) -> None:
        """Make sure that these directions of a layer were mined; None: its channels.

        Raises:
            UsageError: the index is of something else.
        """
        there = next((one["directions"] for one in self.meta["layers"] if one["layer"] == layer), None)
        now = None if directions is None else directions_hash(directions)
        if there != now:
            problem = f"was mined of other directions of {layer} ({there or 'its channels'}; now {now or 'channels'})"
            raise UsageError(key, self.path, problem)

    def _rows(self, layer: str, channel: int, side: str, region: str, k: int | None) -> list[Row]:
        rows = self._ask(
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
        """Raise the mistake behind an empty answer."""
        mined = {one["layer"]: one for one in self.meta["layers"]}
        if layer not in mined:
            raise UsageError("layer", layer, f"was not mined; {self.path} has {', '.join(mined)}", mined)
        if region == PATCH and self.meta["patch"] is None:
            raise UsageError(KEY, self.path, "was mined without patches; references.region=image takes whole images")
        awake = self._ask("SELECT awake FROM activity WHERE layer = ? AND channel = ?", (layer, channel))
        if awake and awake[0][0] == 0:
            raise UsageError(
                "channel", channel, f"of {layer}: no image wakes this feature, whose activation is never above 0"
            )
        what = "directions" if mined[layer]["directions"] else "channels"
        raise UsageError("channel", channel, f"of {layer} the {what} {mined[layer]['channels']} were mined")

    def _ask(self, question: str, values: tuple[object, ...] = ()) -> list[Any]:
        with closing(sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            return connection.execute(question, values).fetchall()


def write_index(
    path: Path,
    rows: Iterable[Row],
    corrupt: Mapping[str, str],
    meta: Meta,
    histograms: Iterable[tuple[str, int, Histogram]] = (),
) -> Index:
    """Write an index whole: beside its place, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_path(path) as temporary, closing(sqlite3.connect(temporary)) as connection, connection:
        connection.executescript(SCHEMA)
        connection.executemany("INSERT INTO units VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", map(_values, rows))
        every = ((layer, channel, h.awake, h.low, h.high, json.dumps(h.counts)) for layer, channel, h in histograms)
        connection.executemany("INSERT INTO activity VALUES (?, ?, ?, ?, ?, ?)", every)
        connection.executemany("INSERT INTO corrupt VALUES (?, ?)", ((_text(p), r) for p, r in corrupt.items()))
        connection.executemany("INSERT INTO meta VALUES (?, ?)", ((k, json.dumps(v)) for k, v in meta.items()))
    return Index(path)


def _values(row: Row) -> tuple[object, ...]:
    region, box = (PATCH, row.box) if row.box else (IMAGE, (None,) * 4)
    unit = (row.layer, row.channel, row.side, region, row.rank)
    return (*unit, _text(row.image), row.activation, *box, row.position)


def _text(path: str) -> str | bytes:
    """Return a path as sqlite can hold it: file names need not be text."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return os.fsencode(path)
    return path


def _path(stored: str | bytes) -> str:
    return os.fsdecode(stored) if isinstance(stored, bytes) else stored
