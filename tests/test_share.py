"""The report that is sent to others: it opens elsewhere, and holds no path of this machine."""

from __future__ import annotations

import json
import os
import re
import shutil
import zipfile
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.chromium import Tab, tab
from tests.test_report import png, report, write_run
from vital_exp.reporting.share import PathNames

CLASSES = ("class-0", "class-1")


@pytest.fixture
def sweep(workplace: Path) -> Path:
    """Two runs whose files name folders of this machine everywhere."""
    for number, method in enumerate(("vital", "maco")):
        folder = workplace / "my sweep" / str(number)
        reason = (
            f"not computed: needs {workplace}/weights.pt and /home/jo/clip.safetensors: see https://example.org/a/b"
        )
        metrics = {
            "accuracy_top1": {"value": 0.5, "low": 0.1, "high": 0.9, "n": 2},
            "clip": {"value": None, "reason": reason},
        }
        write_run(folder, method, 0, {name: {"top1": 1.0} for name in CLASSES}, metrics)
        config = json.loads((folder / ".hydra/config.yaml").read_text())
        config |= {
            "references": {"root": f"{workplace}/my photos/val", "cache_dir": "~/.cache/x"},
            "note": "and/or 1/2",
        }
        (folder / ".hydra/config.yaml").write_text(json.dumps(config))
        (folder / "provenance.json").write_text(
            json.dumps({"command": f"vital-visualize references.root={workplace}/val"})
        )
        for name in CLASSES:
            png(folder / "images" / f"{name}.png", number)
            png(folder / "references" / f"{name}.jpg", number)
    failed = {"target": "class-9", "status": "failed", "error": f"no such file: {workplace}/gone.png"}
    with (workplace / "my sweep/1/results.jsonl").open("a") as file:
        file.write(json.dumps(failed) + "\n")
    return workplace / "my sweep"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with tab(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


class Links(HTMLParser):
    """Where a page's links go."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for key, value in attrs if key in ("href", "src") and value]


def test_a_shared_report_holds_no_path_of_this_machine_and_opens_elsewhere(
    sweep: Path, chromium: Tab, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(f"runs='{sweep}'", "out=r", "share=true") == 0
    assert "to share: r/shared.zip" in capsys.readouterr().out
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    with zipfile.ZipFile("r/shared.zip") as packed:
        packed.extractall(elsewhere)
    shutil.rmtree("r/shared")
    files = [path for path in elsewhere.rglob("*") if path.is_file()]
    assert {"report.html", "table.json", "shared/runs/000-0/images/class-0.png"} & {path.name for path in files}
    private = [str(sweep.parent), os.path.realpath(sweep.parent), str(Path.home()), "/home/jo", "~/.cache", "/tmp/"]
    for path in files:
        content = path.read_bytes()
        assert [one for one in private if one.encode() in content] == [], path
    page = elsewhere / "shared/report.html"
    assert "clip.safetensors" in (elsewhere / "shared/table.json").read_text()  # the name is told
    for one in (page, elsewhere / "shared/runs/000-0/report.html"):
        for link in Links(one).found:
            assert link.startswith(("#", "data:")) or (one.parent / link).exists(), link
    sweep.rename(sweep.with_name("gone"))
    chromium.open(page)
    chromium.ask("document.querySelector('button.cell').click()")
    chromium.wait("document.querySelector('dialog .large').naturalWidth == 16 && document.querySelector('dialog pre')")
    assert "root: val" in chromium.ask("document.querySelector('dialog pre').textContent")
    assert "note: and/or 1/2" in chromium.ask("document.querySelector('dialog pre').textContent")
    assert all(address.startswith((elsewhere.resolve().as_uri(), "data:")) for address in chromium.requests())
    assert chromium.complaints() == []


def test_a_report_is_shared_again_but_nothing_else_is_replaced(sweep: Path) -> None:
    assert report(f"runs='{sweep}'", "share=true") == 0
    assert report(f"runs='{sweep}'", "share=true") == 0  # the copies are no runs
    page = sweep / "report/shared/report.html"
    assert len(re.findall(r'<li><a href="runs/', page.read_text())) == 2
    page.unlink()
    assert report(f"runs='{sweep}'", "share=true") == 2


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("/data/imagenet/val", "val"),
        ("root=/data/a b=../x/y", "root=a b=y"),
        ("see https://example.org/a/b, </pre> and/or 1/2", "see https://example.org/a/b, </pre> and/or 1/2"),
        (r"C:\Users\jo\net.pt", "net.pt"),
        ("file:///home/jo/x.png", "x.png"),
        ("images:/data/a, ~jo/b", "images:a, b"),
        ("'/data/x': gone", "'x': gone"),
    ],
)
def test_names_stand_for_paths(text: str, named: str) -> None:
    assert PathNames().in_text(text) == named


def test_two_paths_with_one_name_stay_apart() -> None:
    names = PathNames()
    config = {"a": "/x y/val", "b": ["/z/val", "/x y/val"], "c": 3}
    assert names.in_value(config) == {"a": "val", "b": ["val (2)", "val"], "c": 3}
