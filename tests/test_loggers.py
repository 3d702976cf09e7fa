"""Loggers: what arrives in CSV, TensorBoard and Weights & Biases, and that a run is ended."""

from __future__ import annotations

import csv
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import ON_CPU, SHORT, command, wandb_records

# Two batches of one picture, three steps each.
RUN = (*SHORT, *ON_CPU, "steps=3", "target.index=[0,1]", "trainer.log_every_n_steps=2", "pictures_every=2")
LOGGED_STEPS = [0, 2, 3, 5]  # every second step and the last of a batch; those of the second batch follow the first's


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    for variable in ("WANDB_API_KEY", "WANDB_MODE", "NETRC"):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path


def test_csv() -> None:
    assert command(*RUN, "logger=csv", "hydra.run.dir=run") == 0
    with Path("run/csv/version_0/metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == LOGGED_STEPS
    assert set(rows[0]) == {"step", "loss/alignment", "loss/total"}
    with Path("run/history.csv").open(newline="") as file:
        totals = [float(row["total"]) for row in csv.DictReader(file)]
    assert [float(row["loss/total"]) for row in rows] == pytest.approx([totals[i] for i in LOGGED_STEPS], rel=1e-5)


def test_none_writes_no_file_of_a_logger() -> None:
    assert command(*RUN, "logger=none", "hydra.run.dir=run", "steps=1") == 0
    assert not [path for path in Path("run").iterdir() if path.name in ("csv", "tensorboard", "wandb")]
    assert Path("run/history.csv").is_file()


def test_tensorboard() -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert command(*RUN, "logger=tensorboard", "hydra.run.dir=run") == 0
    events = EventAccumulator(str(next(Path("run/tensorboard").iterdir())))
    events.Reload()
    for term in ("loss/alignment", "loss/total"):
        assert [event.step for event in events.Scalars(term)] == LOGGED_STEPS
    assert [event.step for event in events.Images("pictures/class-1")] == [3, 5]
    assert events.Images("pictures/class-0")[0].width == 64


def history_of(run: Path) -> tuple[list[dict[str, Any]], dict[str, Any], bool]:
    """The history, the configuration, and whether the run was ended."""
    (path,) = run.glob("wandb/offline-run-*/*.wandb")
    history: list[dict[str, Any]] = []
    config: dict[str, Any] = {}
    ended = False
    for record in wandb_records(path):
        kind = record.WhichOneof("record_type")
        if kind == "history":
            items = record.history.item
            history.append({"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items})
        elif kind == "config":
            config |= {"/".join(u.nested_key) or u.key: json.loads(u.value_json) for u in record.config.update}
        ended = ended or kind == "exit"
    return history, config, ended


def test_wandb_offline_in_a_sweep(capsys: pytest.CaptureFixture[str]) -> None:
    sweep = ("-m", "seed=0,1", "hydra.sweep.dir=sweep", "logger=wandb", "logger.offline=true")
    assert command(*RUN, *sweep) == 0, capsys.readouterr().err
    assert "WANDB_MODE" not in os.environ  # the next job may be online
    for seed in (0, 1):
        run = Path("sweep") / str(seed)
        history, config, ended = history_of(run)
        assert ended
        assert (config["seed"], config["steps"]) == (seed, 3)
        losses = [row for row in history if "loss/total" in row]
        assert [row["trainer/global_step"] for row in losses] == LOGGED_STEPS
        assert all("loss/alignment" in row for row in losses)
        steps = [row["trainer/global_step"] for row in history]
        assert steps == sorted(steps)
        _check_pictures_and_table(run, history)


def _check_pictures_and_table(run: Path, history: list[dict[str, Any]]) -> None:
    pictures = [row for row in history if "pictures/filenames" in row]
    assert [row["pictures/captions"] for row in pictures] == [["class-0"]] * 2 + [["class-1"]] * 2
    (files,) = run.glob("wandb/offline-run-*/files")
    assert all((files / name).is_file() for row in pictures for name in row["pictures/filenames"])
    table = json.loads((files / history[-1]["results/path"]).read_text())
    assert table["columns"][:3] == ["target", "label", "status"]
    results = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
    assert [row[0] for row in table["data"]] == ["class-0", "class-1"]
    total = table["columns"].index("total")
    assert [row[total] for row in table["data"]] == pytest.approx([result["loss"]["total"] for result in results])
