"""A folder of images that a user names. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from vital_exp.errors import UsageError


def check_folder(root: Path, key: str) -> None:
    """Make sure that there is a folder.

    Args:
        root: its place.
        key: what is to blame for it.

    Raises:
        UsageError: there is none, or it is a file.
    """
    if not root.is_dir():
        shown = str(root).encode("utf-8", "backslashreplace").decode()  # names that are no UTF-8
        problem = "is no folder" if root.exists() else "does not exist"
        raise UsageError(key, shown, f"{problem}; give a folder of images")
