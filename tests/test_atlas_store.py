"""The file of an atlas: what is written comes back, one transaction per unit, and mistakes are told."""

from __future__ import annotations

import json
import math
import sqlite3
from contextlib import closing
from dataclasses import fields, replace
from pathlib import Path

import pytest

from tests.tiny import wandb_records
from vital_exp.atlases import store as stores
from vital_exp.atlases.dashboard import send_units
from vital_exp.atlases.store import (
    ClassRow,
    Entry,
    FacetRow,
    ImageRow,
    LayerRow,
    NeighbourRow,
    Store,
    UnitRow,
)
from vital_exp.errors import UsageError

LAYER = LayerRow("layer1", 0, "channel", 2, 8, 8, 21, ("layer2",))
UNIT = UnitRow("layer1", 1, "mined", name="stripe", clarity=0.5, histogram={"low": 0.0, "high": 2.0, "counts": [3, 1]})
FACETS = [FacetRow("layer1", 1, 0, 0.6, 0.4, 9, "pictures/layer1/1_f0.png"), FacetRow("layer1", 1, 1, 0.4)]
IMAGES = [
    ImageRow("layer1", 1, "strongest", 1, "a/x.png", 3.0, 0, "windows/1.webp", (1, 2, 3, 4)),
    ImageRow("layer1", 1, "weakest", 1, "a/y.png", -1.0),
]
NEIGHBOURS = [NeighbourRow("layer1", 1, "similar", 1, "layer1", 0, 0.9)]
CLASSES = [ClassRow("layer1", 1, "cat", 0.1), ClassRow("layer1", 1, "dog", 2.0)]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store.create(tmp_path / "atlas", {"network": "net", "seed": 0}, [LAYER])
    made.write(Entry(UNIT, FACETS, IMAGES, NEIGHBOURS, CLASSES))
    return made


def test_what_is_written_comes_back(store: Store) -> None:
    opened = Store.open(store.folder)
    assert opened.meta() == {"network": "net", "seed": 0}
    assert opened.layers() == [LAYER]
    assert opened.units("layer1") == [UNIT]
    assert opened.facets("layer1", 1) == FACETS
    assert opened.images() == IMAGES
    assert opened.neighbours("layer1", 1) == NEIGHBOURS
    assert opened.classes("layer1", 1) == CLASSES[::-1]  # the strongest first
    assert opened.classes("layer1", 0) == []


def test_the_tables_have_the_columns_of_the_rows(store: Store) -> None:
    with closing(sqlite3.connect(store.path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (stores.VERSION,)
        for kind, table in stores.TABLES.items():
            there = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            assert sorted(there) == sorted(stores.COLUMNS[kind])
            assert len(there) == len(fields(kind))


def test_a_unit_written_again_keeps_what_is_not_given(store: Store) -> None:
    store.write(Entry(replace(UNIT, status="done"), facets=FACETS[:1]))
    assert store.units() == [replace(UNIT, status="done")]
    assert store.facets() == FACETS[:1]
    assert store.images() == IMAGES
    store.update("layer1", {"map_x": {1: 0.25}, "map_y": {1: 0.5}})
    assert store.units() == [replace(UNIT, status="done", map_x=0.25, map_y=0.5)]
    store.write(Entry(UNIT))  # what is computed for the whole layer stays
    assert store.units() == [replace(UNIT, map_x=0.25, map_y=0.5)]
    with pytest.raises(ValueError, match="no column"):
        store.update("layer1", {"nonsense": {1: 0}})
    store.write_neighbours("layer1", range(2), [replace(NEIGHBOURS[0], value=0.5)])
    assert [row.value for row in store.neighbours()] == [0.5]


def test_a_unit_is_there_whole_or_not_at_all(store: Store) -> None:
    torn = ImageRow("layer1", 0, "strongest", 1, None, 1.0)  # type: ignore[arg-type]
    with pytest.raises(sqlite3.IntegrityError):
        store.write(Entry(UnitRow("layer1", 0, "done"), FACETS[:0], [torn]))
    assert store.statuses("layer1") == {1: "mined"}


def test_what_is_not_measured_is_null(store: Store) -> None:
    store.write(Entry(UnitRow("layer1", 0, "failed", "no gradient", mean=math.nan)))
    (unit,) = store.units("layer1", 0)
    assert (unit.error, unit.mean, unit.clarity) == ("no gradient", None, None)


def test_an_atlas_opened_again_keeps_its_units(store: Store) -> None:
    again = Store.create(store.folder, {"seed": 1})
    assert again.meta() == {"network": "net", "seed": 1}
    assert again.statuses("layer1") == {1: "mined"}


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^compare=.*: no atlas.sqlite there; vital-atlas writes one$"):
        Store.open(tmp_path, "compare")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"^hydra.run.dir=.*file: the folder cannot be written \(File exists\)$"):
        Store.create(tmp_path / "file", {})
    (tmp_path / stores.NAME).write_text("no database " * 100)
    with pytest.raises(UsageError, match=r"was not written by vital-atlas \(file is not a database\)$"):
        Store.open(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    with closing(sqlite3.connect(other / stores.NAME)) as connection:
        connection.execute("PRAGMA user_version = 7")
    with pytest.raises(UsageError, match=r"holds an atlas of another version \(7; this is 1\)$"):
        Store.open(other)


def test_the_table_of_units_is_an_artifact(store: Store) -> None:
    import wandb

    send_units(store, "project", offline=True)
    wandb.teardown()  # its process has then written everything
    (path,) = store.folder.glob("wandb/offline-run-*/run-*.wandb")
    records = list(wandb_records(path))
    (sent,) = [one.artifact for one in records if one.WhichOneof("record_type") == "artifact"]
    assert (sent.name, sent.type) == ("atlas-net", "atlas")
    files = {entry.path: Path(entry.local_path) for entry in sent.manifest.contents}
    assert set(files) == {"units.table.json", "atlas.sqlite"}
    table = json.loads(files["units.table.json"].read_text())
    (row,) = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert (row["layer"], row["unit"], row["name"], row["clarity"]) == ("layer1", 1, "stripe", 0.5)
