"""The ways in which a user names images: a folder, a list file, a dataset, or one file. Imports no torch."""

from __future__ import annotations

import os
import re
from pathlib import Path

from vital_exp.errors import UsageError

DATASET = "hf:"  # prefix of a dataset's name
LISTS = (".csv", ".tsv", ".txt")  # suffixes of files that list images


def is_dataset(root: object) -> bool:
    """Whether a root names a dataset: ``hf:place?split=train``."""
    return isinstance(root, str) and root.startswith(DATASET)


def is_list(root: Path) -> bool:
    """Whether a root is a file that lists images."""
    return root.suffix.lower() in LISTS and root.is_file()


def check_root(root: str, key: str) -> None:
    """Check that a root which is neither a dataset nor a list file is a folder; raises UsageError."""
    place = Path(root).expanduser()
    if not is_dataset(root) and not is_list(place):
        check_folder(place, key)


def check_folder(root: Path, key: str, what: str = "images") -> None:
    """Check that a folder exists.

    Args:
        root: the folder's path.
        key: the configuration key that names the folder, for the message.
        what: the folder's expected content, for the message.

    Raises:
        UsageError: the path does not exist, or is a file.
    """
    if not root.is_dir():
        shown = str(root).encode("utf-8", "backslashreplace").decode()  # a path may hold bytes that are not UTF-8
        problem = "is no folder" if root.exists() else "does not exist"
        raise UsageError(key, shown, f"{problem}; give a folder of {what}")


def names_file(text: str) -> bool:
    """Whether a text is a file's name rather than words: the file exists, or the text has a suffix, ``photo.png``."""
    there = os.path.isfile(os.path.expanduser(text))
    return there or re.search(r"\w\.[A-Za-z][A-Za-z0-9]{1,4}$", text) is not None
