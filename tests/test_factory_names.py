"""A misspelt function of a file, and a job's line about one that is spelled well."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest

from vital_exp.commands.sweep_lines import JobLines
from vital_exp.errors import UsageError
from vital_exp.models.factories import check_spelling


def test_only_the_nearest_function_is_suggested(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text("def make(): ...\n\n\ndef unlike(): ...\n")
    with pytest.raises(UsageError) as told:
        check_spelling(f"{path}:mak", "model.factory")
    assert str(told.value) == f"model.factory={path}:mak: {path} has no mak (did you mean {path}:make?)"


def test_a_job_line_leaves_out_a_shared_factory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["x", "model.factory=net.py:make", "method=maco,fourier"])
    record = logging.LogRecord("x", logging.INFO, "", 0, "\t#0 : model.factory=net.py\\:make method=maco", None, None)
    JobLines().filter(record)
    assert record.getMessage() == "job 0: method=maco"


@pytest.mark.parametrize(
    ("typed", "written"),
    [
        ("target.index=golden retriever", "target.index=golden\\ retriever"),
        ("target.index='golden retriever'", "target.index='golden retriever'"),
        ("model.class_names=[a cat, 'a dog']", "model.class_names=[a\\ cat,'a dog']"),
        ('references.root="my photos"', 'references.root="my photos"'),
    ],
)
@pytest.mark.parametrize("own", ["method=maco", "target.label='a b'", "target.label=a\\ b", 'target.label="it\'s one"'])
def test_a_job_line_keeps_values_with_spaces_whole(
    typed: str, written: str, own: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["x", typed, "seed=0"])
    record = logging.LogRecord("x", logging.INFO, "", 0, f"\t#3 : {written} {own} seed=0", None, None)
    JobLines().filter(record)
    assert record.getMessage() == f"job 3: {own}"
