"""The page of a mining: index.html, the contact sheets of all units."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from vital_exp.data_uris import JPEG, data_uri
from vital_exp.mining.index import Index
from vital_exp.mining.sheets import sheet_path
from vital_exp.references.decoding import printable
from vital_exp.reporting.found import Found
from vital_exp.reporting.pages import environment
from vital_exp.whole_files import write_whole

NAME = "index.html"
# Bytes of sheets that go into the page; with more the page shows the files beside it.
EMBED_BYTES = 48_000_000
CORRUPT_SHOWN = 200


@dataclass(frozen=True)
class UnitSheet:
    """A unit's contact sheet, and what the page says beside it."""

    layer: str
    channel: int
    largest: float
    patch: float | None
    src: str
    width: int
    height: int
    note: str
    awake: float
    bars: tuple[float, ...]
    low: float
    high: float


def write_page(
    index: Index,
    out: Path,
    units: Sequence[tuple[str, int]],
    notes: Mapping[tuple[str, int], str] | None = None,
    kind: str = "unit",
    found: Found | None = None,
) -> Path:
    """Write ``out/index.html`` of the units' sheets and return its path.

    Nothing is fetched from anywhere: the sheets are inside the page, or beside it when they are many. ``notes`` are
    shown beside the names of units; ``kind`` is what a unit is called, such as "concept"; ``found`` are the units that
    were looked for, shown above all others.
    """
    sizes = (os.path.getsize(out / sheet_path(*unit)) for unit in units)
    embedded = sum(sizes) <= EMBED_BYTES
    corrupt = [(printable(path), reason) for path, reason in list(index.corrupt.items())[:CORRUPT_SHOWN]]
    chunks = (
        environment()
        .get_template("mining.html")
        .generate(
            meta=index.meta,
            kind=kind,
            cards=_cards(index, out, units, embedded, notes or {}),
            count=len(units),
            mined=len(index.units()),
            corrupt=corrupt,
            corrupt_count=len(index.corrupt),
            embedded=embedded,
            found=found,
        )
    )
    return write_whole(out / NAME, chunks)


def _cards(
    index: Index, out: Path, units: Sequence[tuple[str, int]], embedded: bool, notes: Mapping[tuple[str, int], str]
) -> Iterator[UnitSheet]:
    """Yield the sheets one by one: the page is written while they are read."""
    for layer, channel in units:
        place = sheet_path(layer, channel)
        with Image.open(out / place) as image:
            size = image.size
        src = data_uri((out / place).read_bytes(), JPEG) if embedded else place
        patch = index.patches(layer, channel, 1)[0].activation if index.meta["patch"] else None
        note = notes.get((layer, channel), "")
        told = index.histogram(layer, channel)
        most = max(told.counts)
        bars = tuple((count / most) ** 0.5 for count in told.counts)  # a root, so that few images are seen beside many
        largest = index.largest_activation(layer, channel)
        yield UnitSheet(
            layer, channel, largest, patch, src, size[0], size[1], note, told.awake, bars, told.low, told.high
        )
