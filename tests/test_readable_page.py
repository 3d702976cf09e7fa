"""The table "How readable" in galleries and reports of hidden units, by eye of a real browser too."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.chromium import Tab, tab
from tests.test_gallery import Page
from tests.tiny import exit_code
from vital_exp.commands.hydra_app import SOME_FAILED
from vital_exp.commands.report import main
from vital_exp.reporting.combined import HEADLINES, combine
from vital_exp.reporting.gallery import write_gallery
from vital_exp.reporting.metric_words import WORDS, metric_title
from vital_exp.reporting.sweep import find_runs, read_sweep

HOSTILE = "<b>judge</b>"
PHONE = 390  # pixels


def entry(value: float | None, reason: str = "") -> dict[str, Any]:
    if value is None:
        return {"value": None, "low": None, "high": None, "n": 0, "reason": reason}
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "n": 4}


def metrics(level: float, judge: str = HOSTILE) -> dict[str, dict[str, Any]]:
    return {
        f"correspondence_auc[{judge}]": entry(level),
        f"correspondence_auc_natural[{judge}]": entry(0.83),
        "activation_ratio": entry(0.9),
        "activation_ratio_others": entry(0.21),
        "path_similarity": entry(None, "not computed: needs natural images of at least 2 targets"),
        "high_frequency_ratio": entry(4.0),
        "cosy_auc": entry(0.77),
    }


def write_run(
    folder: Path, method: str, found: Mapping[str, Any], layer: str | None = "layer1", rows: str = "", seed: int = 0
) -> Path:
    (folder / ".hydra").mkdir(parents=True)
    config = {"model": {"name": "net"}, "method": {"name": method}, "seed": seed, "target": {"index": "all"}}
    (folder / ".hydra/config.yaml").write_text(json.dumps(config))
    kind = "class" if layer is None else "channel"
    lines = [
        {"target": f"{kind}-{number}", "kind": kind, "layer": layer, "index": number, "status": "done", "seconds": 2.0}
        for number in range(2)
    ]
    (folder / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "metrics.json").write_text(json.dumps(found))
    if rows:
        (folder / "metrics.csv").write_text(rows)
    return folder


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with tab(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def test_the_gallery_of_hidden_units_shows_each_number_beside_its_ceiling_and_floor(tmp_path: Path) -> None:
    write_gallery(write_run(tmp_path / "run", "vital", metrics(0.62)))
    page = Page(tmp_path / "run/report.html")
    cells = page.texts["td"]
    for number in ("0.620", "0.520 to 0.720", "0.830", "0.500", "by construction", "0.900", "0.210", "by definition"):
        assert number in cells
    assert "needs natural images of at least 2 targets" in cells
    assert f"{HOSTILE} compares the picture" in page.texts["th"]  # as text, not as a tag
    assert "CoSy AUC" in page.texts["dl"]
    assert "activation ratio" not in page.texts["dl"]


def test_pages_of_classes_and_unscored_units_have_no_such_table(tmp_path: Path) -> None:
    write_gallery(write_run(tmp_path / "classes", "vital", metrics(0.62), layer=None))
    page = Page(tmp_path / "classes/report.html")
    assert page.all("table", class_="readable") == []
    assert "activation ratio" in page.texts["dl"]
    write_gallery(write_run(tmp_path / "unscored", "vital", {}))
    assert Page(tmp_path / "unscored/report.html").all("table", class_="readable") == []


def test_a_damaged_metrics_file_leaves_the_table_standing(tmp_path: Path) -> None:
    damaged = {"activation_ratio": 0.5, "own_unit_first": {}, f"correspondence_auc[{HOSTILE}]": {"value": "much"}}
    write_gallery(write_run(tmp_path / "run", "vital", damaged))
    assert "0.500" in Page(tmp_path / "run/report.html").texts["td"]


def test_a_report_sets_methods_side_by_side(workplace: Path, chromium: Tab) -> None:
    for number, (method, level) in enumerate((("vital", 0.9), ("fourier", 0.55), ("maco", 0.6))):
        write_run(workplace / f"sweep/{number}", method, metrics(level, "judge"))
    write_run(workplace / "sweep/3", "other", {"activation_ratio": entry(0.5)})
    assert exit_code(main, "runs=sweep", "out=r") == SOME_FAILED  # there are no pictures
    lines = Path("r/table.md").read_text().splitlines()
    start = lines.index("## How readable: net")
    assert lines[start + 2].count("natural") == 4
    found = next(line for line in lines if line.startswith("| correspondence_auc[judge] | 0.900"))
    assert found.split(" | ")[1:4] == ["0.900 (0.800 to 1.000)", "0.830 (0.730 to 0.930)", "0.500"]
    assert found.endswith("|  |  |  |")  # the last method has no such number
    assert "- correspondence_auc[judge]: judge compares the picture" in "\n".join(lines[start:])

    for width in (1280, PHONE):
        chromium.open(Path("r/report.html"), width=width)
        assert chromium.ask("document.querySelectorAll('.readable tbody tr').length") == 4
        assert chromium.ask("document.documentElement.scrollWidth") <= width
    assert chromium.ask("getComputedStyle(document.querySelector('.readable tbody tr')).display") == "grid"
    assert chromium.complaints() == []


def test_a_phone_shows_the_gallery_s_table_without_scrolling(tmp_path: Path, chromium: Tab) -> None:
    page = write_gallery(write_run(tmp_path / "run", "vital", metrics(0.62, "vit_tiny_patch16_224")))
    chromium.open(page, width=PHONE, dark=True)
    frame = "document.querySelector('.readable-frame')"
    assert chromium.ask(f"{frame}.scrollWidth <= {frame}.clientWidth")
    assert chromium.complaints() == []


def test_ratios_are_pooled_by_their_geometric_mean(tmp_path: Path) -> None:
    rows = "target,high_frequency_ratio\nchannel-0,2.0\nchannel-1,0.5\n"
    write_run(tmp_path / "0", "vital", {"high_frequency_ratio": entry(1.0)}, rows=rows)
    table = combine(read_sweep(find_runs([tmp_path])))
    cell = table.cells["net", "vital", "high_frequency_ratio"]
    assert (cell.value, cell.low, cell.high) == pytest.approx((1, 0.5, 2))


def test_metrics_have_titles() -> None:
    assert metric_title("path_similarity[model.stages.1]") == "path similarity, model.stages.1"
    assert metric_title("mis_pictures[resnet50]") == "told apart by ResNet-50 (MIS)"
    assert metric_title("mis_pictures") == "told apart by another network (MIS)"
    assert metric_title("crops_top1") == "crops recognised by the network itself"
    assert metric_title("crops_top1[resnet50]") == "crops recognised by ResNet-50"
    assert metric_title("fid[target]") == "FID, target"
    shown = {name for name in HEADLINES if not name.startswith("study_")} - set(WORDS)
    assert shown == set()
