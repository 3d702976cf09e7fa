"""Read a user's text files, with any line ends and byte order mark."""

from __future__ import annotations

import codecs
import json
import re
from pathlib import Path
from typing import Any

from vital_exp.errors import UsageError

# Byte order marks and their encodings. UTF-32 comes first, because its little-endian mark begins with that of UTF-16.
MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
MARK = "\ufeff"  # the decoded mark; joined files have marks inside the text


def read_text(path: Path, key: str) -> str:
    """Return the content of a text file without byte order marks, with ``\\n`` as the line end.

    Args:
        path: a file in UTF-8, or in UTF-16 or UTF-32 with a byte order mark.
        key: the configuration key that names the file, for the message.

    Raises:
        UsageError: the file does not exist, cannot be read, or is not text in one of these encodings.
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
    """Return the lines of a text file, stripped of white space; blank lines are left out.

    Raises:
        UsageError: see :func:`read_text`.
    """
    return [line.strip() for line in read_text(path, key).split("\n") if line.strip()]


def read_json(path: Path, key: str) -> Any:
    """Return the content of a JSON file.

    Raises:
        UsageError: the text is not JSON; see also :func:`read_text`.
    """
    try:
        return json.loads(read_text(path, key))
    except (json.JSONDecodeError, RecursionError) as error:
        raise UsageError(key, path, f"cannot be read as JSON: {error}") from error
