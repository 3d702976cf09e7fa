"""The keys of a configuration file with the comments that explain them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

# Top-level words of a file that are no keys of the configuration.
NOT_KEYS = ("defaults", "hydra")


@dataclass(frozen=True)
class Key:
    """A key of a file.

    Attributes:
        name: its full name in the composed configuration, ``references.count``.
        default: its value as the file spells it; for a part with a ``_target_``, the class.
        comment: the file's comment on it; empty without one.
        part: whether it is a part with a ``_target_`` and keys of its own (``transforms.crop``).
    """

    name: str
    default: str
    comment: str
    part: bool = False


@dataclass(frozen=True)
class File:
    """A configuration file.

    Attributes:
        group: its folder; empty for a command's own file.
        name: its name without suffix.
        header: the comment at its beginning.
        bases: the files of the same group that it extends.
        keys: its keys, in the order of the file.
    """

    group: str
    name: str
    header: str
    bases: tuple[str, ...]
    keys: tuple[Key, ...]


def read_file(path: Path, root: Path) -> File:
    """Read a file of the configuration tree below ``root``."""
    text = path.read_text(encoding="utf-8")
    lines = [*text.splitlines(), ""]
    group = path.parent.relative_to(root).as_posix().removeprefix(".")
    package = re.match(r"# @package (\S+)", text)
    place = package[1].replace("_global_", "") if package else group.replace("/", ".")
    first = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    header = _joined(line for line in lines[:first] if not line.startswith("# @package"))
    node = yaml.compose(text)
    keys = tuple(_keys(node, place, lines, first)) if isinstance(node, yaml.MappingNode) else ()
    listed = (yaml.safe_load(text) or {}).get("defaults", [])
    bases = tuple(entry for entry in listed if isinstance(entry, str) and entry != "_self_")
    return File(group, path.stem, header, bases, keys)


def _keys(node: yaml.MappingNode, place: str, lines: list[str], first: int) -> Iterator[Key]:
    """Yield the keys of a mapping and of its nested mappings; comments of keys begin after line ``first``."""
    for name, value in node.value:
        if name.value in NOT_KEYS or name.value == "_target_":
            continue
        full = f"{place}.{name.value}" if place else name.value
        comment = _comment(name, value, lines, first)
        if isinstance(value, yaml.MappingNode) and value.value and not value.flow_style:
            target = next((child.value for key, child in value.value if key.value == "_target_"), "")
            if target:
                yield Key(full, target, comment, part=True)
            yield from _keys(value, full, lines, first)
        else:
            yield Key(full, _spelled(value, lines), comment)


def _spelled(value: yaml.Node, lines: list[str]) -> str:
    """Return a value as the file spells it, on one line."""
    begin, end = value.start_mark, value.end_mark
    if begin.line == end.line:
        return lines[begin.line][begin.column : end.column]
    if isinstance(value, yaml.ScalarNode):
        return str(value.value).strip()
    return " ".join(line.strip() for line in lines[begin.line : end.line + 1])


def _comment(name: yaml.Node, value: yaml.Node, lines: list[str], first: int) -> str:
    """Return the comment behind a key's value, or else the comment lines right above the key."""
    nested = isinstance(value, yaml.MappingNode) and not value.flow_style
    mark = name.end_mark if nested else value.end_mark
    if behind := re.match(r":?\s*# ?(.*)", lines[mark.line][mark.column :]):
        return behind[1].strip()
    line, indent = name.start_mark.line, " " * name.start_mark.column
    above: list[str] = []
    while line > first and lines[line - 1].startswith(f"{indent}#"):
        line -= 1
        above.insert(0, lines[line])
    return _joined(above)


def _joined(lines: Iterator[str] | list[str]) -> str:
    return " ".join(line.strip().lstrip("#").strip() for line in lines)
