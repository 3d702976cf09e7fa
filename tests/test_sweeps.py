"""Sweeps: what is there is not made again, nothing stays in memory, and Hydra's launchers and sweepers work."""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.test_ranks import check_whole, finished, pictures, run, workplace
from tests.tiny import command
from vital_exp.engine.module import VisualizationModule
from vital_exp.models.network import VisionNetwork
from vital_exp.visualization import devices

__all__ = ["workplace"]  # a fixture
SWEEP = ("-m", "hydra.sweep.dir=sweep", "target.index=0-1", "hydra/hydra_logging=none")


@pytest.fixture(autouse=True)
def _closed_logs() -> Iterator[None]:
    """The launchers and sweepers leave Hydra's log file open."""
    yield
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.close()


def test_a_sweep_started_again_makes_what_is_missing(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    step = VisualizationModule.training_step

    def counted(module: VisualizationModule, *arguments: object) -> torch.Tensor:
        steps.append(module.global_step)
        return step(module, *arguments)

    monkeypatch.setattr(VisualizationModule, "training_step", counted)
    assert command(*run(*SWEEP, "seed=0,1")) == 0
    made = {name: pictures(workplace / "sweep" / name) for name in ("0", "1")}
    assert len(steps) == 2 * 2 * 4  # jobs, targets, steps
    steps.clear()
    assert command(*run(*SWEEP, "seed=2,1,0")) == 0  # other numbers, and one that is new
    assert len(steps) == 2 * 4
    assert {name: pictures(workplace / "sweep" / name) for name in made} == made
    (new,) = (workplace / "sweep").glob("0-*")
    check_whole(new, 2)
    assert json.loads((new / "results.jsonl").read_text().splitlines()[0])["seed"] == 2
    steps.clear()
    assert command(*run(*SWEEP, "seed=0,1,2")) == 0
    assert steps == []


def test_no_job_leaves_its_network_behind(workplace: Path) -> None:
    def networks() -> int:
        gc.collect()
        return sum(type(one) is VisionNetwork for one in gc.get_objects())

    before = networks()
    assert command(*run(*SWEEP, "seed=0,1", "target.index=0,9")) == 2  # a job that fails keeps none alive either
    assert networks() == before


def test_jobs_beside_one_another_take_different_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,7")
    with devices.own_gpu(0, tmp_path) as first, devices.own_gpu(3, tmp_path) as second:
        assert (first, second) == (0, 1)
        with devices.own_gpu(0, tmp_path) as third, devices.own_gpu(5, tmp_path) as shared:
            assert (third, shared) == (2, 2)
    with devices.own_gpu(6, tmp_path) as again:
        assert again == 0
    assert {path.name for path in tmp_path.iterdir()} == {"4.lock", "5.lock", "7.lock"}


@pytest.mark.slow
def test_joblib_runs_jobs_in_processes(workplace: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    jobs = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=0,1")
    assert command(*run(*SWEEP, *jobs)) == 0
    for number in ("0", "1"):
        assert sorted(finished(workplace / "sweep" / number)) == ["class-0", "class-1"]
    assert command(*run("target.index=0-1", "seed=1", "hydra.run.dir=alone")) == 0
    assert pictures(workplace / "sweep" / "1") == pictures(workplace / "alone")


@pytest.mark.slow
def test_submitit_runs_jobs_on_this_machine_and_composes_those_for_slurm(workplace: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    job = ("hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5", "seed=1")
    assert command(*run(*SWEEP, *job)) == 0
    check_whole(workplace / "sweep" / "0", 2)


def test_submitit_hands_slurm_what_was_asked_for(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    asked = ("hydra.launcher.gpus_per_node=4", "hydra.launcher.tasks_per_node=4", "hydra.launcher.timeout_min=4320")
    assert command(*run("hydra/launcher=submitit_slurm", *asked, "--cfg", "hydra", "-p", "hydra.launcher")) == 0
    shown = capsys.readouterr().out
    assert "timeout_min: 4320" in shown
    assert "tasks_per_node: 4" in shown


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the sweeper's own
def test_optuna_improves_a_metric_over_the_weights_of_the_objective(workplace: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    search = (
        *("hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=1", "hydra.sweeper.sampler.seed=0"),
        *("hydra.sweeper.direction=maximize", "sweep_metric=probability"),
        "objective.total_variation.weight=interval(0.0,0.1)",
    )
    assert command(*run(*SWEEP, *search)) == 0
    values = [json.loads(path.read_text())["probability"]["value"] for path in Path("sweep").glob("*/metrics.json")]
    assert len(values) == 3
    best = (workplace / "sweep" / "optimization_results.yaml").read_text()
    assert f"best_value: {max(values)}" in best


def test_an_unknown_metric_is_told(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(*run("target.index=0", "hydra.run.dir=run", "sweep_metric=acuracy_top1")) == 2
    assert "sweep_metric=acuracy_top1" in capsys.readouterr().err.splitlines()[-1]
