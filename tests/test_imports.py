import gc
import importlib.metadata
import subprocess
import sys

import pytest

from vital_exp.commands.imports import uncollected


@pytest.fixture(autouse=True)
def thawed():
    yield
    gc.unfreeze()


def test_modules_are_imported_without_collections_and_frozen(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "imported_by_a_test.py").write_text("import gc\nenabled = gc.isenabled()\n")
    with uncollected():
        import imported_by_a_test
    assert not imported_by_a_test.enabled
    assert gc.isenabled()
    assert gc.get_freeze_count() > 0
    del sys.modules["imported_by_a_test"]


def test_where_nothing_is_imported_nothing_is_frozen():
    before = gc.get_freeze_count()
    with uncollected():
        import json  # noqa: F401
    assert gc.get_freeze_count() == before
    assert gc.isenabled()


def test_who_has_switched_the_collector_off_keeps_it_off():
    gc.disable()
    try:
        with uncollected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


POSTPONED = """
import sys
from vital_exp.commands.imports import uncollected
with uncollected():
    pass
assert "torchmetrics" not in sys.modules
with uncollected():
    import lightning.pytorch
print([name for name in ("torchmetrics.functional", "transformers", "scipy.signal") if name in sys.modules])
import torchmetrics
from lightning.pytorch.utilities.types import Metric
print(Metric is torchmetrics.Metric, hasattr(torchmetrics, "__nothing__"), torchmetrics.__version__)
print(torchmetrics.MeanMetric()([1.0, 3.0]), torchmetrics.Accuracy.__name__, type(torchmetrics).__name__)
from torchmetrics.classification import Accuracy
from torchmetrics.image.fid import FrechetInceptionDistance
print(issubclass(FrechetInceptionDistance, Metric))
"""


def test_metrics_are_imported_when_they_are_asked_for():
    done = subprocess.run([sys.executable, "-W", "error", "-c", POSTPONED], capture_output=True, text=True, check=True)
    version = importlib.metadata.version("torchmetrics")
    assert done.stdout.splitlines() == ["[]", f"True False {version}", "tensor(2.) Accuracy module", "True"]
