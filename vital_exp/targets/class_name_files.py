"""The names of a network's classes from a user's list or file."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from vital_exp.errors import UsageError
from vital_exp.targets.class_names import as_integer
from vital_exp.text_files import MARK, read_json, read_lines

KEY = "model.class_names"
TABLES = (".csv", ".tsv")
WANTED = "a list of names, or a file with one name per line or a JSON list"
WORDNET_ID = re.compile(r"n\d{8}")
NUMBERED = re.compile(r"[\[{]?\s*\"?(\d+)\"?\s*[,;:\t]\s*\S")  # a line such as "0,cat", "0: 'cat'"


def read_class_names(given: str | os.PathLike[str] | Sequence[object]) -> tuple[str | tuple[str, ...], ...]:
    """Return for each class, in the order of the network's outputs, its name or a tuple of its synonyms.

    Args:
        given: a list of names; or a file: one name per line, a JSON list, or a JSON mapping of number to name
            (``{"0": "cat"}``) or of name to number (``{"cat": 0}``), whose numbers give the order.

    Raises:
        UsageError: no such file, a file that cannot be read or holds a table, or numbers that are not 0, 1, ...
    """
    if isinstance(given, Mapping):
        return _in_order(given, "a mapping")
    if not isinstance(given, (str, os.PathLike)):
        return _names(given)
    path = Path(given).expanduser()
    if not path.is_file():
        raise UsageError(KEY, given, f"{'is a folder; ' if path.is_dir() else ''}{WANTED}")
    if path.suffix.lower() != ".json":
        return tuple(_lines(path))
    content = read_json(path, KEY)
    if isinstance(content, dict):
        return _in_order(content, path)
    if not isinstance(content, list):
        raise UsageError(KEY, path, "a JSON list of names, in the order of the network's outputs")
    return _names(content)


def _lines(path: Path) -> list[str]:
    """Return the lines of a text file; raise if they hold more than a name each."""
    lines = read_lines(path, KEY)
    separators = (",", ";", "\t")
    if path.suffix.lower() in TABLES and any(sign in line for line in lines for sign in separators):
        raise UsageError(KEY, path, "holds a table; one name per line and nothing else, or a JSON list")
    numbers = [match[1] if (match := NUMBERED.match(line)) else None for line in lines]
    if len(lines) > 1 and numbers in ([str(i) for i in range(len(lines))], [str(i + 1) for i in range(len(lines))]):
        raise UsageError(KEY, path, f"has numbers before its names ({lines[0]}); one name per line, or a JSON list")
    return lines


def _names(entries: Sequence[object]) -> tuple[str | tuple[str, ...], ...]:
    """Return the entries' names or synonyms, without empty names."""
    return tuple(name for entry in entries if (name := _name(entry)))


def _name(entry: object) -> str | tuple[str, ...]:
    if isinstance(entry, Mapping) or entry is None:
        raise UsageError(KEY, entry, "is not a name; each entry is a name, or a list of synonyms")
    if isinstance(entry, (list, tuple)):  # lists of ImageNet may begin with WordNet ids; the label is to be a word
        return tuple(sorted((_text(synonym) for synonym in entry), key=lambda name: bool(WORDNET_ID.fullmatch(name))))
    return _text(entry)


def _text(entry: object) -> str:
    return str(entry).replace(MARK, "").strip()


def _in_order(content: Mapping[object, object], value: object) -> tuple[str | tuple[str, ...], ...]:
    """Return the names of a mapping {number: name} or {name: number} in the order of the numbers."""
    keys, values = list(content), list(content.values())
    by_number = all(as_integer(str(key)) is not None for key in keys)
    numbers, names = (keys, values) if by_number else (values, keys)
    order = [None if isinstance(number, (bool, float)) else as_integer(str(number)) for number in numbers]
    if not order or sorted(number if number is not None else -1 for number in order) != list(range(len(order))):
        rule = f"a mapping must number its {len(order)} names from 0 to {len(order) - 1}, each number once"
        raise UsageError(KEY, value, f"{rule}: {{number: name}} or {{name: number}}")
    ordered = dict(zip(order, names, strict=True))
    return tuple(_name(ordered[number]) for number in range(len(order)))
