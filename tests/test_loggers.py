"""Loggers: what arrives in CSV, TensorBoard and Weights & Biases, and that a run is ended."""

from __future__ import annotations

import csv
import json
import os
import socket
import sys
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.test_report import png, report, write_run
from tests.tiny import ON_CPU, SHORT, command, exit_code, wandb_records
from vital_exp.commands.evaluate import main as evaluate
from vital_exp.commands.hydra_app import MISTAKE
from vital_exp.run_folders import wandb_id
from vital_exp.visualization import wandb_server

# Two batches of one picture, three steps each.
RUN = (*SHORT, *ON_CPU, "steps=3", "target.index=[0,1]", "trainer.log_every_n_steps=2", "pictures_every=2")
PICTURES = ("pictures/class-0/path", "pictures/class-1/path")
LOGGED_STEPS = [0, 2, 3, 5]  # every second step and the last of a batch; those of the second batch follow the first's


@pytest.fixture(autouse=True)
def workplace(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(workplace))
    monkeypatch.setenv("WANDB_SILENT", "true")
    for variable in ("WANDB_API_KEY", "WANDB_MODE", "NETRC"):
        monkeypatch.delenv(variable, raising=False)
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()  # it reads its variables once
    return workplace


def test_csv() -> None:
    assert command(*RUN, "logger=csv", "hydra.run.dir=run") == 0
    with Path("run/csv/version_0/metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == LOGGED_STEPS
    assert set(rows[0]) == {"step", "loss/alignment/alignment", "loss/alignment/total"}
    with Path("run/history.csv").open(newline="") as file:
        totals = [float(row["total"]) for row in csv.DictReader(file)]
    assert [float(row["loss/alignment/total"]) for row in rows] == pytest.approx(
        [totals[i] for i in LOGGED_STEPS], rel=1e-5
    )


def test_none_writes_no_file_of_a_logger() -> None:
    assert command(*RUN, "logger=none", "hydra.run.dir=run", "steps=1") == 0
    assert not [path for path in Path("run").iterdir() if path.name in ("csv", "tensorboard", "wandb")]
    assert Path("run/history.csv").is_file()


def test_tensorboard() -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert command(*RUN, "logger=tensorboard", "evaluation=basic", "hydra.run.dir=run") == 0
    (place,) = Path("run/tensorboard").iterdir()
    assert place.name == "vital_s0"
    events = EventAccumulator(str(place))
    events.Reload()
    plugin = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    for known in (b"method", b"vital", b"embedded_resnet", b"target.index", b"[0,1]"):
        assert known in plugin
    assert events.Scalars("metric/accuracy_top1")
    for term in ("loss/alignment/alignment", "loss/alignment/total"):
        assert [event.step for event in events.Scalars(term)] == LOGGED_STEPS
    assert [event.step for event in events.Images("pictures/class-1")] == [3, 5]
    for name in ("class-0", "class-1"):
        first, last = (pixels_of(BytesIO(event.encoded_image_string)) for event in events.Images(f"pictures/{name}"))
        assert np.array_equal(last, pixels_of(Path(f"run/images/{name}.png")))
        _check_first_picture(first)


def pixels_of(file: Any) -> np.ndarray:
    """(H, W, 3) of an image file."""
    return np.array(Image.open(file).convert("RGB"))


def _check_first_picture(pixels: np.ndarray) -> None:
    """Noise about the middle of the range after one step: neither black nor few levels."""
    assert pixels.shape == (64, 64, 3)
    assert 64 < pixels.mean() < 192
    assert len(np.unique(pixels)) > 64


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


def table_of(run: Path, name: str) -> list[dict[str, Any]]:
    """The rows of a logged table, each picture replaced by the pixels of the file that is to be sent."""
    (path,) = run.glob("wandb/offline-run-*/*.wandb")
    artifacts = [r.artifact for r in wandb_records(path) if r.WhichOneof("record_type") == "artifact"]
    (contents,) = [a.manifest.contents for a in artifacts if a.name.endswith(f"-{name}")]
    files = {entry.path: Path(entry.local_path) for entry in contents}
    table = json.loads(files[f"{name}.table.json"].read_text())

    def cell(value: Any) -> Any:
        return pixels_of(files[value["path"]]) if isinstance(value, dict) and "path" in value else value

    return [dict(zip(table["columns"], map(cell, row), strict=True)) for row in table["data"]]


def run_of(run: Path) -> Any:
    """The record of the run itself: project, group, tags, name."""
    (path,) = run.glob("wandb/offline-run-*/*.wandb")
    return next(r.run for r in wandb_records(path) if r.WhichOneof("record_type") == "run")


def test_wandb_offline_in_a_sweep(capsys: pytest.CaptureFixture[str]) -> None:
    sweep = ("-m", "seed=0,1", "hydra.sweep.dir=sweep", "logger=wandb", "logger.offline=true", "evaluation=basic")
    assert command(*RUN, *sweep) == 0, capsys.readouterr().err
    assert "WANDB_MODE" not in os.environ  # the next job may be online
    for seed in (0, 1):
        run = Path("sweep") / str(seed)
        history, config, ended = history_of(run)
        assert ended
        assert (config["seed"], config["steps"]) == (seed, 3)
        losses = [row for row in history if "loss/alignment/total" in row]
        assert [row["trainer/global_step"] for row in losses] == LOGGED_STEPS
        assert all("loss/alignment/alignment" in row for row in losses)
        steps = [row["trainer/global_step"] for row in history]
        assert steps == sorted(steps)
        _check_pictures_and_table(run, history)
        recorded = run_of(run)
        assert recorded.run_group == f"{Path.cwd().name}/sweep"  # jobs of a sweep side by side
        assert list(recorded.tags) == ["embedded_resnet", "vital", "class"]
        assert (recorded.display_name, recorded.job_type) == (f"embedded_resnet vital s{seed}", "visualize")
        metrics = json.loads((run / "metrics.json").read_text())
        _check_summary(run, metrics)
        (final,) = [row for row in history if "metric/accuracy_top1" in row]
        assert final["metric/accuracy_top1"] == metrics["accuracy_top1"]["value"]


def _check_summary(run: Path, metrics: dict[str, Any]) -> None:
    """How sure each metric is, and which direction is better."""
    (path,) = run.glob("wandb/offline-run-*/*.wandb")
    records = list(wandb_records(path))
    updates = [u for r in records if r.WhichOneof("record_type") == "summary" for u in r.summary.update]
    summary = {"/".join(u.nested_key) or u.key: json.loads(u.value_json) for u in updates}
    own = metrics["probability"]
    assert [summary[f"metric/probability/{part}"] for part in ("low", "high", "n")] == [
        own["low"],
        own["high"],
        own["n"],
    ]
    defined = [r.metric for r in records if r.WhichOneof("record_type") == "metric"]
    assert any(one.name == "metric/probability" and one.summary.max for one in defined)


def test_each_target_on_request() -> None:
    asked = ("logger=csv", "hydra.run.dir=run", "log_targets=true", "method=fourier", "batch_size=2")
    assert command(*RUN, *asked) == 0
    with Path("run/csv/version_0/metrics.csv").open(newline="") as file:
        (first, *_) = csv.DictReader(file)
    each = [float(first[f"targets/class-{index}/activation/total"]) for index in (0, 1)]
    assert float(first["loss/activation/total"]) == pytest.approx(sum(each) / 2)


def _check_pictures_and_table(run: Path, history: list[dict[str, Any]]) -> None:
    (files,) = run.glob("wandb/offline-run-*/files")
    paths = {name: [row[name] for row in history if name in row] for name in PICTURES}
    assert [len(found) for found in paths.values()] == [2, 2]
    sent = [pixels_of(files / path) for found in paths.values() for path in found]
    made = [pixels_of(run / "images" / f"class-{index}.png") for index in (0, 1)]
    for first, last, picture in zip(sent[::2], sent[1::2], made, strict=True):
        _check_first_picture(first)
        assert np.array_equal(last, picture)
    results = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
    rows = table_of(run, "results")
    assert [row["target"] for row in rows] == ["class-0", "class-1"]
    assert [row["total"] for row in rows] == pytest.approx([result["loss"]["total"] for result in results])
    assert {(row["model"], row["method"]) for row in rows} == {("embedded_resnet", "vital")}
    with (run / "metrics.csv").open(newline="") as file:
        scores = list(csv.DictReader(file))
    assert [row["probability"] for row in rows] == pytest.approx([float(row["probability"]) for row in scores])
    assert all(np.array_equal(row["picture"], picture) for row, picture in zip(rows, made, strict=True))
    for row in rows:
        assert np.array_equal(row["references"], pixels_of(run / "references" / f"{row['target']}.jpg"))


def test_pictures_of_every_target_of_a_large_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SILENT", "")  # wandb refuses an empty word
    more = ("target.index=[0,1,2,3,4,5,6,7,8,9]", "target.variations=2", "batch_size=20", "steps=1")
    assert command(*RUN, *more, "logger=wandb", "logger.offline=true", "hydra.run.dir=run") == 0
    history, _, _ = history_of(Path("run"))
    (files,) = Path("run").glob("wandb/offline-run-*/files")
    (row,) = [row for row in history if "pictures/class-0/path" in row]
    made = sorted(Path("run/images").glob("class-?.png")) + sorted(Path("run/images").glob("class-?_v2.png"))
    assert len(made) == 20
    for path in made:
        assert np.array_equal(pixels_of(files / row[f"pictures/{path.stem}/path"]), pixels_of(path))


def online(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", address)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def test_a_server_that_is_not_there_stops_nothing(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    online(monkeypatch, "http://127.0.0.1:9")
    started = time.monotonic()
    assert command(*RUN, "logger=wandb", "hydra.run.dir=run", "steps=1") == 0
    assert time.monotonic() - started < 60
    err = capfd.readouterr().err
    assert "http://127.0.0.1:9 cannot be reached" in err
    assert "wandb sync" in err
    while not (ended := history_of(Path("run"))[2]) and time.monotonic() - started < 60:
        time.sleep(0.2)  # wandb's own process may still write the end
    assert ended  # the run is on disk
    assert len(Path("run/results.jsonl").read_text().splitlines()) == 2


def test_a_server_that_stops_answering_stops_nothing(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(wandb_server, "INIT_SECONDS", 2)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and never says a word
        online(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        assert command(*RUN, "logger=wandb", "hydra.run.dir=run", "steps=1") == 0
        assert time.monotonic() - started < 120
    assert "continues offline" in capfd.readouterr().err
    assert len(Path("run/results.jsonl").read_text().splitlines()) == 2


def test_a_report_is_one_run(tmp_path: Path) -> None:
    runs = [tmp_path / "sweep" / str(number) for number in range(2)]
    for run, method in zip(runs, ("vital", "maco"), strict=True):
        write_run(run, method, 0, {"class-0": {"top1": 1.0}}, {"accuracy_top1": {"value": 1.0, "n": 1}})
        png(run / "images/class-0.png", 0)
    assert report("runs=sweep", "out=r", "wandb=true", "offline=true") == 0
    deadline = time.monotonic() + 20
    while not history_of(Path("r"))[2] and time.monotonic() < deadline:  # its last words may still be on their way
        time.sleep(0.1)
    history, _, ended = history_of(Path("r"))
    assert ended
    config = {update.key: json.loads(update.value_json) for update in run_of(Path("r")).config.update}
    assert config["models"] == ["resnet50"]
    assert list(run_of(Path("r")).tags) == ["resnet50", "vital", "maco"]
    (row,) = history
    (shown,) = table_of(Path("r"), "pictures")
    for method, run in zip(("vital", "maco"), runs, strict=True):
        assert np.array_equal(shown.pop(method), pixels_of(run / "images/class-0.png"))
    assert shown == {"model": "resnet50", "target": "class-0", "label": "class-0", "seed": 0, "references": None}
    cells = table_of(Path("r"), "comparison")
    assert ("vital", "accuracy_top1", 1.0) in [(c["method"], c["metric"], c["value"]) for c in cells]
    assert row["plots/resnet50-accuracy_top1/_type"] == "html-file"
    (path,) = Path("r").glob("wandb/offline-run-*/*.wandb")
    summary = {
        u.key or "/".join(u.nested_key): json.loads(u.value_json)
        for r in wandb_records(path)
        if r.WhichOneof("record_type") == "summary"
        for u in r.summary.update
    }
    assert summary["resnet50/maco/accuracy_top1"] == 1.0


def test_scores_are_a_run_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert command(*RUN, "steps=1", "hydra.run.dir=run") == 0
    asked = ("run=run", "metrics=[accuracy,high_frequency]", "trainer.accelerator=cpu")
    assert exit_code(evaluate, *asked, "wandb=true", "offline=true") == 0
    assert "wandb: offline; send it by: wandb sync " in capsys.readouterr().out
    place = Path("run/evaluate")
    deadline = time.monotonic() + 20
    while not history_of(place)[2] and time.monotonic() < deadline:  # its last words may still be on their way
        time.sleep(0.1)
    sent = run_of(place)
    assert (sent.display_name, sent.job_type) == ("embedded_resnet vital s0", "evaluate")
    metrics = json.loads(Path("run/metrics.json").read_text())
    (row,) = history_of(place)[0]
    assert row["metric/high_frequency"] == pytest.approx(metrics["high_frequency"]["value"])
    first, second = table_of(place, "results")
    assert (first["target"], second["target"]) == ("class-0", "class-1")
    assert np.array_equal(second["picture"], pixels_of(Path("run/images/class-1.png")))
    assert wandb_id(Path("run")) is None  # the job itself was not logged


def test_a_report_without_a_login_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "sweep/0", "vital", 0, {"class-0": {"top1": 1.0}}, {})
    png(tmp_path / "sweep/0/images/class-0.png", 0)
    assert report("runs=sweep", "wandb=true") == MISTAKE
    (line,) = capsys.readouterr().err.splitlines()
    assert "wandb login" in line
