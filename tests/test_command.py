"""The command vital-visualize: what it runs, what it prints, what it leaves behind."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from tests.tiny import ON_CPU, SHORT, command, image_folder
from vital_exp.commands import hydra_app, visualize
from vital_exp.config import compose_config, groups, options_of, picture_config

pytestmark = pytest.mark.usefixtures("workplace")


def composed(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> list[DictConfig]:
    """The configuration of each job that the command would run."""
    jobs: list[DictConfig] = []

    def remember(config: DictConfig) -> int:
        jobs.append(visualize.normalised(config))
        return 0

    monkeypatch.setattr(visualize, "visualize_job", remember)
    assert command(*arguments) == 0
    return jobs


def test_no_argument_is_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    (config,) = composed(monkeypatch)
    assert picture_config(config) == picture_config(compose_config(["experiment=demo"]))
    assert config.method.name == "vital_fourier"
    assert (config.target.index, config.evaluation.judges) == ("all", ["embedded_judge"])


@pytest.mark.parametrize("arguments", [["experiment=demo"], ["+experiment=demo"], ["progress=true"]])
def test_the_demo_by_other_names(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    (config,) = composed(monkeypatch, *arguments)
    assert config == compose_config(["experiment=demo"])


def test_with_a_model_the_method_is_vital(monkeypatch: pytest.MonkeyPatch) -> None:
    (config,) = composed(monkeypatch, "model=embedded_resnet")
    assert (config.method.name, config.steps) == ("vital", 2000)


@pytest.mark.parametrize("flag", ["-m", "--multirun"])
def test_a_sweep_without_a_model_sweeps_the_demo(flag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = composed(monkeypatch, "steps=7", flag, "seed=0,1", "hydra.sweep.dir=sweep")
    assert [(job.seed, job.steps, job.method.name) for job in jobs] == [
        (0, 7, "vital_fourier"),
        (1, 7, "vital_fourier"),
    ]


RECIPE = ("objective", "image", "transforms", "optimizer", "steps", "views", "mask_percentile", "channels_last")


def test_every_method_without_a_model_is_that_method_on_the_demos_network(monkeypatch: pytest.MonkeyPatch) -> None:
    methods = options_of("method")
    for job, method in zip(composed(monkeypatch, "-m", f"method={','.join(methods)}"), methods, strict=True):
        expected = compose_config(["experiment=demo" if method == "vital_fourier" else f"method={method}"])
        assert {key: job[key] for key in RECIPE} == {key: expected[key] for key in RECIPE}, method
        assert (job.model.name, job.seed, job.evaluation.judges) == ("embedded_resnet", 1, ["embedded_judge"])


@pytest.mark.parametrize(
    ("choice", "changed"),
    [
        ("objective=[activation]", "objective"),
        ("objective/alignment=gram", "objective"),
        ("image=pixels", "image"),
        ("transforms=deep_inversion", "transforms"),
        ("transforms=[lucid,jitter]", "transforms"),
    ],
)
def test_a_part_without_a_model_is_the_demo_with_that_part(choice: str, changed: str) -> None:
    config, demo = compose_config(["experiment=demo", choice]), compose_config(["experiment=demo"])
    alone = compose_config(["method=vital_fourier", choice])
    others = [key for key in RECIPE if key != changed]
    assert [config[key] for key in others] == [demo[key] for key in others]
    assert config[changed] == alone[changed]


def test_another_method_runs_without_a_model() -> None:
    assert command("method=fourier", *SHORT[1:], *ON_CPU, "hydra.run.dir=run") == 0


def test_a_key_of_a_part_that_is_not_chosen_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("objective=[activation]", "objective.alignment.standardise=layer") == hydra_app.MISTAKE
    assert "objective=[alignment] is not among the chosen ones" in capsys.readouterr().err


def test_arguments_of_the_network_need_no_plus(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ["model=timm", "model.name=mobilenetv2_100"]
    for spelling in (
        "model.arguments={pad_type:same}",
        "model.arguments.pad_type=same",
        "+model.arguments.pad_type=same",
    ):
        (config,) = composed(monkeypatch, *model, spelling)
        assert config.model.arguments == {"pad_type": "same"}


def test_what_is_known_may_be_forced_and_parts_taken_away(monkeypatch: pytest.MonkeyPatch) -> None:
    (config,) = composed(monkeypatch, "++steps=3", "~transforms.flip", "~objective.l2")
    assert config.steps == 3
    assert list(config.transforms) == ["jitter"]
    assert list(config.objective) == ["alignment", "total_variation"]


def test_a_run_folder_holds_everything() -> None:
    photos = image_folder(Path("photos"), ["star", "heart"])
    run = ("references=folder", f"references.root={photos}", "target.index=[star,1]", "evaluation=basic")
    assert command(*SHORT, *ON_CPU, "logger=csv", *run, "evaluation.judges=[embedded_vit]", "hydra.run.dir=run") == 0
    folder = Path("run")
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    pictures = {f"images/class-{i}{kind}.png" for i in (0, 1) for kind in ("", "_masked")}
    files = {"results.jsonl", "history.csv", "metrics.json", "metrics.csv", "report.html", "provenance.json"}
    assert {*pictures, *files, ".hydra/config.yaml", ".hydra/overrides.yaml"} <= names
    assert not [name for name in names if name.endswith((".part", ".ckpt"))]
    results = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    keys = {"target", "kind", "layer", "index", "label", "status", "image", "seed", "steps", "loss", "activation"}
    keys |= {"seconds", "memory", "error", "position", "variation", "config_hash"}
    assert [set(result) for result in results] == [keys, keys]
    assert [(r["target"], r["label"], r["status"]) for r in results] == [
        ("class-0", "star", "done"),
        ("class-1", "heart", "done"),
    ]
    with (folder / "history.csv").open(newline="") as file:
        assert [(row["target"], row["step"]) for row in csv.DictReader(file)] == [
            (f"class-{i}", str(step)) for i in (0, 1) for step in (0, 1)
        ]
    metrics = json.loads((folder / "metrics.json").read_text())
    assert {"accuracy_top1", "transfer_top1[embedded_vit]"} <= set(metrics)
    assert all(set(metric) == {"value", "low", "high", "n"} for metric in metrics.values())
    recorded = OmegaConf.load(folder / ".hydra/config.yaml")
    assert recorded.references.root == str(photos)
    assert "steps=2" in OmegaConf.load(folder / ".hydra/overrides.yaml")
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["batch_size"] == 1
    assert provenance["weights_hash"]


def test_a_sweep_makes_a_folder_for_each_job() -> None:
    assert command(*SHORT, *ON_CPU, "-m", "seed=0,1", "hydra.sweep.dir=sweep") == 0
    runs = [Path("sweep") / name for name in ("0", "1")]
    assert [json.loads((run / "results.jsonl").read_text())["seed"] for run in runs] == [0, 1]
    first, second = ((run / "images/class-0.png").read_bytes() for run in runs)
    assert first != second


def test_layers_are_listed_and_nothing_is_left(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("model=embedded_resnet", "list=layers", "hydra.run.dir=run") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["layer", "channels", "map", "kind"] in lines
    assert ["*", "layer4", "192", "4x4", "Sequential"] in lines
    assert ["layer4.0.conv1", "192", "4x4", "Conv2d"] in lines
    assert list(workplace.iterdir()) == []


@pytest.mark.parametrize("value", ["true", "True"])
def test_a_dry_run_tells_the_plan_and_leaves_nothing(
    value: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (*SHORT, *ON_CPU, "target.index=[0,1,2]", "batch_size=2", "references.cache=false", "hydra.run.dir=run")
    assert command(*arguments, f"dry_run={value}") == 0
    plan = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert {"model", "method", "layers", "targets", "batches", "time", "memory", "disk"} <= set(plan)
    assert plan["targets"].startswith("3: class-0 (star)")
    assert plan["batches"].startswith("2 of 2")
    assert list(workplace.iterdir()) == []


def test_help_names_groups_options_and_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--help") == 0
    text = capsys.readouterr().out
    lines = dict(line.strip().split(": ", 1) for line in text.splitlines() if ": " in line)
    for group in groups():
        assert options_of(group) == lines[group].split(", "), group
    for key in ("references.root", "target.index", "model.checkpoint", "batch_size", "dry_run=true", "list=layers"):
        assert key in text


@pytest.mark.parametrize(("evaluation", "told"), [("basic", True), ("none", False)])
def test_what_was_not_judged_has_no_column(evaluation: str, told: bool, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = (*SHORT, "trainer.accelerator=cpu", "logger=none", f"evaluation={evaluation}", "hydra.run.dir=run")
    assert command(*arguments) == 0
    assert ("recognised" in capsys.readouterr().out) == told


def test_a_mistake_leaves_no_folder_behind(workplace: Path) -> None:
    mistake = (*ON_CPU, "target=channel", "target.layer=layer9")
    assert command(*mistake) == hydra_app.MISTAKE
    assert list(workplace.iterdir()) == []
    other = workplace / "outputs" / "2026-01-01"
    other.mkdir(parents=True)
    assert command(*mistake) == hydra_app.MISTAKE
    assert list((workplace / "outputs").iterdir()) == [other]
    (workplace / "given").mkdir()
    assert command(*mistake, "hydra.run.dir=given") == hydra_app.MISTAKE
    assert (workplace / "given").is_dir()


@pytest.mark.parametrize("arguments", [("--help",), ("-h",), ("--hel", "model=nonsense"), ("list=layers",)])
def test_a_reader_that_has_gone_is_no_mistake(arguments: tuple[str, ...]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    program = [sys.executable, "-m", "vital_exp", "visualize", *arguments]
    done = subprocess.run(program, stdout=writing, stderr=subprocess.PIPE, check=False, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (hydra_app.BROKEN_PIPE, "")


def test_the_configuration_can_be_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("steps=9", "--cfg", "job", "seed=3") == 0
    shown = OmegaConf.create(capsys.readouterr().out)
    assert (shown.steps, shown.seed, shown.method.name) == (9, 3, "vital_fourier")


def test_an_interrupted_run_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_config: DictConfig) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(visualize, "visualize_job", interrupted)
    assert command("hydra.run.dir=run") == hydra_app.INTERRUPTED
    assert "hydra.run.dir" in capsys.readouterr().err


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_config: DictConfig) -> int:
        raise AttributeError("a fault")

    monkeypatch.setattr(visualize, "visualize_job", broken)
    with pytest.raises(AttributeError, match="a fault"):
        command("hydra.run.dir=run")


def test_a_job_in_another_process_hands_its_exit_code_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hydra's joblib and submitit launchers run jobs elsewhere: only an exception finds its way back."""
    processes = iter(range(10))
    monkeypatch.setattr(hydra_app.os, "getpid", lambda: next(processes))
    monkeypatch.setattr(visualize, "visualize_job", lambda _config: 1)
    assert command("hydra.run.dir=run") == hydra_app.SOME_FAILED
