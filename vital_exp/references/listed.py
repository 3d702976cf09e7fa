"""Image lists (.csv, .tsv, .txt) become a folder of symbolic links, which is read like any folder of images."""

from __future__ import annotations

import csv
import hashlib
import io
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

from vital_exp.errors import UsageError
from vital_exp.references.decoding import printable
from vital_exp.text_files import read_text
from vital_exp.whole_files import whole_folder

PATH_COLUMNS, CLASS_COLUMNS = ("path", "image", "file", "filename"), ("class", "label", "target")
SHOWN = 5  # missing files named in a message
# A hidden file in a folder that was made from a dataset: the names of the class folders in the order of the labels.
CLASS_ORDER = ".class_order.json"
# More missing files than this share say that something is wrong with the list, not with a file.
MISSING_LIMIT = 0.1

logger = logging.getLogger(__name__)


def listed_folder(place: Path, cache_dir: Path, key: str) -> Path:
    """Return a folder in the cache with links to the images that a file lists, one sub-folder per class.

    Args:
        place: a .csv or .tsv file with a column path and, if there are classes, a column class; or a .txt file with one
            path per line. Paths are relative to the file's folder.
        cache_dir: the cache.
        key: the configuration key that an error names.

    Raises:
        UsageError: the file cannot be read, has no column of paths, lists nothing, or more than a tenth of its images
            are missing.
    """
    rows = _rows(place, key)
    missing = [path for path, _ in rows if not path.is_file()]
    shown = ", ".join(printable(path) for path in missing[:SHOWN])
    if len(missing) > MISSING_LIMIT * len(rows):
        raise UsageError(key, printable(place), f"{len(missing)} of its {len(rows)} images are missing: {shown}")
    if missing:
        logger.warning("%s=%s: %d of %d images are missing: %s", key, printable(place), len(missing), len(rows), shown)
    present = [(path, name) for path, name in rows if path.is_file()]
    content = "\n".join(f"{path}\t{name}" for path, name in present)
    folder = cache_dir / "lists" / hashlib.sha256(content.encode("utf-8", "surrogateescape")).hexdigest()[:24]
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with whole_folder(folder) as temporary:
            for number, (path, name) in enumerate(present):
                parent = temporary / name if name else temporary
                parent.mkdir(exist_ok=True)
                os.symlink(path, parent / f"{number:08d}{path.suffix.lower()}")
    return folder


def _rows(place: Path, key: str) -> list[tuple[Path, str]]:
    """Return for each image its absolute path and the folder name of its class; ``""`` without classes."""
    text = read_text(place, key)
    entries = list(_lines(text) if place.suffix.lower() == ".txt" else _table(text, place, key))
    if not entries:
        raise UsageError(key, printable(place), "lists no images")
    parent = place.resolve().parent
    return [((parent / path).absolute(), folder_name(name)) for path, name in entries]


def _lines(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        if line.strip():
            yield line.strip(), ""


def _table(text: str, place: Path, key: str) -> Iterator[tuple[str, str]]:
    reader = csv.DictReader(io.StringIO(text), delimiter="\t" if place.suffix.lower() == ".tsv" else ",")
    columns = [str(name).strip() for name in reader.fieldnames or ()]
    reader.fieldnames = columns
    path = next((name for name in PATH_COLUMNS if name in columns), None)
    if path is None:
        problem = f"needs a column {' or '.join(PATH_COLUMNS)}, and has {', '.join(columns) or 'none'}"
        raise UsageError(key, printable(place), problem)
    label = next((name for name in CLASS_COLUMNS if name in columns), None)
    for row in reader:
        if row[path]:
            yield row[path].strip(), (row[label] or "").strip() if label else ""


def folder_name(label: str) -> str:
    """Return a class name as a folder name: slashes and NUL become spaces, leading dots are removed.

    A label such as ``"3.0"`` becomes ``"3"``: pandas writes an integer column with missing values as floats.
    """
    label = re.sub(r"^([0-9]+)\.0+$", r"\1", label.strip())
    return re.sub(r"[\x00/\\]", " ", label).strip().lstrip(".")
