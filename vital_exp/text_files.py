"""Read text that a user hands over, whatever editor or system wrote it."""

from __future__ import annotations

import codecs
import json
import re
from pathlib import Path
from typing import Any

from vital_exp.errors import UsageError

# What editors put before a text to say how it is encoded; UTF-32's begins as UTF-16's does.
MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
MARK = "\ufeff"  # the same mark, decoded; inside a text where marked files were joined


def read_text(path: Path, key: str) -> str:
    """Return a text file without byte order marks, its lines ended by ``\\n``.

    Args:
        path: a file in UTF-8, or in UTF-16 or UTF-32 with a byte order mark.
        key: what is to blame for it.

    Raises:
        UsageError: no such file, one that cannot be read, or one that is no such text.
    """
    if not path.is_file():
        raise UsageError(key, path, "is a folder, not a text file" if path.is_dir() else "no such file")
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UsageError(key, path, f"cannot be read ({error.strerror})") from error
    mark, encoding = next(((mark, name) for mark, name in MARKS if raw.startswith(mark)), (b"", "utf-8"))
    try:
        text = raw[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        line = raw[: len(mark) + error.start].count(b"\n") + 1
        raise UsageError(
            key, path, f"cannot be read: line {line} is not {encoding.upper()}; save it as UTF-8"
        ) from error
    if "\0" in text:
        raise UsageError(key, path, "cannot be read: it holds zero bytes, so it is no UTF-8 text; save it as UTF-8")
    return re.sub(r"\r\n?", "\n", text.replace(MARK, ""))


def read_lines(path: Path, key: str) -> list[str]:
    """Return the lines of a text file without spaces around them; blank ones are left out.

    Raises:
        UsageError: see :func:`read_text`.
    """
    return [line.strip() for line in read_text(path, key).split("\n") if line.strip()]


def read_json(path: Path, key: str) -> Any:
    """Return what a JSON file holds.

    Raises:
        UsageError: see :func:`read_text`; the text is no JSON.
    """
    try:
        return json.loads(read_text(path, key))
    except (json.JSONDecodeError, RecursionError) as error:
        raise UsageError(key, path, f"cannot be read as JSON: {error}") from error
