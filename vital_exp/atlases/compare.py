"""Compares two atlases: matches the units that answer to the same images, those that changed most first."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vital_exp.atlases.compare_page import NAME, write_comparison
from vital_exp.atlases.profiles import UNITS_AT_ONCE, Profile, most_alike
from vital_exp.atlases.store import KEY, Store
from vital_exp.errors import UsageError
from vital_exp.whole_files import whole_path

COMPARE = "compare"
SAME, ASSIGNMENT, BEST = "same numbers", "one to one", "best match"
LARGEST = 4096  # units of a layer that are matched one to one: the matrix of their correlations is held
STAY = 0.5  # if a larger share of units is most like the unit of the same number, all keep their numbers
SHOWN = 5  # units in the printed line

SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;  -- values are JSON
CREATE TABLE matches (
  layer TEXT NOT NULL, unit INTEGER NOT NULL,  -- of the first atlas
  other_layer TEXT, other_unit INTEGER,        -- of the second; null where no unit is left
  correlation REAL,                            -- of their activations over the images
  change REAL,                                 -- 1 - correlation
  rank INTEGER NOT NULL,                       -- 1: changed most, of all layers
  PRIMARY KEY (layer, unit)
) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Match:
    """A unit of one atlas and the unit of the other atlas that it is matched with.

    Attributes:
        layer, unit: of the first atlas.
        other_layer, other_unit: of the second; None if all its units are matched with others.
        correlation: of their activations over the images.
    """

    layer: str
    unit: int
    other_layer: str | None
    other_unit: int | None
    correlation: float | None

    @property
    def change(self) -> float | None:
        """1 - correlation: 0 for a unit that answers to the images as before."""
        return None if self.correlation is None else 1 - self.correlation


@dataclass(frozen=True)
class Comparison:
    """What a comparison found.

    Attributes:
        matches: the largest change first.
        matching: how units were matched, by layer.
        page: the page that shows the pairs.
    """

    matches: Sequence[Match]
    matching: dict[str, str]
    page: Path

    def __str__(self) -> str:
        """Return the lines that the terminal shows."""
        most = [match for match in self.matches if match.correlation is not None][:SHOWN]
        named = ", ".join(f"{match.layer}:{match.unit} (correlation {match.correlation:.2f})" for match in most)
        ways = ", ".join(f"{layer}: {how}" for layer, how in self.matching.items())
        return f"matched: {ways}\nchanged most: {named}\ncompared: {self.page.parent / NAME}"


def compare(a: str | Path, b: str | Path, out: Path) -> Comparison:
    """Match the units of two atlases over the same images, and write compare.sqlite and its page.

    Layers of the same name are compared. If no name is shared, layers are compared in their order.

    Args:
        a: the folder of an atlas, before a change.
        b: the folder of the other atlas, after the change.
        out: where to write.

    Raises:
        UsageError: no atlas there, atlases of other images, no layers to compare, or a folder that cannot be written.
    """
    before, after = (Store.open(place, COMPARE) for place in (a, b))
    _check_images(before, after)
    found: list[Match] = []
    matching = {}
    for layer, other in _layers(before, after):
        own, profiles = (Profile.open(store.folder, name, COMPARE) for store, name in ((before, layer), (after, other)))
        matching[layer], pairs = match_units(own, profiles)
        shown = {row.unit for row in before.units(layer)}
        found += [
            Match(layer, unit, other if at is not None else None, at, value)
            for unit, (at, value) in enumerate(pairs)
            if unit in shown
        ]
    found.sort(key=lambda match: -1.0 if match.change is None else -match.change - 1)
    meta = {"a": str(before.folder.resolve()), "b": str(after.folder.resolve()), "matching": matching}
    _write(out, found, meta)
    return Comparison(found, matching, write_comparison(out))


def _check_images(before: Store, after: Store) -> None:
    ours, theirs = (store.meta().get("mined") for store in (before, after))
    if ours is None or theirs is None:
        empty = before if ours is None else after
        raise UsageError(COMPARE, empty.folder, "this atlas is not mined yet")
    if ours["images"] != theirs["images"] or ours["fingerprint"] != theirs["fingerprint"]:
        problem = f"atlases of the same images are compared: {ours['folder']} and {theirs['folder']}"
        raise UsageError(COMPARE, [str(before.folder), str(after.folder)], problem)


def _layers(before: Store, after: Store) -> list[tuple[str, str]]:
    ours, theirs = ([row.layer for row in store.layers()] for store in (before, after))
    same = [(layer, layer) for layer in ours if layer in theirs]
    if same:
        return same
    if len(ours) != len(theirs):
        problem = f"no layer of the same name, and not as many layers: {', '.join(ours)}; {', '.join(theirs)}"
        raise UsageError(COMPARE, [str(before.folder), str(after.folder)], problem)
    return list(zip(ours, theirs, strict=True))


def match_units(own: Profile, other: Profile) -> tuple[str, list[tuple[int | None, float | None]]]:
    """Match each unit with one of another layer by the correlation of activations over the same images.

    Where more than half of the units are most like the unit of their own number, all keep their numbers: fine-tuning
    leaves units in their places, and a unit that has changed must not be matched with another. Else the sum of all
    correlations is the largest that one-to-one matching can have (the assignment problem, Kuhn 1955). In layers of more
    than ``LARGEST`` units each is matched with the unit most like it.

    Returns:
        How they are matched, and for each unit the other's number and the correlation. A unit that is the same for all
        images has correlation 0 with every unit.
    """
    own, other = _shared(own, other)
    if max(len(own), len(other)) > LARGEST:
        values, numbers = most_alike(own, other, 1)
        return BEST, [(int(at), float(value)) for at, value in zip(numbers[:, 0], values[:, 0], strict=True)]
    from scipy.optimize import linear_sum_assignment

    correlations = _correlations(own, other).double().numpy()  # (U, U')
    if len(own) == len(other) and (correlations.argmax(axis=1) == np.arange(len(own))).mean() > STAY:
        return SAME, [(unit, float(correlations[unit, unit])) for unit in range(len(own))]
    rows, columns = linear_sum_assignment(correlations, maximize=True)
    found: list[tuple[int | None, float | None]] = [(None, None)] * len(own)
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        found[row] = column, float(correlations[row, column])
    return ASSIGNMENT, found


def _shared(own: Profile, other: Profile) -> tuple[Profile, Profile]:
    """Return both over the images that both could read."""
    rows = np.intersect1d(own.rows, other.rows)
    return Profile(own.values, rows), Profile(other.values, rows)


def _correlations(own: Profile, other: Profile) -> Tensor:
    right = torch.cat(list(_blocks(other)), dim=1)
    return torch.cat([block.T @ right for block in _blocks(own)])


def _blocks(profile: Profile) -> Iterator[Tensor]:
    for start in range(0, len(profile), UNITS_AT_ONCE):
        yield profile.centred(start, start + UNITS_AT_ONCE)


def _write(out: Path, matches: Sequence[Match], meta: dict[str, Any]) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        with whole_path(out / NAME) as temporary, closing(sqlite3.connect(temporary)) as connection, connection:
            connection.executescript(SCHEMA)
            rows = [
                (one.layer, one.unit, one.other_layer, one.other_unit, one.correlation, one.change, rank)
                for rank, one in enumerate(matches, start=1)
            ]
            connection.executemany("INSERT INTO matches VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
            values = [(key, json.dumps(value)) for key, value in meta.items()]
            connection.executemany("INSERT INTO meta VALUES (?, ?)", values)
    except OSError as error:
        raise UsageError(KEY, out, f"the folder cannot be written ({error.strerror})") from error
