"""The scripts in tools/: figures of a small package, and bits that are the same, or are not."""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from tests.test_manual import MADE

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

import figures
import follow
import same_bits

ROOT = Path(__file__).resolve().parents[1]
LINES = 55  # of a function that is too long


def package(root: Path, files: Mapping[str, str]) -> Path:
    """Write files of a checkout and return its root."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_lengths_count_from_def_to_the_last_line(tmp_path: Path) -> None:
    long = "def slow():\n" + "    step()\n" * (LINES - 1)
    short = 'class Step:\n    def one(self):\n        """Return 1."""\n        return 1\n'
    sources = figures.Sources(package(tmp_path, {"vital_exp/engine/step.py": long + short}))
    assert [(f.place, f.lines) for f in sources.functions()] == [
        ("vital_exp.engine.step.slow", LINES),
        ("vital_exp.engine.step.one", 3),
    ]
    lines = figures.report(tmp_path)
    assert "files: 1" in lines
    assert f"lines: {LINES + 4}" in lines
    assert f"    vital_exp.engine.step.slow: {LINES}" in lines
    assert f"longest function: {LINES} lines, vital_exp.engine.step.slow" in lines


def test_lines_of_code_and_open_mappings(tmp_path: Path) -> None:
    code = 'DATA: dict[str, Any] = {\n    "a": 1,  # first\n}\n# alone\ntext = """one\ntwo"""\n'
    text = f'"""A page\nin two lines."""\n\n{code}'
    sources = figures.Sources(package(tmp_path, {"vital_exp/engine/step.py": text}))
    assert (sources.code_lines(), sources.open_mappings()) == (5, 1)


FILES, CLIMBS = 35, 25  # that a target may enter and make on its way from the command line to its picture


@pytest.mark.parametrize("keys", [["target.index=3"], ["target=channel", "target.layer=layer2", "target.index=3"]])
def test_the_way_of_a_target_is_short(keys: list[str]) -> None:
    way = follow.follow([*keys, "references.count=4"])
    assert 10 < len(set(way.stays)) <= FILES
    assert 0 < len(way.climbs) <= CLIMBS
    assert {"vital_exp.setup.request", "vital_exp.visualization.run", "vital_exp.runs.folder"} <= set(way.stays)


def test_imports_count_wherever_they_stand(tmp_path: Path) -> None:
    files = {
        "vital_exp/models/a.py": "if TYPE_CHECKING:\n    from vital_exp.models import b\n",
        "vital_exp/models/b.py": "def late():\n    import vital_exp.models.c\n",
        "vital_exp/models/c.py": "from vital_exp.models.a import name\nimport torch\n",
        "vital_exp/models/d.py": "from vital_exp.models.a import other\n",
    }
    imports = figures.Sources(package(tmp_path, files)).imports
    assert imports["vital_exp.models.a"] == {"vital_exp.models.b"}
    assert imports["vital_exp.models.b"] == {"vital_exp.models.c"}
    assert imports["vital_exp.models.c"] == {"vital_exp.models.a"}
    assert figures.circles(imports) == [["vital_exp.models.a", "vital_exp.models.b", "vital_exp.models.c"]]


def test_upward_imports_are_those_of_a_higher_layer(tmp_path: Path) -> None:
    files = {
        "vital_exp/errors.py": "",
        "vital_exp/targets/unit.py": "import vital_exp.errors\nfrom vital_exp.models.taps import OUTPUT\n",
        "vital_exp/models/taps.py": "from vital_exp.targets.unit import Target\n",
    }
    imports = figures.Sources(package(tmp_path, files)).imports
    assert figures.upward_imports(imports) == [("vital_exp.targets.unit", "vital_exp.models.taps")]


def test_every_file_of_the_package_has_a_layer() -> None:
    assert {figures.layer_of(module) for module in figures.Sources(ROOT).texts} <= set(range(len(figures.layers())))
    with pytest.raises(KeyError, match="no layer"):
        figures.layer_of("vital_exp.attic.box")


def test_names_of_configurations_and_any_are_counted(tmp_path: Path) -> None:
    files = {
        "vital_exp/config.py": "from omegaconf import DictConfig\ndef keys(c: Any) -> Any: ...\n",
        "vital_exp/errors.py": "def text(config) -> str:\n    return 'DictConfig'\n",
    }
    sources = figures.Sources(package(tmp_path, files))
    assert sources.naming("DictConfig", "OmegaConf") == ["vital_exp.config"]
    assert sources.count("Any") == 2
    assert sources.open_mappings() == 0


def test_documents_that_are_not_there_are_told_with_their_line(tmp_path: Path) -> None:
    note = "METHODS"  # in this file's own code it is no comment
    code = f'"""Sorts (docs/sorts.md, docs/gone.md)."""\n\nX = {note}[0]  # {note} 1.2; not module.{note}\n'
    page = "[one](gone.md) [two](../conf/base.yaml#top) [web](https://example.org/a.md)\n"
    files = {"vital_exp/errors.py": code, "docs/sorts.md": page, "conf/base.yaml": "a: 1 # see docs/none.md\n"}
    assert figures.absent_documents(package(tmp_path, files)) == [
        f"vital_exp/errors.py:3: {note}",
        "vital_exp/errors.py:1: docs/gone.md",
        "conf/base.yaml:1: docs/none.md",
        "docs/sorts.md:1: gone.md",
    ]


def test_no_document_is_mentioned_that_is_not_in_the_repository() -> None:
    absent = [mention.split(": ") for mention in figures.absent_documents(ROOT)]
    made = {str(page) for page in MADE}  # with the site
    assert [one for one in absent if str((ROOT / one[0].split(":")[0]).parent / one[1]) not in made] == []


def test_a_folder_without_the_package_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert figures.main([str(tmp_path)]) == 2
    assert "vital_exp is needed" in capsys.readouterr().err


# --- the same bits --------------------------------------------------------------------------------------------------


def run_folder(folder: Path, seconds: float = 1.0, loss: float = 0.5, pixel: int = 7, note: str = "") -> Path:
    """Write what a run computes, and things that the clock decides."""
    (folder / "images").mkdir(parents=True)
    Image.fromarray(np.full((2, 2, 3), pixel, np.uint8)).save(folder / "images/class-0.png", pnginfo=None)
    result = {"target": "class-0", "loss": {"total": loss}, "seconds": seconds, "memory": seconds, "config_hash": note}
    (folder / "results.jsonl").write_text(json.dumps(result) + "\n")
    (folder / "metrics.json").write_text(json.dumps({"accuracy": {"value": loss}, "seconds": {"value": seconds}}))
    (folder / "metrics.csv").write_text(f"target,top1,seconds\nclass-0,{loss},{seconds}\n")
    (folder / "provenance.json").write_text(json.dumps({"time": seconds}))
    save_file({"directions": np.full(3, loss, np.float32)}, folder / "concepts.safetensors")
    with sqlite3.connect(folder / "index.sqlite") as index:
        index.execute("CREATE TABLE units (layer, channel, side, region, rank, image, activation)")
        index.execute("INSERT INTO units VALUES ('layer3', 0, 'top', 'image', 1, 'a.png', ?)", (loss,))
        index.execute("CREATE TABLE meta (key, value)")
        index.execute("INSERT INTO meta VALUES ('time', ?)", (seconds,))
    index.close()
    return folder


COMPUTED = {"results.jsonl", "metrics.json", "metrics.csv", "concepts.safetensors", "index.sqlite"}


def test_seconds_memory_and_names_of_configurations_are_not_hashed(tmp_path: Path) -> None:
    first = same_bits.hashes_of(run_folder(tmp_path / "a"))
    assert set(first) == {*COMPUTED, "images/class-0.png"}
    assert first == same_bits.hashes_of(run_folder(tmp_path / "b", seconds=2.0, note="renamed"))


def test_whatever_is_computed_is_hashed(tmp_path: Path) -> None:
    first = same_bits.hashes_of(run_folder(tmp_path / "a"))
    loss, pixel = (
        run_folder(tmp_path / name, **changed) for name, changed in (("b", {"loss": 0.6}), ("c", {"pixel": 8}))
    )
    assert {name for name, value in same_bits.hashes_of(loss).items() if value != first[name]} == COMPUTED
    different = {name for name, value in same_bits.hashes_of(pixel).items() if value != first[name]}
    assert different == {"images/class-0.png"}


def test_differences_are_named_and_what_was_not_run_is_not_compared() -> None:
    before = {"demo": {"a.png": "1", "b.png": "2", "c.png": "3"}, "mining": {"index.sqlite": "4"}}
    now = {"demo": {"a.png": "1", "b.png": "9", "d.png": "3"}, "circuit": {"a.png": "1"}}
    lines = ["demo: b.png differs", "demo: c.png is missing", "demo: d.png is new"]
    assert same_bits.differences(before, now) == lines
    assert same_bits.differences(before, before) == []


@pytest.mark.slow
def test_a_run_is_recorded_and_a_bit_that_has_changed_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "before.json"
    assert same_bits.main(["--only", "mining", "--out", str(file)]) == 0
    recorded = json.loads(file.read_text())
    assert {"index.sqlite", "sheets/layer3/0.jpg"} <= set(recorded["runs"]["mining"])
    monkeypatch.setattr(same_bits, "record", lambda *_: recorded)
    asked = ["--only", "mining", "--compare", str(file)]
    assert same_bits.main(asked) == 0
    recorded["runs"]["mining"]["index.sqlite"] = "0"
    assert same_bits.main(asked) == 1
    assert capsys.readouterr().out.splitlines() == ["every bit is the same", "mining: index.sqlite differs"]


def test_runs_of_real_networks_are_skipped_with_a_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("VITAL_TEST_DATA", raising=False)
    monkeypatch.setattr(same_bits, "record", lambda *_: {"torch": "", "runs": {}, "failed": []})
    assert same_bits.main(["--only", "cifar_vital"]) == 0
    assert "cifar_vital: skipped, it needs real networks" in capsys.readouterr().out


def test_a_checkout_without_the_package_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        same_bits.main(["--checkout", str(tmp_path)])
    assert end.value.code == 2
    assert "a folder that holds vital_exp is needed" in capsys.readouterr().err
