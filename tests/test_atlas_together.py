"""One atlas by several processes: ranks of one job, jobs of a sweep, the same command twice. The units are the same."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.processes import finish, start
from tests.test_atlas import asked, place
from vital_exp.atlases.store import NAME
from vital_exp.atlases.turns import alone, free_first

__all__ = ["place"]  # a fixture

LAYERS = ("conv1", "layer1.0")
# A picture by itself has the same bits in every process.
ALONE = ("judge=null", "overrides=['batch_size=1']", "facets=1")


def words(place: Path, folder: str, *more: str) -> Sequence[str]:
    layers = () if any(one.startswith("layers=") for one in more) else (f"layers=[{','.join(LAYERS)}]",)
    return asked(place, *layers, *ALONE, f"hydra.run.dir={folder}", *more)


def tables(folder: Path) -> dict[str, list[Any]]:
    """All that an atlas says of its units, but for the time that it took."""
    questions = {
        **{name: f"SELECT * FROM {name} ORDER BY 1, 2, 3, 4" for name in ("units", "images", "neighbours", "classes")},
        "facets": "SELECT layer, unit, facet, picture, activation FROM facets ORDER BY layer, unit, facet",
    }
    with closing(sqlite3.connect(folder / NAME)) as connection:
        return {name: connection.execute(question).fetchall() for name, question in questions.items()}


def pictures(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob("pictures/*/images/*.png")}


@pytest.fixture(scope="module")
def single(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The atlas of one process: a fresh one, as those that it is compared with."""
    folder = tmp_path_factory.mktemp("single")
    code, told = finish(start(folder, *words(place, "atlas"), command="atlas"), folder)
    assert code == 0, told
    return folder / "atlas"


def check_same(folder: Path, single: Path) -> None:
    assert tables(folder) == tables(single)
    assert pictures(folder) == pictures(single)
    assert len(pictures(single)) >= 12


@pytest.mark.slow
def test_two_ranks_make_the_units_of_one(place: Path, single: Path, workplace: Path) -> None:
    ranks = start(workplace, *words(place, "two", "trainer.devices=2"), command="atlas")
    code, told = finish(ranks, workplace)
    assert code == 0, told
    assert told.count("atlas: ") == 1
    check_same(workplace / "two", single)


@pytest.mark.slow
def test_the_same_command_twice_at_once_makes_one_atlas(place: Path, single: Path, workplace: Path) -> None:
    jobs = [start(workplace, *words(place, "both"), command="atlas") for _ in range(2)]
    ended = [finish(job, workplace) for job in jobs]
    assert [code for code, _ in ended] == [0, 0], ended
    check_same(workplace / "both", single)


@pytest.mark.slow
def test_the_jobs_of_a_sweep_make_one_atlas(place: Path, single: Path, workplace: Path) -> None:
    given = [one for one in words(place, "none", "layers=[conv1],[layer1.0]") if not one.startswith("hydra.run.dir")]
    code, told = finish(
        start(workplace, "-m", "hydra.sweep.dir=swept", "hydra.sweep.subdir=.", *given, command="atlas"), workplace
    )
    assert code == 0, told
    check_same(workplace / "swept", single)


def test_layers_that_others_make_come_last(tmp_path: Path) -> None:
    with alone(tmp_path, "layer a"):
        found = free_first(tmp_path, ["a", "b", "c"])
        assert next(found) == "b"
        with alone(tmp_path, "layer b", wait=False) as held:
            assert not held
        assert next(found) == "c"
    assert list(found) == ["a"]
    with alone(tmp_path, "layer a", wait=False) as held:
        assert held
