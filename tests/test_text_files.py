"""Text that users hand over, as editors of every system write it: the names and words in it, or one line."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.test_hostile_input import one_line
from vital_exp.errors import UsageError
from vital_exp.evaluation.clip import vocabulary
from vital_exp.evaluation.pictures import _in_table
from vital_exp.evaluation.study import _content
from vital_exp.targets.class_name_files import read_class_names
from vital_exp.targets.class_names import ClassNames
from vital_exp.text_files import read_text

NAMES = ("cat", "Füchse", "dog, hound", "owl")
WRITTEN: dict[str, Callable[[str], bytes]] = {
    "plain": str.encode,
    "Windows": lambda text: text.replace("\n", "\r\n").encode("utf-8-sig"),
    "old Mac": lambda text: text.replace("\n", "\r").encode(),
    "UTF-16": lambda text: codecs.BOM_UTF16_LE + text.encode("utf-16-le"),
    "UTF-16, big end first": lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
    "UTF-32": lambda text: codecs.BOM_UTF32_LE + text.encode("utf-32-le"),
}
# Names in their order, in every form that a file can have.
FORMS: dict[str, tuple[str, str]] = {
    "lines": ("txt", "cat\nFüchse\ndog, hound\nowl\n"),
    "blank lines": ("txt", "\n  cat\nFüchse  \n\n\ndog, hound\n \t\nowl"),
    "one column": ("csv", "cat\nFüchse\nowl\ndog"),
    "list": ("json", json.dumps(NAMES)),
    "by number": ("json", json.dumps({"1": "Füchse", "0": "cat", "3": "owl", "2": "dog, hound"}, ensure_ascii=False)),
    "numbers by name": ("json", '{"owl": 3,\n "cat": 0, "dog, hound": 2, "Füchse": 1}'),
}


@pytest.mark.parametrize("form", FORMS)
def test_names_however_they_are_written(form: str, tmp_path: Path) -> None:
    suffix, text = FORMS[form]
    for encode in WRITTEN.values():
        path = tmp_path / f"names.{suffix}"
        path.write_bytes(encode(text))
        assert read_class_names(path) == (("cat", "Füchse", "owl", "dog") if suffix == "csv" else NAMES)


def test_names_that_need_no_file_or_have_synonyms(tmp_path: Path) -> None:
    assert read_class_names({1: "dog", 0: "cat"}) == ("cat", "dog")
    assert read_class_names(["\ufeffcat", 7]) == ("cat", "7")
    assert read_class_names(["1", "2", "0"]) == ("1", "2", "0")
    path = tmp_path / "index.json"
    path.write_text('{"0": ["n01440764", "tench"], "1": ["n01443537", "goldfish"]}')
    names = ClassNames(read_class_names(str(path)))
    assert (names.label(1), names.find("n01440764")) == ("goldfish", 0)
    (tmp_path / "digits.txt").write_text("0\n1\n2\n")
    assert read_class_names(tmp_path / "digits.txt") == ("0", "1", "2")
    (tmp_path / "two.txt").write_bytes(2 * "cat\n".encode("utf-8-sig"))  # two marked files, joined
    assert read_class_names(tmp_path / "two.txt") == ("cat", "cat")


# Files of names, and what the one line says.
REFUSED: dict[str, tuple[str, bytes, str]] = {
    "a table": ("a.csv", b"0,cat\n1,dog\n", "table"),
    "a table with a header": ("a.csv", b"index,name\n0,cat\n1,dog\n", "table"),
    "tabs": ("a.tsv", b"0\tcat\n1\tdog\n", "table"),
    "numbered lines": ("a.txt", b"0,cat\n1,dog\n", "numbers before"),
    "numbered from 1": ("a.txt", b"1: cat\n2: dog\n", "numbers before"),
    "a Python dict": ("a.txt", b"{0: 'tench, Tinca',\n 1: 'goldfish',\n 2: 'shark'}", "numbers before"),
    "Latin-1": ("a.txt", "cat\nFüchse\n".encode("latin-1"), "line 2 is not UTF-8"),
    "UTF-16 without a mark": ("a.txt", "cat\ndog\n".encode("utf-16-le"), "no UTF-8"),
    "half of UTF-16": ("a.txt", codecs.BOM_UTF16_LE + b"c\0a", "not UTF-16-LE"),
    "no JSON": ("a.json", b"cat\ndog", "JSON"),
    "JSON of something else": ("a.json", b'"cat"', "a JSON list"),
    "a hole": ("a.json", b'{"0": "cat", "2": "dog"}', "from 0 to 1"),
    "from 1": ("a.json", b'{"1": "cat", "2": "dog"}', "from 0 to 1"),
    "a number twice": ("a.json", b'{"cat": 0, "dog": 0}', "each number once"),
    "no numbers": ("a.json", b'{"cat": "chat"}', "must number"),
    "objects": ("a.json", b'[{"name": "cat"}]', "is not a name"),
    "nothing there": ("b.txt", b"", "file with one name per line"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_files_that_are_no_names_are_refused(case: str, tmp_path: Path) -> None:
    name, content, word = REFUSED[case]
    (tmp_path / name).write_bytes(content) if content else None
    with pytest.raises(UsageError) as caught:
        read_class_names(tmp_path / name)
    one_line(caught.value, "model.class_names=", word)


@pytest.mark.parametrize("form", WRITTEN)
def test_other_text_is_read_alike(form: str, tmp_path: Path) -> None:
    encode, path = WRITTEN[form], tmp_path / "text"
    path.write_bytes(encode("Füchse\ncat\n\nowl\n"))
    assert vocabulary(str(path), ClassNames(["a"])) == ["Füchse", "cat", "owl", "a"]
    path.write_bytes(encode('picture,target\na.png,"Füchse"\n\nb.png,cat\n'))
    named = list(_in_table(path, tmp_path, ClassNames(["cat", "Füchse"])))
    assert [(one.path.name, one.target.index) for one in named] == [("a.png", 1), ("b.png", 0)]
    answers: dict[str, Any] = {"kind": "vital_exp study answers", "participant": "Ü", "answers": []}
    path.write_bytes(encode(json.dumps(answers, ensure_ascii=False, indent=1)))
    assert _content(path) == answers


@pytest.mark.parametrize("make", [lambda path: None, Path.mkdir], ids=["missing", "folder"])
def test_no_file(make: Callable[[Path], object], tmp_path: Path) -> None:
    make(tmp_path / "text")
    with pytest.raises(UsageError) as caught:
        read_text(tmp_path / "text", "some.key")
    one_line(caught.value, "some.key=", "text")
