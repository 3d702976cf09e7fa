"""The examples in docstrings are true: each is run, and says what its comment says."""

from __future__ import annotations

import doctest
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import vital_exp

ROOT = Path(vital_exp.__file__).parent
LEAST = 40  # examples that the documentation promises


def with_examples() -> list[str]:
    """The modules that have an example in a docstring."""
    files = [path for path in sorted(ROOT.rglob("*.py")) if ">>> " in path.read_text(encoding="utf-8")]
    return [".".join(path.relative_to(ROOT.parent).with_suffix("").parts) for path in files]


def examples_of(module: ModuleType) -> list[doctest.DocTest]:
    return [test for test in doctest.DocTestFinder(exclude_empty=True).find(module) if test.examples]


@pytest.mark.parametrize("name", with_examples())
def test_examples_are_true(name: str) -> None:
    runner = doctest.DocTestRunner(verbose=False)
    for test in examples_of(import_module(name)):
        test.globs = {"__name__": "__main__"}  # an example imports what it needs, as a reader would
        told: list[str] = []
        runner.run(test, out=told.append)
        assert not told, "".join(told)


def test_there_are_as_many_as_promised() -> None:
    assert sum(len(examples_of(import_module(name))) for name in with_examples()) >= LEAST
