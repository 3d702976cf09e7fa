"""What the terminal shows of a run: 80 columns, a column for each judge, what a class is taken for."""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import ON_CPU, SHORT, command
from vital_exp.commands.announcement import announcement
from vital_exp.commands.hydra_app import MISTAKE
from vital_exp.commands.warnings_once import warnings_once
from vital_exp.config import compose_config, plain
from vital_exp.evaluation.recognition import first_predicted, predicted
from vital_exp.evaluation.table import metrics_text
from vital_exp.models.heads import NONE, Head
from vital_exp.reporting.summary import print_summary
from vital_exp.reporting.sweep_summary import sweep_text
from vital_exp.setup.request import Request
from vital_exp.targets.class_names import ClassNames
from vital_exp.targets.unit import Target
from vital_exp.terminal_tables import WIDTH, Column, table_text
from vital_exp.visualization.opening import Opening, described
from vital_exp.visualization.outcome import Outcome

JUDGES = ("vit_tiny_patch16_224.augreg_in21k_ft_in1k", "tf_efficientnet_lite0", "mobilenetv2_100", "a", "b")
ENTRY = {"value": 1234.5678, "low": 1157.044, "high": 1197.928, "n": 10}
LONG = "black-and-tan coonhound, a name that is longer than a column can be"


def outcome(judges: int, hidden: bool = False) -> Outcome:
    kind = ("channel", 3, "features.denseblock3.denselayer12.conv1") if hidden else ("class", 3)
    targets = [Target(*kind, variation=i, label=None if hidden else LONG) for i in (1, 2)]  # type: ignore[arg-type]
    row: dict[str, Any] = {"target": targets[0].name, "activation": 1.0, "activation_ratio": 0.5}
    for suffix in () if hidden else ("", *(f"[{name}]" for name in JUDGES[:judges])):
        row |= {f"top1{suffix}": 0, f"probability{suffix}": 0.1, f"predicted{suffix}": "bell cote 0.412; church 0.2"}
    known = {"label": targets[0].label, "seconds": 1.5, "activation": 1.0, "error": None}
    done = {"target": targets[0].name, "status": "done", "loss": {"total": -12.85}, **known}
    failed = {**done, "target": targets[1].name, "status": "failed", "loss": None, "error": "the loss is nan " * 9}
    names = ("activation_ratio", "correspondence_auc[{}]", "mis_pictures[{}]") if hidden else ("transfer_top1[{}]",)
    metrics = {name.format(judge): ENTRY for name in names for judge in JUDGES}
    return Outcome(targets=targets, results=[done, failed], rows=[row], metrics=metrics)


def test_the_next_command_keeps_the_judges(capsys: pytest.CaptureFixture[str]) -> None:
    judges = ["embedded_judge", {"name": "resnet18"}, "resnet50"]
    print_summary(outcome(0, False), Path("run/report.html"), {}, judges=judges)
    assert capsys.readouterr().out.endswith("run=run metrics=all judges=[embedded_judge,resnet50]\n")


@pytest.mark.parametrize(("judges", "hidden"), [(0, False), (1, False), (2, False), (5, False), (0, True)])
def test_the_closing_lines_fit_into_80_columns(judges: int, hidden: bool, capsys: pytest.CaptureFixture[str]) -> None:
    print_summary(outcome(judges, hidden), Path("run/report.html"), {"objective": "activation", "batch_size": 2})
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= WIDTH
    assert out.splitlines()[-2:] == ["gallery: run/report.html", "next: vital-evaluate run=run metrics=all"]
    assert "loss: the objective (activation)" in out
    assert "seconds: 3.0 for 2 pictures made in batches of 2\n" in out
    assert "_v2 failed: the loss is nan" in out
    if hidden:
        assert "How readable" in out
        assert "50%" in out
    elif judges == 5:
        assert "0 of 5" in out
    else:
        assert out.splitlines()[0].count("by ") == judges
        assert "as b" in out
        assert ", 0.41" in out


def test_what_a_class_is_taken_for() -> None:
    names = ClassNames(["star; of the sea", "bell cote", "tree"])
    scores = torch.tensor([[0.0, 2.0, 1.0], [torch.nan, 0.0, 0.0]])
    first, second = predicted(scores, Head(), names)
    assert first == "bell cote 0.665; tree 0.245; star; of the sea 0.090"
    assert first_predicted(first) == ("bell cote", "0.665")
    assert second == ""
    assert predicted(scores, Head(NONE), names) == predicted(scores[:, :1], Head(), names) == ["", ""]


def test_a_table_gives_way_where_it_may() -> None:
    columns = [Column("name", flexible=True), Column("value", right=True)]
    rows = [["x" * 100, "1.234"], ["x" * 100 + ", 0.41", "1.234"], ["y\nz", "5\n6"]]
    lines = table_text(columns, rows).splitlines()
    assert [len(line) for line in lines][:4] == [80] * 4
    assert lines[2].endswith("…  1.234")
    assert lines[3].endswith("x…, 0.41  1.234")
    assert [line.split() for line in lines[4:]] == [["y", "5"], ["z", "6"]]


def test_a_note_is_told_once() -> None:
    missing = {"value": None, "low": None, "high": None, "n": 0, "reason": "not computed: needs a judge"}
    text = metrics_text({"fid": missing, "kid": missing, "activation_ratio": ENTRY}, hidden=False)
    assert text.splitlines()[-1] == "not computed: needs a judge: fid, kid"
    assert text.count("fid") == 1


def test_what_a_run_says_before_its_first_step(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(*SHORT, *ON_CPU, "references.cache=true", f"cache_dir={workplace}/kept", "hydra.run.dir=run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:5] == [
        "preparing embedded_resnet: class 0, by vital",
        "network     embedded_resnet, 10 classes, on cpu",
        "targets     class-0 (star); by vital, 2 steps",
        "references  2 images of each target, drawn by code",
        f"run folder  {workplace}/run",
    ]
    asked = (*SHORT, *ON_CPU, "references.cache=true", f"cache_dir={workplace}/kept", "steps=100", "target.index=[0,1]")
    request = Request.from_config(compose_config(asked))
    batches = [[target] for target in request.targets]
    opening = str(Opening(request.setup, request.targets, batches, 1, 1))
    assert "drawn by code; statistics of 1 of 2 targets are in the cache" in " ".join(opening.split())
    assert "2 batches of 1, " in opening
    assert max(map(len, opening.splitlines())) <= WIDTH


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ((), "; ImageNet's mean and std (others: model.mean=, model.std=)"),
        (("model.mean=[0.5,0.5,0.5]",), "; ImageNet's std (others: model.std=)"),
        (("model.mean=[0.5,0.5,0.5]", "model.std=[0.5,0.5,0.5]"), ""),
    ],
)
def test_a_network_of_ones_own_is_told_which_pictures_it_gets(
    more: tuple[str, ...], said: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ("model=python", "model.factory=tests.tiny:cifar_resnet20", "model.size=32", "method=fourier", "steps=1")
    given = (*own, *more, *ON_CPU, "target.index=0", "evaluation=none", "hydra.run.dir=run")
    assert command(*given) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert f"10 classes, on cpu{said} targets" in told


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("target=channel", "target.layer=layer3"), "embedded_resnet: all channels of layer3, by vital"),
        (("target=circuit", "target.unit=class:0"), "a circuit of class:0 of embedded_resnet"),
        (("list=layers",), "the layers of embedded_resnet"),
        (("list=nonsense",), None),
    ],
)
def test_what_is_prepared(overrides: tuple[str, ...], said: str | None) -> None:
    config = compose_config(["model=embedded_resnet", *overrides])
    assert announcement(plain(config), "visualize") == (said and f"preparing {said}")


def test_a_sweep_ends_with_a_table(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = (*SHORT, *ON_CPU, "-m", "method=vital,maco", "seed=0,-1", "hydra.sweep.dir=sweep")
    assert command(*arguments) == MISTAKE
    out = capsys.readouterr().out
    assert "job 2: method=maco seed=0\n" in out
    assert "HYDRA" not in out
    lines = out.partition("\nsweep: ")[2].splitlines()
    assert lines[0] == "4 jobs in sweep"
    assert lines[1].split()[:4] == ["method", "jobs", "pictures", "seconds"]
    assert [line.split()[:3] for line in lines[3:5]] == [["vital", "1", "1"], ["maco", "1", "1"]]
    assert lines[5:] == [
        "seconds: per picture, the time of a batch divided by its pictures",
        "memory: MiB, the largest that a job held",
        "jobs 1, 3 failed: seed=-1: a whole number of at least 0",
        "next: vital-report runs=sweep",
    ]
    report = Path("sweep/report")  # where vital-report writes unless told otherwise: no job
    report.mkdir()
    (report / "report.html").touch()
    assert sweep_text(Path("sweep")).splitlines() == ["sweep: " + lines[0], *lines[1:]]


def test_a_warning_is_told_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [logging.StreamHandler(sys.stdout)])
    with warnings_once():
        for name in ("class-0", "class-1", "class-2"):  # pytest takes warnings to itself
            sys.stderr.write(warnings.formatwarning(f"{name}: 2 references", UserWarning, "a.py", 1))
            logging.getLogger("vital_exp").warning("%s keeps", "all")
    told = capsys.readouterr()
    assert told.out == "warning: all keeps\n"
    assert told.err.splitlines() == [
        "warning: class-0: 2 references",
        "warning: 2 times more of class-1, class-2: 2 references",
        "warning: 2 times more: all keeps",
    ]


def test_the_references_that_there_are_are_counted(tmp_path: Path) -> None:
    for place, count in (("star", 1), ("heart", 2), ("fish", 4)):
        (tmp_path / place).mkdir()
        for number in range(count):
            (tmp_path / place / f"{number}.png").touch()
    kind = ("references=folder", f"references.root={tmp_path}", "references.count=3", "target.index=[0,1,2]")
    request = Request.from_config(compose_config(["model=embedded_resnet", *kind]))
    few = described(request.setup.references, request.targets)
    assert few == f"1 to 3 images of each target from {tmp_path}"
    assert described(request.setup.references, request.targets[2:]) == few.replace("1 to 3", "3")
