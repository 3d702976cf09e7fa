"""vital-mine killed or interrupted in a real process: the same command goes on to the same index."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tests.processes import finish, start, wait_for
from tests.test_mine_command import command
from tests.test_mining import all_rows, count_images
from tests.tiny import image_folder
from vital_exp.mining import index as indices
from vital_exp.mining import state as states
from vital_exp.mining.index import Index
from vital_exp.mining.interruption import held_back
from vital_exp.mining.units import Units

IMAGES, WINDOWS = 24, 4  # of 16 px in 32 px, side by side
INTERRUPTED = 130
PAUSE = 0.03  # seconds per forward pass, so that there is a middle
MINING = (
    *("model=python", "model.factory=tests.tiny:tiny_net", "model.size=32", "images=photos", "layers=[bn1,layer1]"),
    *("k=4", "patch.size=16", "patch.overlap=0", "batch_size=2", "sheets=false", "progress=false"),
    "trainer.accelerator=cpu",
)


@pytest.fixture
def place(workplace: Path) -> Path:
    image_folder(workplace / "photos", ["a", "b"], count=IMAGES // 2, corrupt=1)
    return workplace


def slowly() -> None:
    """Make the networks of this process, which leads a group of its own, slow."""
    os.setsid()
    original = Units.maps

    def maps(self: Units, images: Tensor) -> dict[str, Tensor]:
        Path("started").touch()
        time.sleep(PAUSE)
        return original(self, images)

    Units.maps = maps  # type: ignore[method-assign]


def progress(folder: Path) -> dict[str, Any]:
    """How far a saved state is; nothing where there is none."""
    try:
        with safe_open(folder / states.NAME, "pt") as file:
            found: dict[str, Any] = json.loads(file.metadata()["progress"])
            return found
    except (OSError, SafetensorError):
        return {"phase": None, "position": 0}


def check_same(place: Path) -> None:
    """Make sure that the index is that of a mining that nothing disturbed."""
    assert command(*MINING, "workers=0", "hydra.run.dir=whole") == 0
    made, whole = (Index.open(place / name) for name in ("run", "whole"))
    assert all_rows(made) == all_rows(whole)
    assert made.corrupt == whole.corrupt
    assert made.meta == whole.meta
    assert not (place / "run" / states.NAME).exists()


@pytest.mark.slow
def test_a_mining_that_is_killed_in_both_passes_ends_as_if_it_had_not_been(place: Path) -> None:
    for phase in (states.IMAGES_PASS, states.PATCHES_PASS):
        process = start(place, *MINING, "workers=0", "save_every=2", "hydra.run.dir=run", before=slowly, command="mine")
        wait_for(lambda phase=phase: (now := progress(place / "run"))["phase"] == phase and now["position"] > 2)
        process.kill()
        process.join()
        assert not (place / "run" / indices.NAME).exists()
    assert command(*MINING, "workers=0", "hydra.run.dir=run") == 0
    check_same(place)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_mining_saves_what_is_done(
    number: signal.Signals, workers: int, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = (*MINING, "save_every=100000", "hydra.run.dir=run")
    process = start(place, *run, f"workers={workers}", before=slowly, command="mine")
    wait_for((place / "started").is_file)
    time.sleep(4 * PAUSE)
    assert process.pid
    os.killpg(process.pid, number)  # as a terminal and a scheduler do: the workers too
    code, told = finish(process, place)
    assert code == INTERRUPTED, told
    assert told.splitlines()[-1] == f"vital-mine: interrupted; the same command with hydra.run.dir={place}/run goes on"
    assert "Traceback" not in told
    done = progress(place / "run")
    assert (done["phase"], done["position"] > 0) == (states.IMAGES_PASS, True)
    assert not (place / "run" / indices.NAME).exists()
    shown = count_images(monkeypatch)
    assert command(*run, "workers=0") == 0
    read = done["position"] - len(done["corrupt"])
    assert sum(shown) <= IMAGES - read + IMAGES * WINDOWS  # what was done is not done again
    check_same(place)


def test_a_signal_waits_for_the_end_of_the_block() -> None:
    done = []

    def block() -> None:
        with held_back():
            os.kill(os.getpid(), signal.SIGINT)
            done.append("end of the block")
        done.append("after it")

    with pytest.raises(KeyboardInterrupt):
        block()
    assert done == ["end of the block"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_threads_leave_signals_alone() -> None:
    done = []

    def block() -> None:
        with held_back():
            done.append("block")

    thread = threading.Thread(target=block)
    thread.start()
    thread.join()
    assert done == ["block"]
