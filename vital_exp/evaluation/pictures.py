"""The pictures that are scored: those of a run folder, or of any folder with a name pattern or a CSV of targets."""

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
# What stands for what in a name pattern.
PLACES = {"index": r"\d+", "name": r".+?", "target": r".+?", "variation": r"\d+"}
SHOWN = 5  # names in a message


@dataclass
class PictureSet:
    """Pictures and what they are of.

    Attributes:
        targets: one per picture.
        pixels: (N, C, H, W), stored as files hold them: RGB and grey uint8, others float32.
        results: a line of results.jsonl per picture; empty for a plain folder.
        unreadable: file and reason of pictures that are missing or broken.
    """

    targets: list[Target]
    pixels: Tensor
    results: list[dict[str, object]] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Named:
    """A picture's file, its target, and its line of results.jsonl (empty for a plain folder)."""

    path: Path
    target: Target
    result: dict[str, object] = field(default_factory=dict)


def run_pictures(folder: Path, class_names: ClassNames | None, own: Preprocessing) -> PictureSet:
    """Return the finished pictures of a run folder.

    Args:
        folder: that has results.jsonl.
        class_names: of the network.
        own: what the network's pictures are; they are brought to its size if they differ in size.

    Raises:
        UsageError: no results, or no picture that can be read.
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
    """Return the targets of a run folder that have a picture.

    Raises:
        UsageError: no results there.
    """
    return [_target(result, None) for result in _finished(folder)]


def _finished(folder: Path) -> list[dict[str, object]]:
    """The lines of a run's targets that are done."""
    if not is_run(folder):
        raise UsageError("run", folder, f"no {RESULTS} there; a run folder of vital-visualize holds one")
    return [result for result in read_results(folder)[0] if result.get("status") == "done"]


def _target(result: dict[str, Any], class_names: ClassNames | None) -> Target:
    """The target of a line of results.jsonl: from its fields, for a safe name may have lost letters of the layer's."""
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
        folder: of image files, or arrays for a network of other channels.
        class_names: of the network.
        own: what the network's pictures are; they are brought to its size if they differ in size.
        pattern: of their names: ``{index}`` is a class number, ``{name}`` a class name, ``{target}`` any spelling of a
            target, ``{variation}`` a number; ``"*"`` stands for anything.
        table: a CSV with the columns picture and target, instead of a pattern.

    Raises:
        UsageError: no folder, a pattern that names no target or fits no file, a table without these columns, a picture
            twice, an unknown target, or no picture that can be read.
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
        raise UsageError("pattern", pattern, f"fits no file of {printable(folder)}, which holds {there}")
    for path, match in found:
        groups = match.groupdict()
        spelling = groups.get("target") or f"class:{groups.get('index') or groups.get('name')}"
        variation = f"_v{groups['variation']}" if groups.get("variation", "1") != "1" else ""
        yield Named(path, _spelled(f"{spelling}{variation}", class_names, path))


def _expression(pattern: str) -> re.Pattern[str]:
    """A name pattern as a regular expression with a group per place."""
    parts = re.split(r"(\{\w+\}|\*)", pattern)
    names = [part[1:-1] for part in parts if part.startswith("{")]
    unknown = [name for name in names if name not in PLACES]
    if unknown or not {"index", "name", "target"} & set(names) or len(set(names)) < len(names):
        places = ", ".join(f"{{{name}}}" for name in PLACES)
        raise UsageError("pattern", pattern, f"must say what the target is, each once: {places}")
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
    """The target that a person wrote; a bare number or name is a class."""
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
            raise UsageError("pictures", one.target.name, f"has two pictures, {both}: further ones are class-0_v2, ...")
        seen[one.target.name] = one.path


def _loaded(named: Sequence[Named], own: Preprocessing, key: str, folder: Path) -> PictureSet:
    """Read the files; one that cannot be read is told and left out."""
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
        raise UsageError(key, printable(folder), f"no picture can be read: {told(unreadable, len(named))}")
    if len({picture.shape for picture in pictures}) > 1:
        files = replace(files, size=own.size, interpolation="bilinear")
        pictures = [stored(files.load(one.path)) for one in kept]
    pixels = torch.stack(pictures)
    results = [one.result for one in kept if one.result]
    return PictureSet([one.target for one in kept], pixels, results, unreadable)


def told(unreadable: dict[str, str], total: int) -> str:
    """Return which pictures could not be read, counted and the first named, as one line."""
    shown = ", ".join(f"{name} ({reason})" for name, reason in list(unreadable.items())[:SHOWN])
    more = f" and {len(unreadable) - SHOWN} more" if len(unreadable) > SHOWN else ""
    return f"{len(unreadable)} of {total} pictures could not be read: {shown}{more}"
