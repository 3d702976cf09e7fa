import gc
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
