"""Atomic writes: a file is written under a temporary name in the same folder, and renamed when it is complete."""

from __future__ import annotations

import csv
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

MODE, FOLDER_MODE = 0o644, 0o755  # mkstemp and mkdtemp give access to the owner alone


@contextmanager
def whole_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; the file is renamed to ``path`` when the block ends without an error.

    Raises:
        OSError: the file cannot be written. The error names ``path``, even where the system's error names no file.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(MODE)
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and error.filename in (None, name):
            error.filename = str(path)
        raise


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder; it is renamed to ``path`` when the block ends without an error.

    If ``path`` is a folder with content by then, for example from another process, that folder stays.
    """
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=".", suffix=".part"))
    try:
        yield temporary
        temporary.chmod(FOLDER_MODE)
        try:
            os.replace(temporary, path)
        except OSError:
            if not path.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def whole_file(path: Path, binary: bool = False, errors: str = "strict") -> Iterator[IO[Any]]:
    """Open a file, UTF-8 text or binary, for an atomic write (:func:`whole_path`); ``errors`` as for :func:`open`."""
    with whole_path(path) as temporary:
        if binary:
            with temporary.open("wb") as file:
                yield file
        else:
            with temporary.open("w", encoding="utf-8", errors=errors, newline="") as file:
                yield file


def write_whole(path: Path, chunks: Iterable[str]) -> Path:
    """Write a text file atomically and return its path; characters that UTF-8 cannot encode become ``?``."""
    with whole_file(path, errors="replace") as file:
        file.writelines(chunks)
    return path


def write_json(path: Path, content: object) -> None:
    """Write a JSON file atomically."""
    with whole_file(path) as file:
        json.dump(content, file, indent=2)
        file.write("\n")


def write_table(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write a CSV file atomically, with a column for each key of any row."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with whole_file(path) as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
