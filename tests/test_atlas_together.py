"""One atlas by several processes: ranks of one job, jobs of a sweep, the same command twice. The units are the same."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.processes import ROOT, finish, start
from tests.test_atlas import asked, place
from vital_exp.atlases import layer_run
from vital_exp.atlases.layer_run import LayerRun
from vital_exp.atlases.store import NAME
from vital_exp.atlases.turns import Claims, alone
from vital_exp.visualization.run import Visualization

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


def noted() -> None:
    """Let this process make two units at a time, and note which."""
    layer_run.__dict__["UNITS_AT_ONCE"] = 2
    make = LayerRun._make

    def _make(self: LayerRun, units: Sequence[int]) -> None:
        with Path("made.txt").open("a") as file:
            file.writelines(f"{os.getpid()} {self.part.layer} {unit}\n" for unit in units)
        make(self, units)
        time.sleep(0.5)

    LayerRun._make = _make  # type: ignore[method-assign]


def killed() -> None:
    """Let this process die with its second pair of units, after the first of their pictures."""
    noted()
    make, calls = Visualization._make, []

    def _make(self: Visualization, *given: Any) -> None:
        make(self, *given)
        calls.append(given)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    Visualization._make = _make  # type: ignore[assignment, method-assign]


def made_by(folder: Path) -> dict[str, list[str]]:
    """Return the units that each process has begun, by its id."""
    found: dict[str, list[str]] = {}
    for line in (folder / "made.txt").read_text().splitlines():
        process, unit = line.split(" ", 1)
        found.setdefault(process, []).append(unit)
    return found


@pytest.mark.slow
def test_two_jobs_share_the_units_of_one_layer(place: Path, single: Path, workplace: Path) -> None:
    jobs = [start(workplace, *words(place, "shared"), command="atlas", before=noted) for _ in range(2)]
    ended = [finish(job, workplace) for job in jobs]
    assert [code for code, _ in ended] == [0, 0], ended
    made = made_by(workplace)
    assert sorted(unit for units in made.values() for unit in units) == sorted(
        [f"conv1 {unit}" for unit in range(4)] + [f"layer1.0 {unit}" for unit in range(8)]
    )  # no unit twice
    assert [sum(unit.startswith("layer1.0") for unit in units) > 0 for units in made.values()] == [True, True]
    check_same(workplace / "shared", single)


@pytest.mark.slow
def test_a_job_makes_the_units_of_one_that_dies(place: Path, single: Path, workplace: Path) -> None:
    dies = start(workplace, *words(place, "left"), command="atlas", before=killed)
    stays = start(workplace, *words(place, "left"), command="atlas", before=noted)
    assert finish(dies, workplace)[0] == -signal.SIGKILL
    code, told = finish(stays, workplace)
    assert code == 0, told
    first = set(made_by(workplace)[str(dies.pid)])
    assert len(first) == 4
    assert len(first & set(made_by(workplace)[str(stays.pid)])) == 2  # those that were finished stay as they are
    check_same(workplace / "left", single)


OTHER = """
import os, sys
from vital_exp.runs.locks import hold_byte
handle = os.open(sys.argv[1], os.O_RDWR)
print([hold_byte(handle, unit) for unit in range(4)], flush=True)
sys.stdin.read()
"""


def test_a_unit_is_taken_by_one_process_until_it_ends(tmp_path: Path) -> None:
    claims = Claims(tmp_path, "a")
    assert claims.take([0, 2]) == [0, 2]
    words = [sys.executable, "-c", OTHER, str(tmp_path / ".locks" / "units_a")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "[False, True, False, True]\n"
        assert claims.take([1, 2, 3]) == [2]
        other.kill()
        other.wait()
        assert claims.take([1, 3]) == [1, 3]
    claims.close()


def test_jobs_share_a_layer_but_for_one_that_refreshes_it(tmp_path: Path) -> None:
    with alone(tmp_path, "layer a", exclusive=False), alone(tmp_path, "layer a", exclusive=False) as both:
        assert both
        with alone(tmp_path, "layer a", wait=False) as held:
            assert not held
    with alone(tmp_path, "layer a", wait=False) as held:
        assert held
