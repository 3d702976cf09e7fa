"""The notebook of the examples runs as it stands, and holds the pictures that it makes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

NOTEBOOK = Path(__file__).resolve().parents[1] / "examples" / "quickstart.ipynb"


def pictures(cells: list[Any]) -> list[str]:
    """The kinds of picture in the outputs of cells."""
    kinds = ("image/png", "image/svg+xml")
    return [kind for cell in cells for out in cell.get("outputs", []) for kind in out.get("data", {}) if kind in kinds]


def test_the_notebook_holds_its_pictures() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))  # run once, from top to bottom
    assert pictures(code) == ["image/png", "image/png", "image/svg+xml"]


@pytest.mark.filterwarnings("ignore")  # of Jupyter's own
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    stored = pictures(notebook.cells)
    for cell in notebook.cells:
        cell.source = cell.source.replace("steps=200", "steps=10")
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()  # raises the error of a cell
    assert pictures(notebook.cells) == stored
    printed = "".join(out.get("text", "") for cell in notebook.cells for out in cell.get("outputs", []))
    assert printed.count("transfer_top1[embedded_judge]") == 3  # two tables of scores, and the report
