"""The command vital-evaluate: what it writes, what it prints, and its mistakes in one line."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

import vital_exp
from tests.tiny import ON_CPU, SHORT, command, exit_code
from vital_exp.commands.evaluate import main
from vital_exp.commands.hydra_app import MISTAKE, SOME_FAILED
from vital_exp.config import compose_config
from vital_exp.config_tree import options_of
from vital_exp.evaluation import shared
from vital_exp.evaluation.metrics import chosen
from vital_exp.images.output import to_uint8
from vital_exp.references.drawn import draw
from vital_exp.runs.evaluate import settings_of
from vital_exp.terminal_tables import WIDTH

pytestmark = pytest.mark.usefixtures("workplace")

QUICK = ("metrics=[accuracy,transfer,repetition]", "judges=[embedded_judge]", "trainer.accelerator=cpu")


def evaluate(*arguments: str) -> int:
    return exit_code(main, *arguments)


@pytest.fixture
def pictures(workplace: Path) -> Path:
    folder = workplace / "pictures"
    folder.mkdir()
    for index in range(3):
        pixels = to_uint8(draw(index, 0, 77)).permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / f"class-{index}.png")
    return folder


def test_a_run_folder_gets_its_table(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(*SHORT, *ON_CPU, "hydra.run.dir=run") == 0
    before = {path.name for path in workplace.iterdir()}
    assert evaluate("run=run", "judges=[embedded_judge]", "metrics=all", "trainer.accelerator=cpu") == 0
    out = capsys.readouterr().out
    assert "transfer_top1[embedded_judge]" in out
    assert "not computed: needs" in out
    metrics = json.loads(Path("run/metrics.json").read_text())
    assert metrics["accuracy_top1"]["n"] == 1
    assert metrics["seconds"]["value"] > 0
    assert 50 < metrics["memory"]["value"] < 100_000  # MiB of this process
    assert metrics["fid[target]"]["value"] is None  # of one picture
    assert "at least 2 pictures" in metrics["fid[target]"]["reason"]
    with Path("run/metrics.csv").open(newline="") as file:
        assert [row["target"] for row in csv.DictReader(file)] == ["class-0"]
    assert {path.name for path in workplace.iterdir()} == before  # nothing beside the run folder


def test_a_sweep_is_scored_run_by_run_and_each_page_is_written_anew(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = Path("multirun/some/sweep")
    for seed in (0, 1, 2):
        folder = f"hydra.run.dir={sweep / str(seed)}"
        assert command(*SHORT, *ON_CPU, f"seed={seed}", "references.cache=true", folder) == 0
    shutil.copytree(sweep / "2", sweep / "broken", ignore=shutil.ignore_patterns("images"))
    before = {path: path.stat().st_mtime_ns for path in sweep.rglob("images/*")}
    capsys.readouterr()
    built: list[object] = []
    build = shared.network_if_there
    monkeypatch.setattr(shared, "network_if_there", lambda spec, *rest: built.append(spec) or build(spec, *rest))

    arguments = ("judges=[embedded_judge]", "metrics=[accuracy,transfer,repetition]", "trainer.accelerator=cpu")
    assert evaluate(f"run={sweep}", *arguments) == SOME_FAILED
    assert len(built) == 2  # the network and the judge, once for all runs
    assert {path: path.stat().st_mtime_ns for path in sweep.rglob("images/*")} == before
    first, *lines, wrote, then = capsys.readouterr().out.splitlines()
    assert first == f"preparing metrics of {sweep}"
    table, lines = lines[lines.index("") + 1 :], lines[: lines.index("")]
    assert max(len(line) for line in lines if "/" not in line) <= WIDTH
    lines = "\n".join(lines).replace("\n  ", " ").splitlines()
    assert table[1].split()[:4] == ["method", "jobs", "pictures", "accuracy_top1"]
    assert table[3].split()[:3] == ["vital", "3", "3"]
    assert [Path(line.split(":")[0]).name for line in lines] == ["0", "1", "2", "broken"]
    assert wrote == f"metrics: metrics.json, metrics.csv and report.html of 3 runs in {sweep}"
    assert then == f"next: vital-report runs={sweep}"
    assert "not scored: run=" in lines[3]
    for seed, line in enumerate(lines[:3]):
        metrics = json.loads((sweep / str(seed) / "metrics.json").read_text())
        assert f"accuracy_top1 {metrics['accuracy_top1']['value']:.3f}" in line
        assert "recognised by embedded judge" in (sweep / str(seed) / "report.html").read_text()

    tables = vital_exp.evaluate(sweep, metrics=["accuracy"])
    assert [run.name for run in tables] == ["0", "1", "2"]
    assert [run.name for run in tables.failed] == ["broken"]
    assert all(table.metrics["accuracy_top1"]["n"] == 1 for table in tables.values())


def test_a_sweep_of_which_nothing_can_be_scored_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        Path("sweep", name).mkdir(parents=True)
        Path("sweep", name, "results.jsonl").write_text("")
    assert evaluate("run=sweep", *QUICK) == MISTAKE
    assert "sweep/a" in capsys.readouterr().err


@pytest.mark.parametrize("shown", [True, False])
def test_bars_of_metrics_and_of_natural_images_on_a_terminal(
    shown: bool, pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(shutil, "get_terminal_size", lambda *_: os.terminal_size((80, 24)))
    asked = (f"pictures={pictures}", "model=embedded_resnet", "references=embedded", *QUICK, "references.count=2")
    assert evaluate(*asked, f"progress={shown}", "hydra.run.dir=out") == 0
    told = capsys.readouterr().err
    if not shown:
        assert told == ""
        return
    lines = re.split(r"[\r\n]+", told)
    assert any(line.startswith("metrics:   0%") and "/3 " in line for line in lines), told
    assert any(line.startswith("natural images:") and "/3 " in line for line in lines), told


def test_a_folder_of_pictures_gets_a_run_folder(pictures: Path) -> None:
    assert evaluate(f"pictures={pictures}", "model=embedded_resnet", *QUICK, "hydra.run.dir=out") == 0
    metrics = json.loads(Path("out/metrics.json").read_text())
    assert metrics["transfer_top1[embedded_judge]"]["value"] == 1
    assert metrics["repetition_deviation"]["value"] is not None  # against the embedded images
    assert Path("out/.hydra/config.yaml").is_file()


def test_a_pattern_needs_no_second_quotes(pictures: Path) -> None:
    for pattern in ("pattern=class-{index}.png", "pattern='class-{index}.png'"):
        assert evaluate(f"pictures={pictures}", "model=embedded_resnet", *QUICK, pattern, "hydra.run.dir=out") == 0


def test_pictures_of_a_run_as_a_plain_folder_and_by_a_table(pictures: Path) -> None:
    Path("t.csv").write_text("picture,target\nclass-0.png,star\nclass-1.png,class-1\n")
    assert evaluate(f"pictures={pictures}", "model=embedded_resnet", "targets=t.csv", *QUICK, "hydra.run.dir=out") == 0
    assert json.loads(Path("out/metrics.json").read_text())["accuracy_top1"]["n"] == 2


def test_broken_pictures_are_told_and_the_exit_code_says_so(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (pictures / "class-1.png").write_bytes((pictures / "class-1.png").read_bytes()[:200])
    assert evaluate(f"pictures={pictures}", "model=embedded_resnet", *QUICK, "hydra.run.dir=out") == SOME_FAILED
    out = capsys.readouterr().out
    assert "1 of 3 pictures could not be read: class-1.png" in out
    assert json.loads(Path("out/metrics.json").read_text())["accuracy_top1"]["n"] == 2


def test_a_missing_picture_of_a_run_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert command(*SHORT, *ON_CPU, "target.index=[0,1]", "hydra.run.dir=run") == 0
    Path("run/images/class-1.png").unlink()
    assert evaluate("run=run", *QUICK) == SOME_FAILED
    assert "1 of 2 pictures could not be read: images/class-1.png (missing)" in capsys.readouterr().out


MISTAKES = {
    "nothing": ((), ("run=None", "pictures=folder")),
    "no such run": (("run=nowhere",), ("run=nowhere", "no such folder")),
    "a run without results": (("run=empty",), ("run=empty", "results.jsonl")),
    "a run without finished pictures": (("run=started",), ("run=started", "finished")),
    "both": (("run=empty", "pictures=empty"), ("pictures=empty", "combined with run=empty")),
    "no model": (("pictures=pictures",), ("model=None", "model=resnet50")),
    "no such pictures": (("pictures=nowhere", "model=embedded_resnet"), ("pictures=nowhere", "does not exist")),
    "a pattern that fits nothing": (
        ("pictures=pictures", "model=embedded_resnet", "pattern=x-{index}.png"),
        ("pattern=x-{index}.png", "class-0.png"),
    ),
    "an unknown metric": (
        ("pictures=pictures", "model=embedded_resnet", "metrics=[acuracy]"),
        ("metrics=acuracy", "did you mean accuracy"),
    ),
    "an unknown judge": (
        ("pictures=pictures", "model=embedded_resnet", "judges=[embedded_juge]"),
        ("judges=embedded_juge", "did you mean embedded_judge"),
    ),
    "a judge of other classes": (
        ("pictures=pictures", "model=embedded_resnet", "judges=[{name:resnet10t,pretrained:false}]"),
        ("judges=resnet10t", "1000 classes", "10"),
    ),
    "weights that are not there": (("pictures=pictures", "model=resnet50"), ("download=False", "resnet50")),
    "an unknown class": (
        ("pictures=pictures", "model=embedded_resnet", "targets=wrong.csv"),
        ("targets=starr", "did you mean star"),
    ),
    "an unknown key": (("runn=x",), ("runn=x", "did you mean run")),
    "metrics that are a number": (("run=empty", "metrics=3"), ("metrics=3", "list of names")),
    "judges that are no list": (("run=empty", "judges=resnet50"), ("judges=resnet50", "list")),
    "a subset of one": (
        ("pictures=pictures", "model=embedded_resnet", "evaluation.kid_subset_size=1"),
        ("evaluation.kid_subset_size=1", "at least 2"),
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(mistake: str, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    Path("started/.hydra").mkdir(parents=True)
    Path("started/results.jsonl").write_text('{"target": "class-0", "status": "failed"}\n{"torn')
    Path("started/.hydra/config.yaml").write_text(
        "model: {source: embedded, name: embedded_resnet}\nreferences: {source: embedded, count: 2, seed: 0}\n"
    )
    Path("wrong.csv").write_text("picture,target\nclass-0.png,starr\n")
    arguments, words = MISTAKES[mistake]
    assert evaluate(*arguments, "hydra.run.dir=out", "trainer.accelerator=cpu") == MISTAKE
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("vital-evaluate: ")
    assert all(word in line for word in words), line


@pytest.mark.parametrize("option", [name for name in options_of("evaluation") if not name.startswith("_")])
def test_every_evaluation_composes_in_both_commands(option: str) -> None:
    for name in ("visualize", "evaluate"):
        group = compose_config([f"evaluation={option}"], name).evaluation
        assert chosen(group.metrics if isinstance(group.metrics, str) else list(group.metrics))
        settings_of(dict(group))


@pytest.mark.slow
def test_help_needs_no_torch() -> None:
    import subprocess

    code = (
        "import sys; sys.argv = ['x', '--help']\n"
        "from vital_exp.commands.evaluate import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "vital-evaluate run=" in done.stdout
