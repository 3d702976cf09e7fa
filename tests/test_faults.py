"""Faults, each in a real process: nothing finished is lost or made twice, and the same command goes on."""

from __future__ import annotations

import ctypes
import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from PIL import Image, ImageChops

from tests.processes import finish, start, wait_for
from tests.test_ranks import check_whole, finished, pictures, run, workplace
from tests.tiny import command
from vital_exp.runs.checkpoints import CheckpointWarning

pytestmark = pytest.mark.slow

__all__ = ["workplace"]  # a fixture
KILLS = 5
MISTAKE, SOME_FAILED, INTERRUPTED = 2, 3, 130
NEW_MOUNTS, NEW_USER = 0x00020000, 0x10000000  # CLONE_NEWNS, CLONE_NEWUSER of sched.h
READ_ONLY, REMOUNT, PRIVATE_TREE = 1, 32, (1 << 18) | (1 << 14)  # MS_ flags of mount.h


def test_a_run_that_is_killed_at_random_moments_ends_as_if_it_had_not_been(workplace: Path) -> None:
    arguments = run("target.index=0-3", "steps=150", "checkpoint_every=10")
    moments = random.Random(0)
    folder = workplace / "killed"
    kills = 0
    while kills < KILLS:
        process = start(workplace, *arguments, "hydra.run.dir=killed")
        time.sleep(moments.uniform(0.5, 3))
        process.kill()
        process.join()
        kills += 1
        if (folder / "results.jsonl").is_file():
            for picture in finished_so_far(folder):
                assert (folder / "images" / f"{picture}.png").is_file()
    assert command(*arguments, "hydra.run.dir=killed") == 0
    assert command(*arguments, "hydra.run.dir=whole") == 0
    check_whole(folder, 4, 150)
    assert pictures(folder) == pictures(workplace / "whole")


def finished_so_far(folder: Path) -> list[str]:
    """The targets with a whole line; a kill may tear the last one."""
    lines = (folder / "results.jsonl").read_text().splitlines(keepends=True)
    return [json.loads(line)["target"] for line in lines if line.endswith("\n")]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_run_saves_and_a_damaged_checkpoint_gives_way_to_the_one_before(
    number: signal.Signals, workplace: Path
) -> None:
    arguments = run("target.index=0", "steps=200", "checkpoint_every=20")
    process = start(workplace, *arguments, "hydra.run.dir=run")
    checkpoints = workplace / "run" / "checkpoints"
    wait_for((checkpoints / "class-0.previous.ckpt").is_file)
    assert process.pid
    os.kill(process.pid, number)
    code, told = finish(process, workplace)
    assert code == INTERRUPTED
    assert told.splitlines()[-1].endswith(f"interrupted; the same command with hydra.run.dir={workplace}/run goes on")
    latest = checkpoints / "class-0.ckpt"
    content = bytearray(latest.read_bytes())
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    latest.write_bytes(content)
    with pytest.warns(CheckpointWarning, match="the one before it is used"):
        assert command(*arguments, "hydra.run.dir=run") == 0
    assert command(*arguments, "hydra.run.dir=whole") == 0
    assert pictures(workplace / "run") == pictures(workplace / "whole")
    check_whole(workplace / "run", 1, 200)


def _on_a_small_disk() -> None:
    """Put a file system of few bytes over the folder "small", in this process only."""
    libc = ctypes.CDLL(None, use_errno=True)

    def call(name: str, *arguments: object) -> None:
        if getattr(libc, name)(*arguments) != 0:
            print("no namespace", flush=True)
            os._exit(77)

    outer = (os.getuid(), os.getgid())
    call("unshare", NEW_MOUNTS | NEW_USER)
    for what, number in zip(("uid", "gid"), outer, strict=True):
        if what == "gid":
            Path("/proc/self/setgroups").write_text("deny")
        Path(f"/proc/self/{what}_map").write_text(f"0 {number} 1")
    call("mount", b"none", b"/", None, PRIVATE_TREE, None)
    call("mount", b"tmpfs", b"small", b"tmpfs", 0, b"size=96k")
    arguments = [argument.replace("<photos>", str(Path("photos").resolve())) for argument in os.environ["RUN"].split()]
    for size in (b"size=96k", b"size=8m"):
        call("mount", b"tmpfs", b"small", b"tmpfs", REMOUNT, size)
        print("code", command(*arguments, "hydra.run.dir=small/run"), flush=True)
        shutil.copytree("small/run", f"of-{size.decode()}")
    call("mount", b"tmpfs", b"small", b"tmpfs", READ_ONLY, None)
    print("code", command(*arguments, "hydra.run.dir=small/other"), flush=True)
    os._exit(0)


def test_a_full_disk_and_a_read_only_one_are_told_and_nothing_is_lost(workplace: Path) -> None:
    (workplace / "small").mkdir()
    arguments = run("target.index=0-3", "steps=150", "image.size=48", "checkpoint_every=1000")
    process = start(workplace, before=_on_a_small_disk, setting={"RUN": " ".join(arguments)})
    code, told = finish(process, workplace)
    if code == 77:
        pytest.skip("needs a file system of its own")
    assert code == 0, told
    assert [line for line in told.splitlines() if line.startswith("code")] == ["code 2", "code 0", "code 2"], told
    mistakes = [line for line in told.splitlines() if line.startswith("vital-visualize: ")]
    assert len(mistakes) == 2
    assert "No space left on device" in mistakes[0]
    assert "hydra.run.dir=" in mistakes[0]
    assert "Read-only file system" in mistakes[1]
    full, whole = workplace / "of-size=96k", workplace / "of-size=8m"
    done = finished(full)  # every line is whole
    assert 0 < len(done) < 4
    check_whole(whole, 4, 150)
    assert {name: pictures(whole)[f"{name}.png"] for name in done} == {n: pictures(full)[f"{n}.png"] for n in done}


def test_a_damaged_cache_entry_is_made_again(workplace: Path) -> None:
    arguments = run("target.index=0", "references.cache=true", "cache_dir=cache")
    assert command(*arguments, "hydra.run.dir=first") == 0
    (entry,) = (workplace / "cache" / "quantiles").iterdir()
    whole = entry.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"\xff" * len(whole)):
        entry.write_bytes(damaged)
        shutil.rmtree(workplace / "second", ignore_errors=True)
        assert command(*arguments, "hydra.run.dir=second") == 0
        assert entry.read_bytes() == whole
        assert pictures(workplace / "second") == pictures(workplace / "first")


def _take_references_away() -> None:
    """Delete the files of class b once class a is finished."""
    import threading

    def take() -> None:
        wait_for(Path("run/images/class-0.png").is_file)
        shutil.rmtree("photos/b")

    threading.Thread(target=take, daemon=True).start()


def test_targets_that_lose_their_references_fail_alone_and_are_made_when_those_are_back(workplace: Path) -> None:
    shutil.copytree("photos/b", "kept")
    arguments = run("target.index=[0,2,1,3]", "steps=100", "hydra.run.dir=run")
    code, told = finish(start(workplace, *arguments, before=_take_references_away), workplace)
    assert code == SOME_FAILED, told
    results = [json.loads(line) for line in Path("run/results.jsonl").read_text().splitlines()]
    assert [(r["target"], r["status"]) for r in results] == [
        *(("class-0", "done"), ("class-2", "done"), ("class-1", "failed"), ("class-3", "done"))
    ]
    assert "references.root=" in results[2]["error"]
    shutil.copytree("kept", "photos/b")
    assert command(*arguments) == 0
    check_whole(workplace / "run", 4, 100)


def _jumping_clock() -> None:
    """The clock goes back an hour, or on a day, whenever it is read."""
    real, numbers = time.time, random.Random(0)
    time.time = lambda: real() + numbers.choice([-3600.0, 86400.0])


def test_a_clock_that_jumps_changes_nothing(workplace: Path) -> None:
    arguments = run("target.index=0-1")
    code, told = finish(start(workplace, *arguments, "hydra.run.dir=jumped", before=_jumping_clock), workplace)
    assert code == 0, told
    assert command(*arguments, "hydra.run.dir=run") == 0
    assert pictures(workplace / "jumped") == pictures(workplace / "run")
    seconds = [json.loads(line)["seconds"] for line in (workplace / "jumped/results.jsonl").read_text().splitlines()]
    assert all(0 <= second < 3600 for second in seconds)


@pytest.mark.parametrize(("kind", "file"), [("gif", "class-0.gif"), ("apng", "class-0.png")])
def test_a_film_of_an_interrupted_run_has_every_frame(kind: str, file: str, workplace: Path) -> None:
    arguments = run("target.index=0", "steps=240", f"movie={kind}", "checkpoint_every=20", "hydra.run.dir=run")
    process = start(workplace, *arguments)
    wait_for((workplace / "run" / "checkpoints" / "class-0.ckpt").is_file)
    process.terminate()
    assert finish(process, workplace)[0] == INTERRUPTED
    assert command(*arguments) == 0
    with Image.open(workplace / "run" / "movies" / file) as film, Image.open("run/images/class-0.png") as picture:
        assert 50 <= film.n_frames <= 61  # the first frames of a GIF may be the same
        film.seek(film.n_frames - 1)
        difference = ImageChops.difference(film.convert("RGB"), picture.convert("RGB"))
        assert max(high for _, high in difference.getextrema()) <= (60 if kind == "gif" else 0)  # 256 colours
