"""The scripts in tools/: the figures of the code, counted on a small package whose figures are known."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

import figures

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
    assert {figures.layer_of(module) for module in figures.Sources(ROOT).texts} <= set(range(len(figures.LAYERS)))
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
    assert figures.absent_documents(ROOT) == []


def test_a_folder_without_the_package_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert figures.main([str(tmp_path)]) == 2
    assert "vital_exp is needed" in capsys.readouterr().err
