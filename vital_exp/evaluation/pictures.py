"""Reads the pictures to be scored, from a run folder, or from any folder by a name pattern or a CSV of targets."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vital_exp.errors import UsageError
from vital_exp.image_folders import check_folder
from vital_exp.images.output import ARRAY, stored
from vital_exp.models.channels import GREY, RGB
from vital_exp.models.network import Preprocessing
from vital_exp.references.decoding import CorruptImageError, printable
from vital_exp.references.files import PictureFiles
from vital_exp.run_folders import RESULTS, is_run, read_results
from vital_exp.targets.class_names import ClassNames
from vital_exp.targets.selection import parse_target
from vital_exp.targets.unit import Target
from vital_exp.text_files import read_text

PATTERN = "class-{index}.png"
PREVIEW = ".png"
# The placeholders of a name pattern, and the regular expressions they match.
PLACES = {"index": r"\d+", "name": r".+?", "target": r".+?", "variation": r"\d+"}
SHOWN = 5  # most names in a message


@dataclass
class PictureSet:
    """Pictures and their targets.

    Attributes:
        targets: one per picture.
        pixels: (N, C, H, W), in the dtype of their files: uint8 for RGB and grey, float32 for others.
        results: a line of results.jsonl per picture; empty for a folder that is no run's.
        unreadable: by file, why it cannot be read.
    """

    targets: list[Target]
    pixels: Tensor
    results: list[dict[str, object]] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Named:
    """A picture's file, its target, and its line of results.jsonl (empty for a folder that is no run's)."""

    path: Path
    target: Target
    result: dict[str, object] = field(default_factory=dict)


def run_pictures(folder: Path, class_names: ClassNames | None, own: Preprocessing) -> PictureSet:
    """Return the finished pictures of a run folder.

    Args:
        folder: a run folder, which holds results.jsonl.
        class_names: the network's class names.
        own: the network's preprocessing; pictures of different sizes are resized to its size.

    Raises:
        UsageError: there are no results, or no picture can be read.
    """
    suffix = ".png" if own.channels in (GREY, RGB) else ARRAY
    named = [
        Named(folder / "images" / f"{result['target']}{suffix}", _target(result, class_names), result)
        for result in _finished(folder)
    ]
    if not named:
        raise UsageError("run", folder, "no finished picture there yet")
    return _loaded(named, replace(own, value_range=None), "run", folder)


def finished_targets(folder: Path) -> list[Target]:
    """Return the targets of a run folder whose pictures are finished.

    Raises:
        UsageError: the folder holds no results.
    """
    return [_target(result, None) for result in _finished(folder)]


def _finished(folder: Path) -> list[dict[str, object]]:
    """The lines of results.jsonl of finished targets."""
    if not is_run(folder):
        raise UsageError("run", folder, f"no {RESULTS} there; a run folder of vital-visualize holds one")
    return [result for result in read_results(folder)[0] if result.get("status") == "done"]


def _target(result: dict[str, Any], class_names: ClassNames | None) -> Target:
    """The target of a line of results.jsonl, by its fields: the name may have lost letters that files cannot have."""
    if "kind" not in result or "index" not in result:
        return parse_target(str(result["target"]), class_names)
    position = result.get("position")
    return Target(
        str(result["kind"]),
        int(result["index"]),
        result.get("layer"),
        None if not position or isinstance(position, str) else (int(position[0]), int(position[1])),
        int(result.get("variation") or 1),
        str(result.get("label") or ""),
        None if result.get("facet") is None else int(result["facet"]),
        position if isinstance(position, str) else None,
    )


def folder_pictures(
    folder: Path, class_names: ClassNames | None, own: Preprocessing, pattern: str, table: Path | None = None
) -> PictureSet:
    """Return the pictures of a folder.

    Args:
        folder: a folder of image files, or of arrays for a network whose inputs are neither grey nor RGB.
        class_names: the network's class names.
        own: the network's preprocessing; pictures of different sizes are resized to its size.
        pattern: the pattern of the files' names: ``{index}`` is a class number, ``{name}`` a class name, ``{target}``
            any spelling of a target, ``{variation}`` a number; ``"*"`` matches anything.
        table: a CSV with the columns ``picture`` and ``target``, in place of the pattern.

    Raises:
        UsageError: there is no folder, the pattern has no target or matches no file, the table lacks a column, a target
            is unknown or has two pictures, or no picture can be read.
    """
    check_folder(folder, "pictures", "pictures")
    if own.channels not in (GREY, RGB) and pattern.endswith(PREVIEW):  # the array beside it has all channels
        pattern = pattern.removesuffix(PREVIEW) + ARRAY
    named = list(_in_table(table, folder, class_names) if table else _in_names(folder, pattern, class_names))
    _check_twice(named)
    return _loaded(named, own, "pictures", folder)


def _in_names(folder: Path, pattern: str, class_names: ClassNames | None) -> Iterator[Named]:
    expression = _expression(pattern)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    found = [(path, match) for path in files if (match := expression.fullmatch(path.relative_to(folder).as_posix()))]
    if not found:
        there = ", ".join(printable(path.name) for path in files[:SHOWN]) or "nothing"
        raise UsageError("pattern", pattern, f"matches no file of {printable(folder)}, which holds {there}")
    for path, match in found:
        groups = match.groupdict()
        spelling = groups.get("target") or f"class:{groups.get('index') or groups.get('name')}"
        variation = f"_v{groups['variation']}" if groups.get("variation", "1") != "1" else ""
        yield Named(path, _spelled(f"{spelling}{variation}", class_names, path))


def _expression(pattern: str) -> re.Pattern[str]:
    """A name pattern as a regular expression, with a group per placeholder."""
    parts = re.split(r"(\{\w+\}|\*)", pattern)
    names = [part[1:-1] for part in parts if part.startswith("{")]
    unknown = [name for name in names if name not in PLACES]
    if unknown or not {"index", "name", "target"} & set(names) or len(set(names)) < len(names):
        places = ", ".join(f"{{{name}}}" for name in PLACES)
        raise UsageError("pattern", pattern, f"needs a placeholder for the target, each at most once, of {places}")
    return re.compile("".join(_part(part) for part in parts))


def _part(part: str) -> str:
    if part == "*":
        return ".*"
    return f"(?P<{part[1:-1]}>{PLACES[part[1:-1]]})" if part.startswith("{") else re.escape(part)


def _in_table(table: Path, folder: Path, class_names: ClassNames | None) -> Iterator[Named]:
    if not table.is_file():
        raise UsageError("targets", printable(table), "no such file; a CSV with the columns picture and target")
    reader = csv.DictReader(io.StringIO(read_text(table, "targets")))
    if not {"picture", "target"} <= set(reader.fieldnames or ()):
        has = ", ".join(reader.fieldnames or ()) or "none"
        raise UsageError("targets", printable(table), f"needs the columns picture and target, and has {has}")
    rows = list(reader)
    if not rows:
        raise UsageError("targets", printable(table), "names no picture")
    for row in rows:
        path = folder / row["picture"]
        yield Named(path, _spelled(row["target"], class_names, path))


def _spelled(text: str, class_names: ClassNames | None, path: Path) -> Target:
    """The target of a spelling; a number or name alone is a class."""
    try:
        return parse_target(text, class_names)
    except UsageError as error:
        if ":" in text or class_names is None:
            raise UsageError("targets", text, f"of {printable(path.name)}: {error.problem}", error.options) from None
    try:
        return parse_target(f"class:{text}", class_names)
    except UsageError as error:
        raise UsageError("targets", text, f"of {printable(path.name)}: {error.problem}", error.options) from None


def _check_twice(named: Sequence[Named]) -> None:
    seen: dict[str, Path] = {}
    for one in named:
        if one.target.name in seen:
            both = f"{printable(seen[one.target.name].name)} and {printable(one.path.name)}"
            raise UsageError("pictures", one.target.name, f"has two pictures, {both}; call a second one class-0_v2")
        seen[one.target.name] = one.path


def _loaded(named: Sequence[Named], own: Preprocessing, key: str, folder: Path) -> PictureSet:
    """Read the files; those that cannot be read are left out and listed."""
    pictures, kept, unreadable = [], [], {}
    files = PictureFiles(own.channels, interpolation=own.interpolation, value_range=own.value_range, made=True)
    for one in named:
        try:
            pictures.append(stored(files.load(one.path)))
            kept.append(one)
        except CorruptImageError as error:
            name = printable(one.path.relative_to(folder) if one.path.is_relative_to(folder) else one.path)
            unreadable[name] = error.reason if one.path.is_file() else "missing"
    if not kept:
        raise UsageError(key, printable(folder), f"no picture can be read: {unreadable_text(unreadable, len(named))}")
    if len({picture.shape for picture in pictures}) > 1:
        files = replace(files, size=own.size, interpolation="bilinear")
        pictures = [stored(files.load(one.path)) for one in kept]
    pixels = torch.stack(pictures)
    results = [one.result for one in kept if one.result]
    return PictureSet([one.target for one in kept], pixels, results, unreadable)


def unreadable_text(unreadable: dict[str, str], total: int) -> str:
    """Return one line that counts the pictures that could not be read, and names the first."""
    shown = ", ".join(f"{name} ({reason})" for name, reason in list(unreadable.items())[:SHOWN])
    more = f" and {len(unreadable) - SHOWN} more" if len(unreadable) > SHOWN else ""
    return f"{len(unreadable)} of {total} pictures could not be read: {shown}{more}"
