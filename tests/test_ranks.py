"""Several devices: processes that share the targets of one job; on the CPU, which makes the same bits as GPUs would."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from torch.distributed import HashStore

from tests.processes import finish, start, wait_for
from tests.test_hostile_input import one_line
from tests.tiny import command, image_folder, tiny_net
from vital_exp import load_model, visualize
from vital_exp.errors import UsageError
from vital_exp.visualization import meeting
from vital_exp.visualization.launcher import Launcher
from vital_exp.visualization.ranks import RankEnded, Ranks, join
from vital_exp.visualization.starters import environment, mpi_processes, script_environment

TINY = (
    *("model=python", "model.factory=tests.tiny:tiny_net", "model.size=16", "model.class_names=[a,b,c,d]"),
    *("references=folder", "references.count=2", "steps=4", "batch_size=1", "checkpoint_every=1", "progress=false"),
    *("trainer.accelerator=cpu", "logger=none"),
)


@pytest.fixture(autouse=True)
def _one_world(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing started these tests as one of several; what they set, Lightning's too, is taken back."""
    for name in ("MASTER_ADDR", "MASTER_PORT", "SLURM_NTASKS_PER_NODE"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture
def workplace(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[1]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    image_folder(workplace / "photos", ["a", "b", "c", "d"], side=16)
    return workplace


def run(*arguments: str) -> tuple[str, ...]:
    return (*TINY, f"references.root={Path.cwd() / 'photos'}", *arguments)


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "images").iterdir()}


def finished(folder: Path) -> list[str]:
    """The targets in results.jsonl, every line of which must be whole."""
    return [json.loads(line)["target"] for line in (folder / "results.jsonl").read_text().splitlines()]


def check_whole(folder: Path, targets: int, steps: int = 4) -> None:
    names = [f"class-{number}" for number in range(targets)]
    assert sorted(finished(folder)) == names
    rows = [line.split(",")[:2] for line in (folder / "history.csv").read_text().splitlines()]
    assert sorted(rows[1:]) == sorted([name, str(step)] for name in names for step in range(steps))
    assert rows[0] == ["target", "step"]
    assert not list(folder.rglob("*.part"))
    assert not list(folder.rglob("*.ckpt"))


@pytest.mark.slow
def test_two_devices_make_the_bits_of_one(workplace: Path) -> None:
    assert command(*run("target.index=0-2", "hydra.run.dir=alone")) == 0
    code, told = finish(start(workplace, *run("target.index=0-2", "hydra.run.dir=two", "trainer.devices=2")), workplace)
    assert code == 0, told
    assert told.count("gallery: ") == 1
    assert "Warning" not in told
    check_whole(workplace / "two", 3)
    assert pictures(workplace / "two") == pictures(workplace / "alone")
    metrics = [json.loads((workplace / name / "metrics.json").read_text()) for name in ("alone", "two")]
    assert metrics[0] == metrics[1]
    assert sorted(path.name for path in workplace.iterdir() if path.is_dir()) == ["alone", "photos", "two"]


def outside(names: tuple[str, str, str], others: dict[str, str], count: int) -> list[dict[str, str]]:
    """The environment variables of each of some ranks that something else starts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    size, rank, local = names
    common = {**others, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, size: str(count)}
    return [{**common, rank: str(number), local: str(number)} for number in range(count)]


@pytest.mark.slow
def test_torchrun_with_more_ranks_than_targets(workplace: Path) -> None:
    settings = outside(("WORLD_SIZE", "RANK", "LOCAL_RANK"), {"TORCHELASTIC_RUN_ID": "1"}, 3)
    arguments = run("target.index=0-1", "hydra.run.dir=run")
    ranks = [start(workplace, *arguments, setting=setting) for setting in settings]
    ended = [finish(rank, workplace) for rank in ranks]
    assert [code for code, _ in ended] == [0, 0, 0], ended
    check_whole(workplace / "run", 2)
    assert [told.count("gallery: ") for _, told in ended] == [1, 0, 0]


def test_a_slow_batch_holds_no_other_rank_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has the first item is not done before all others are: the other rank must make them."""
    for name, value in outside(("WORLD_SIZE", "RANK", "LOCAL_RANK"), {}, 2)[0].items():
        monkeypatch.setenv(name, value)
    made, others_made = [], threading.Event()

    def work(rank: int) -> None:
        environment = LightningEnvironment()
        environment.set_global_rank(rank)
        environment.set_world_size(2)
        with Ranks.of(environment) as ranks:
            for number, _ in ranks.share("abcdef"):
                if number == 0:
                    assert others_made.wait(30)
                else:
                    made.append(number)
                if len(made) == 5:
                    others_made.set()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, range(2)))
    assert made == [1, 2, 3, 4, 5]


@pytest.mark.slow
def test_slurm_starts_the_ranks_of_a_sweep(workplace: Path) -> None:
    """Every rank runs every job; a mistake in one job is told once, and the next is made."""
    job = {"SLURM_NNODES": "1", "SLURM_NODEID": "0", "SLURM_JOB_NAME": "pictures", "SLURM_JOB_ID": "17"}
    settings = outside(("SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID"), job, 2)
    arguments = ("-m", *run("target.index=9,0-1", "hydra.sweep.dir=sweep", "hydra/hydra_logging=none"))
    ranks = [start(workplace, *arguments, setting=setting) for setting in settings]
    (code, told), (_, silent) = [finish(rank, workplace) for rank in ranks]
    assert code == 2, told
    assert told.count("vital-visualize: job 0: target.index=9") == 1
    assert "job 0 failed: target.index=9" in told  # in the table at the end
    assert silent == ""
    check_whole(workplace / "sweep" / "1", 2)
    assert {path.name for path in workplace.iterdir() if path.is_dir()} == {"photos", "sweep"}


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_job_and_the_same_command_completes_it(workplace: Path) -> None:
    many = run("target.index=0-3", "steps=60", "hydra.run.dir=run", "checkpoint_every=10")
    first = start(workplace, *many, "trainer.devices=2")
    wait_for((workplace / "run" / "checkpoints" / "class-0.ckpt").is_file)
    code, told = finish(start(workplace, *many), workplace)  # two jobs in one folder
    assert code == 2
    assert "another job is writing there" in told
    (other,) = children(first.pid)
    os.kill(other, signal.SIGKILL)
    code, told = finish(first, workplace)
    assert code == 130
    assert "rank 1 was killed by SIGKILL; the same command with hydra.run.dir=" in told
    assert command(*many) == 0  # with one device
    check_whole(workplace / "run", 4, 60)
    assert command(*run("target.index=0-3", "steps=60", "hydra.run.dir=alone")) == 0
    assert pictures(workplace / "run") == pictures(workplace / "alone")


def test_a_rank_that_ended_before_its_first_sign_of_life_is_not_waited_for() -> None:
    launcher = Launcher([], 2)
    ranks = Ranks(launcher)
    ranks.size = 2
    ranks._join(HashStore())
    launcher.ended = "rank 1 was killed by SIGKILL"
    with pytest.raises(RankEnded, match="rank 1 was killed by SIGKILL"), ranks:
        ranks.wait()


@pytest.mark.slow
def test_ranks_that_come_one_after_the_other_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The patience is with the next one: together they may take longer, as the slowest to import torch does."""
    (setting, *_) = outside(("WORLD_SIZE", "RANK", "LOCAL_RANK"), {}, 4)
    for name, value in setting.items():
        monkeypatch.setenv(name, value)

    def come(rank: int) -> int:
        started = LightningEnvironment()
        started.set_global_rank(rank)
        started.set_world_size(4)
        time.sleep({0: 0.8, 1: 0.0, 2: 1.6, 3: 2.6}[rank])
        with Ranks.of(started, patience=1.8) as ranks:
            ranks.wait()
            return ranks.size

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(come, range(4))) == [4] * 4


JOB = {"SLURM_JOB_ID": "77", "SLURM_JOB_NAME": "job", "SLURM_NODEID": "0", "SLURM_NNODES": "1", "SLURM_LOCALID": "0"}
TASKS = {**JOB, "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}
TORCH = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1"}
ELASTIC = {"TORCHELASTIC_RUN_ID": "1", "TORCHELASTIC_USE_AGENT_STORE": "True"}
UNSET = "unset RANK LOCAL_RANK WORLD_SIZE"
# What a shell or a scheduler has set where the world never meets, and what the one line says.
NEVER: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "sbatch without srun": (TASKS, ("SLURM_NTASKS=4", "ranks 1, 2, 3", "type srun", "unset SLURM_NTASKS")),
    "one of srun died": ({**TASKS, "SLURM_STEP_NUM_TASKS": "2"}, ("STEP_NUM_TASKS=2", "rank 1 of 2", "type srun")),
    "rank 0 of srun died": ({**TASKS, "SLURM_PROCID": "2"}, ("MASTER_ADDR=127.0.0.1:", "nothing answers", "type srun")),
    "left over": (TORCH, ("WORLD_SIZE=4", "ranks 1, 2, 3 of 4", "torchrun --nproc-per-node=4", UNSET)),
    "left over from torchrun": ({**TORCH, **ELASTIC}, ("nothing answers", f"{UNSET} TORCHELASTIC_RUN_ID")),
    "another rank": ({**TORCH, "RANK": "3"}, ("MASTER_ADDR=127.0.0.1:", "nothing answers", UNSET)),
    "no such host": ({**TORCH, "RANK": "1", "MASTER_ADDR": "no.such.host.invalid"}, ("MASTER_ADDR=no.such.", UNSET)),
    "no port": ({**TORCH, "MASTER_PORT": ""}, ("MASTER_PORT=None", UNSET)),
    "no number": ({**TORCH, "WORLD_SIZE": "four"}, ("WORLD_SIZE=four", "a whole number")),
    "too high": ({**TORCH, "RANK": "4"}, ("RANK=4", "numbered from 0")),
}  # fmt: skip


def set_case(case: str, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    setting, words = NEVER[case]
    port = outside(("A", "B", "C"), {}, 1)[0]["MASTER_PORT"]
    for name, value in {"MASTER_PORT": port, **setting}.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
    return words


@pytest.mark.parametrize("case", NEVER)
def test_a_world_that_never_meets_is_told_in_one_line(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = set_case(case, monkeypatch)
    with pytest.raises(UsageError) as caught:
        join(environment(), 0.5)
    one_line(caught.value, *words)


@pytest.mark.parametrize("case", ["sbatch without srun", "another rank", "no number"])
def test_the_command_tells_that_the_world_never_meets(
    case: str, workplace: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    words = set_case(case, monkeypatch)
    assert command(*run("rank_timeout=0.5")) == 2
    (line,) = capfd.readouterr().err.splitlines()  # torch's own client would add to it
    assert all(word in line for word in words), line
    assert [path.name for path in workplace.iterdir()] == ["photos"]


def test_a_port_that_is_taken_is_told(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        monkeypatch.setenv("MASTER_PORT", str(other.getsockname()[1]))
        for name, value in TORCH.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(UsageError, match=r"MASTER_PORT=\d+: cannot be used"):
            join(environment())


def test_who_is_waited_for_is_said_before_the_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(meeting, "FIRST_WORD", 0.3)
    for name, value in {**outside(("A", "B", "C"), {}, 1)[0], **TASKS}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="rank_timeout=7 waits longer"):
        join(environment(), 0.7)
    assert "SLURM_NTASKS=4: waiting for ranks 1, 2, 3" in caplog.records[0].getMessage()


# What is no start of several ranks, for the command and for a script.
ALONE: dict[str, dict[str, str]] = {
    "one task": {**TASKS, "SLURM_NTASKS": "1"},
    "a shell of salloc": {**TASKS, "SLURM_JOB_NAME": "interactive"},
    "a step of one": {**TASKS, "SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1"},
    "a login shell of salloc": {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"},
    "mpirun": {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "1"},
    "one rank": {**TORCH, "WORLD_SIZE": "1"},
}


@pytest.mark.parametrize("case", ALONE)
def test_what_is_no_start_of_ranks(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ALONE[case].items():
        monkeypatch.setenv(name, value)
    assert environment() is None
    assert script_environment() is None
    assert ("OMPI_COMM_WORLD_SIZE=4: " in mpi_processes()) == (case == "mpirun")


def test_a_notebook_or_script_in_a_slurm_job_works_alone(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in TASKS.items():
        monkeypatch.setenv(name, value)
    alone = {"references": torch.rand(2, 3, 16, 16), "steps": 1, "overrides": ["trainer.accelerator=cpu"]}
    network = load_model(tiny_net(), size=16)
    assert visualize(network, ["class:0"], out="run", **alone).results[0]["status"] == "done"
    with pytest.raises(UsageError, match="started from outside: torchrun"):  # asked for, and nobody has started them
        visualize(network, ["class:0"], steps=1, overrides=["trainer.accelerator=cpu", "trainer.devices=4"])
    monkeypatch.setenv("SLURM_STEP_ID", "0")  # srun python script.py
    started = script_environment()
    assert started is not None
    assert started.world_size() == 4
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)  # srun jupyter
    assert script_environment() is None


def children(process: int | None) -> list[int]:
    return [int(number) for number in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


@pytest.mark.parametrize("asked", [("trainer.devices=3",), ("trainer.devices=2", "trainer.num_nodes=2")])
def test_other_ranks_than_were_started_are_refused(
    asked: tuple[str, ...], workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert command(*run("hydra.run.dir=run", *asked)) == 2
    assert "2 ranks were started from outside" in capsys.readouterr().err
