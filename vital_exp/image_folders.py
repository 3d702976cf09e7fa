"""How a user names images: a folder, a file that lists them, a dataset, or one file. Imports no torch."""

from __future__ import annotations

import os
import re
from pathlib import Path

from vital_exp.errors import UsageError

DATASET = "hf:"  # how the name of a dataset begins
LISTS = (".csv", ".tsv", ".txt")  # files that list images


def is_dataset(root: object) -> bool:
    """Whether a root is spelled as a dataset: ``hf:place?split=train``."""
    return isinstance(root, str) and root.startswith(DATASET)


def is_list(root: Path) -> bool:
    """Whether a root is a file that lists images."""
    return root.suffix.lower() in LISTS and root.is_file()


def check_root(root: str, key: str) -> None:
    """Make sure that there is a folder, where a root names one; raises UsageError."""
    place = Path(root).expanduser()
    if not is_dataset(root) and not is_list(place):
        check_folder(place, key)


def check_folder(root: Path, key: str, what: str = "images") -> None:
    """Make sure that there is a folder.

    Args:
        root: its place.
        key: what is to blame for it.
        what: is in it.

    Raises:
        UsageError: there is none, or it is a file.
    """
    if not root.is_dir():
        shown = str(root).encode("utf-8", "backslashreplace").decode()  # names that are no UTF-8
        problem = "is no folder" if root.exists() else "does not exist"
        raise UsageError(key, shown, f"{problem}; give a folder of {what}")


def names_file(text: str) -> bool:
    """Whether a text names a file, and is no words: it is there, or the text ends like a file's name, ``photo.png``."""
    there = os.path.isfile(os.path.expanduser(text))
    return there or re.search(r"\w\.[A-Za-z][A-Za-z0-9]{1,4}$", text) is not None
