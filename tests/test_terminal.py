"""What the terminal shows of a run: 80 columns, a column for each judge, what a class is taken for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from vital_exp.evaluation.recognition import first_predicted, predicted
from vital_exp.evaluation.table import metrics_text
from vital_exp.models.heads import NONE, Head
from vital_exp.reporting.summary import print_summary
from vital_exp.targets.class_names import ClassNames
from vital_exp.targets.unit import Target
from vital_exp.terminal_tables import WIDTH, Column, table_text
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


@pytest.mark.parametrize(("judges", "hidden"), [(0, False), (1, False), (3, False), (5, False), (0, True)])
def test_the_closing_lines_fit_into_80_columns(judges: int, hidden: bool, capsys: pytest.CaptureFixture[str]) -> None:
    print_summary(outcome(judges, hidden), Path("run/report.html"), {"objective": "activation", "batch_size": 2})
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= WIDTH
    assert out.splitlines()[-2:] == ["gallery: run/report.html", "next: vital-evaluate run=run metrics=all"]
    assert "loss: what was minimised (activation)" in out
    assert "seconds: 3.0 for 2 pictures made in batches of 2\n" in out
    assert "_v2 failed: the loss is nan" in out
    if hidden:
        assert "How readable" in out
        assert "50%" in out
    elif judges == 5:
        assert "0 of 5" in out
    else:
        assert out.splitlines()[0].count("by ") == judges
        assert "as bell" in out


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
    lines = table_text(columns, [["x" * 100, "1.234"], ["y\nz", "5\n6"]]).splitlines()
    assert [len(line) for line in lines][:3] == [80, 80, 80]
    assert lines[2].endswith("…  1.234")
    assert [line.split() for line in lines[3:]] == [["y", "5"], ["z", "6"]]


def test_a_note_is_told_once() -> None:
    missing = {"value": None, "low": None, "high": None, "n": 0, "reason": "not computed: needs a judge"}
    text = metrics_text({"fid": missing, "kid": missing, "activation_ratio": ENTRY}, hidden=False)
    assert text.splitlines()[-1] == "not computed: needs a judge: fid, kid"
    assert text.count("fid") == 1
