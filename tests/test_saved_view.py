"""The saved view of Weights & Biases, as an object of wandb-workspaces read back, and what is said without it."""

from __future__ import annotations

import importlib.util
import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.test_report import png, write_run
from vital_exp.reporting import saved_view
from vital_exp.reporting.report import Report, write_report

OFFLINE = SimpleNamespace(offline=True, entity="me", project="pictures", id="ofreport")
ONLINE = SimpleNamespace(offline=False, entity="me", project="pictures", id="ofreport")


@pytest.fixture(scope="module", autouse=True)
def library() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its models are of an earlier pydantic
        return pytest.importorskip("wandb_workspaces.reports.v2")


def sweep_report(folder: Path, logged: bool = True) -> Report:
    """A report about a job of VITAL and one of MACO, whose losses are of two kinds."""
    sweep = folder / "2026-01-01" / "12-00-00"
    for number, (method, term) in enumerate((("vital", "alignment"), ("maco", "activation"))):
        run = sweep / str(number)
        write_run(run, method, 0, {"class-0": {"top1": 1.0}}, {"accuracy_top1": {"value": 1.0, "n": 1}})
        png(run / "images/class-0.png", number)
        (run / "history.csv").write_text(f"target,step,{term},total\nclass-0,0,2.0,2.0\nclass-0,1,1.0,1.0\n")
        if logged:
            config = json.loads((run / ".hydra/config.yaml").read_text())
            config["logger"] = {"project": "pictures"}
            (run / ".hydra/config.yaml").write_text(json.dumps(config))
            for day in (1, 2):  # the job was started twice
                (run / "wandb" / f"offline-run-2026010{day}_120000-job{number}start{day}").mkdir(parents=True)
    (sweep / "multirun.yaml").touch()
    return write_report([sweep], folder / "report")


def read_back(view: Any) -> list[tuple[str, list[str], list[Any]]]:
    """Headings, ids of runs and panels, of the specification that would be sent."""
    sent = view._to_model().model_dump_json(by_alias=True, exclude_none=True)  # as its save() sends it
    blocks = type(view)._from_model(type(view._to_model()).model_validate_json(sent)).blocks
    ids = [json.loads(grid.runsets[0].filters.partition(" in ")[2].replace("'", '"')) for grid in blocks[1::2]]
    return [(heading.text, own, grid.panels) for heading, own, grid in zip(blocks[::2], ids, blocks[1::2], strict=True)]


def test_methods_stand_side_by_side(tmp_path: Path) -> None:
    report = sweep_report(tmp_path)
    view = saved_view.build(report, "me", "pictures", "ofreport")
    assert (view.entity, view.project, view.title) == ("me", "pictures", "resnet50: vital, maco")
    table, plots, pictures, charts = read_back(view)
    jobs = ["job0start2", "job1start2"]
    assert [ids for _, ids, _ in (table, plots, pictures, charts)] == [["ofreport"], ["ofreport"], jobs, jobs]
    assert [panel.table_name for panel in table[2]] == ["pictures"]
    keys = [key for panel in plots[2] for key in panel.media_keys]
    assert keys == [f"plots/{path.stem}" for path in report.plots]
    assert "plots/resnet50-accuracy_top1" in keys
    (panel,) = pictures[2]
    assert (panel.media_keys, panel.gallery_axis) == (["pictures/class-0"], "run")
    assert not overlapping(charts[2])


def test_metrics_are_by_method_and_against_seconds_and_losses_by_kind(tmp_path: Path, library: Any) -> None:
    *_, (_, _, charts) = read_back(saved_view.build(sweep_report(tmp_path), "me", "pictures", "ofreport"))
    (bars,) = [panel for panel in charts if isinstance(panel, library.BarPlot)]
    assert (bars.metrics, bars.groupby) == ([library.Metric("metric/accuracy_top1")], library.Config("method.name"))
    (scatter,) = [panel for panel in charts if isinstance(panel, library.ScatterPlot)]
    assert (scatter.x.name, scatter.y.name) == ("seconds", "metric/accuracy_top1")
    lines = [panel for panel in charts if isinstance(panel, library.LinePlot)]
    assert [[y.name for y in panel.y] for panel in lines] == [["loss/alignment/total"], ["loss/activation/total"]]


def overlapping(panels: list[Any]) -> bool:
    boxes = [panel.layout for panel in panels]
    places = [(x, box.y) for box in boxes for x in range(box.x, box.x + box.w)]
    return len(places) != len(set(places))


def test_jobs_that_were_not_logged_are_left_out(tmp_path: Path) -> None:
    report = sweep_report(tmp_path, logged=False)
    assert len(read_back(saved_view.build(report, "me", "pictures", "ofreport"))) == 2
    assert saved_view.project_of(report.runs) is None
    assert saved_view.save(report, OFFLINE).endswith("the jobs themselves were not logged (logger=wandb)")


def test_without_the_library_or_a_server_one_line_says_how_to_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = sweep_report(tmp_path)
    how = "in the project pictures filter Group = 2026-01-01/12-00-00 and group by method.name"
    assert saved_view.save(report, OFFLINE) == f"wandb: no saved view without a login and the server; {how}"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    line = saved_view.save(report, ONLINE)
    assert line == f'wandb: no saved view without wandb-workspaces (pip install "vital-exp[workspaces]"); {how}'


def test_a_view_is_saved_or_the_reason_told(tmp_path: Path, library: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    report = sweep_report(tmp_path)
    saved = []

    def refused(view: Any) -> None:
        raise ValueError("no permission\nand more")

    monkeypatch.setattr(library.Report, "save", refused)
    assert saved_view.save(report, ONLINE).startswith("wandb: no saved view (no permission); in the project pictures")
    monkeypatch.setattr(library.Report, "save", lambda view: saved.append(view))
    monkeypatch.setattr(library.Report, "url", "https://example.org/view")
    assert saved_view.save(report, ONLINE) == "wandb: saved view: https://example.org/view"
    assert [view.project for view in saved] == ["pictures"]
