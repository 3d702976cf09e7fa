"""The command vital-visualize: what it runs, what it prints, what it leaves behind."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module, metadata
from pathlib import Path

import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from safetensors.torch import save_file

from tests.tiny import ON_CPU, SHORT, command, exit_code, image_folder, tiny_net
from vital_exp.commands import audit, hydra_app, visualize
from vital_exp.commands.own_folder import free_folder
from vital_exp.config import compose_config, groups, options_of, picture_config
from vital_exp.configuration import Configuration

pytestmark = pytest.mark.usefixtures("workplace")


def composed(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> list[Configuration]:
    """The configuration of each job that the command would run."""
    jobs: list[Configuration] = []

    def remember(config: Configuration) -> int:
        jobs.append(config)
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


@pytest.mark.slow
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
    keys |= {"facet", "share", "coherence", "members", "facets"}
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


def test_a_dry_run_of_a_sweep_tells_the_plan_of_each_job_and_leaves_nothing(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("-m", *SHORT, *ON_CPU, "target.index=0", "references.cache=false", "seed=0,1", "hydra.sweep.dir=sweep")
    assert command(*asked, "dry_run=true") == 0
    told = capsys.readouterr().out
    assert len(re.findall(r"^time +about", told, re.M)) == 2
    assert re.search(r"^sweep +2 jobs: about \d+ s one after another", told, re.M)
    assert "failed" not in told
    assert list(workplace.iterdir()) == []


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--version") == 0
    assert capsys.readouterr().out == f"vital-visualize {metadata.version('vital-exp')}\n"


def test_help_names_groups_options_and_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--help") == 0
    text = capsys.readouterr().out
    for group in groups():
        assert f"  {group}: " in text
        assert command("--help", group) == 0
        told = capsys.readouterr().out.splitlines()
        assert [line.strip() for line in told if re.fullmatch("  [^ ]+", line)] == options_of(group)
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


NEEDED = {"audit": ("run=run",), "evaluate": ("pictures=.",)}  # what these commands cannot do without
SWEEP = ("-m", "hydra/hydra_logging=none")


@pytest.mark.parametrize(("name", "sweep"), [("visualize", ()), ("mine", ()), ("evaluate", ()), ("audit", SWEEP)])
def test_jobs_of_one_second_take_different_folders(
    name: str, sweep: tuple[str, ...], workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places: list[Path] = []
    module = import_module(f"vital_exp.commands.{name}")
    monkeypatch.setattr(module, f"{name}_job", lambda _config: places.append(output()) or 0)
    given = ("hydra.sweep.dir=multirun/%S" if sweep else "hydra.run.dir=outputs/%S",)  # the same second
    assert [exit_code(module.main, *NEEDED.get(name, ()), *sweep, *more) for more in ((), given, given)] == [0, 0, 0]
    assert len(set(places)) == 3
    assert {place.relative_to(workplace).parts[0] for place in places} == {"multirun" if sweep else "outputs"}


@pytest.mark.slow
def test_folders_of_processes_beside_one_another(tmp_path: Path) -> None:
    """Threads stand for processes: what makes a folder is one call of the system."""
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(free_folder, [tmp_path / "x" / "12-00-00"] * 40))
    assert sorted(made) == sorted((tmp_path / "x").iterdir())
    assert len(made) == 40


def test_a_folder_named_by_the_user_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    places: list[Path] = []
    monkeypatch.setattr(audit, "audit_job", lambda _config: places.append(output()) or 0)
    for given in ("hydra.run.dir=outputs/2026-01-01/12-00-00", "hydra.run.dir=${now:%Y}", "hydra.sweep.dir=sweep"):
        sweep = SWEEP if "sweep" in given else ()
        assert [exit_code(audit.main, "run=run", given, *sweep) for _ in range(2)] == [0, 0]
        assert places[-1] == places[-2]


def output() -> Path:
    return Path(HydraConfig.get().runtime.output_dir)


@pytest.mark.parametrize(
    ("name", "sweep"), [("visualize", ()), ("mine", ()), ("evaluate", ()), ("audit", SWEEP), ("report", ())]
)
def test_relative_paths_are_of_the_folder_where_the_command_was_started(
    name: str, sweep: tuple[str, ...], workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Path, bool]] = []
    module = import_module(f"vital_exp.commands.{name}")
    monkeypatch.setattr(module, f"{name}_job", lambda _config: seen.append((Path.cwd(), output().is_absolute())) or 0)
    assert exit_code(module.main, "hydra.job.chdir=true", *NEEDED.get(name, ()), *sweep) == 0
    assert seen == [(workplace, True)]
    assert Path.cwd() == workplace


def test_files_of_a_run_that_changes_its_folder(workplace: Path) -> None:
    image_folder(workplace / "photos", ["cat", "dog", "fox", "owl"], side=32)
    (workplace / "net.py").write_text("from tests.tiny import tiny_net as build\n")
    (workplace / "names.txt").write_text("cat\ndog\nfox\nowl\n")
    save_file(tiny_net().state_dict(), workplace / "weights.safetensors")
    files = ("model.factory=net.py:build", "model.checkpoint=weights.safetensors", "model.class_names=names.txt")
    own = ("model=python", "model.size=32", *files, "references=folder", "references.root=photos", "cache_dir=cache")
    more = ("image.init=photos/cat/0.png", "steps=2", "target.index=fox", "references.count=2", "batch_size=1")
    assert command(*own, *more, *ON_CPU, "progress=false", "hydra.job.chdir=true", "hydra.run.dir=run") == 0
    assert {path.name for path in workplace.iterdir()} == {
        *("photos", "net.py", "names.txt", "weights.safetensors", "cache", "run")
    }
    assert (workplace / "run" / "images" / "class-2.png").is_file()


@pytest.mark.slow
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
    def interrupted(_config: Configuration) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(visualize, "visualize_job", interrupted)
    assert command("hydra.run.dir=run") == hydra_app.INTERRUPTED
    assert "hydra.run.dir" in capsys.readouterr().err


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_config: Configuration) -> int:
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
