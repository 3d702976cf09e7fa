"""The notebooks of the tutorials run from top to bottom, and what they print says what their text says."""

from __future__ import annotations

import json
import os
import re
import sysconfig
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "tutorials"
NOTEBOOKS = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
LARGEST = 200_000  # bytes of a notebook with its outputs


def printed(cells: list[Any]) -> str:
    """Everything that the cells print."""
    return "".join("".join(out.get("text", "")) for cell in cells for out in cell.get("outputs", []))


def stored(name: str) -> list[Any]:
    """The code cells of a notebook, as they are committed."""
    cells = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def numbers(name: str, metric: str) -> list[float]:
    """The numbers that a notebook prints in the row of a metric."""
    (row,) = re.findall(rf"^{re.escape(metric)} +([\d. ]+)$", printed(stored(name)), re.M)
    return [float(value) for value in row.split()]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_holds_small_outputs_of_one_run(name: str) -> None:
    assert (FOLDER / f"{name}.ipynb").stat().st_size <= LARGEST
    assert [cell["execution_count"] for cell in stored(name)] == list(range(1, len(stored(name)) + 1))
    kinds = {kind for cell in stored(name) for out in cell["outputs"] for kind in out.get("data", {})}
    assert kinds & {"image/jpeg", "image/svg+xml"}
    assert "/tmp" not in printed(stored(name))


def test_methods_differ_in_what_the_notebooks_show() -> None:
    sure, way = numbers("own_model", "probability[embedded_judge]"), numbers("own_model", "path_similarity")
    assert sure[0] > sure[1]
    assert way[0] > way[1]
    judged = numbers("hidden_units", "correspondence_auc[embedded_judge]")
    grain = numbers("hidden_units", "high_frequency_ratio")
    assert judged[0] > judged[1]
    assert grain[0] < grain[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
@pytest.mark.filterwarnings("ignore")  # of Jupyter's own
def test_a_notebook_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("PATH", sysconfig.get_path("scripts") + os.pathsep + os.environ["PATH"])
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    for cell in notebook.cells:  # fewer steps, and no UMAP, which compiles itself; everything else as it stands
        cell.source = re.sub(r"steps=\d+", "steps=4", re.sub(r'"steps": \d+', '"steps": 4', cell.source))
        cell.source = cell.source.replace("vital-atlas ", "vital-atlas map=pca ")
    where = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=where).execute()
    assert "Traceback" not in printed(notebook.cells)
