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
# Bytes of sheets up to which the page embeds them; beyond, it shows the files beside it.
EMBED_BYTES = 48_000_000
CORRUPT_SHOWN = 200


@dataclass(frozen=True)
class UnitSheet:
    """A unit's contact sheet on the page, with its numbers and its histogram of activations."""

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
    """Write ``out/index.html``, the page of the units' sheets, and return its path.

    The page loads nothing from elsewhere: the sheets are inside it, or beside it where they are large.

    Args:
        index: the index that was mined.
        out: the folder of the page and of the sheets.
        units: (layer, channel) of the sheets.
        notes: words beside the names of units.
        kind: the noun for a unit, such as "concept".
        found: the units that answer to a query, shown above all others.
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
    """Yield the sheets one by one, so that memory holds few while the page is written."""
    for layer, channel in units:
        place = sheet_path(layer, channel)
        with Image.open(out / place) as image:
            size = image.size
        src = data_uri((out / place).read_bytes(), JPEG) if embedded else place
        patch = index.patches(layer, channel, 1)[0].activation if index.meta["patch"] else None
        note = notes.get((layer, channel), "")
        histogram = index.histogram(layer, channel)
        most = max(histogram.counts)
        bars = tuple((count / most) ** 0.5 for count in histogram.counts)  # the root keeps small counts visible
        largest = index.largest_activation(layer, channel)
        yield UnitSheet(
            *(layer, channel, largest, patch, src, size[0], size[1], note),
            *(histogram.awake, bars, histogram.low, histogram.high),
        )
