"""Joins indices of one layer's units, mined some units at a time, to one index of all of them."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from vital_exp.mining.index import SCHEMA, Index, text_path, write_meta
from vital_exp.mining.meta import Meta
from vital_exp.whole_files import whole_path

TABLES = ("units", "activity")  # whose rows belong to units


def join_indices(parts: Sequence[Index], path: Path, meta: Meta) -> Index:
    """Write the index of all units of some indices, and open it; memory does not grow with the units.

    Args:
        parts: indices of different units over the same images.
        path: of the new file.
        meta: the description of the new index.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_path(path) as temporary, closing(sqlite3.connect(temporary)) as connection:
        connection.executescript(SCHEMA)
        for part in parts:
            connection.execute("ATTACH DATABASE ? AS part", (str(part.path),))
            with connection:
                for table in TABLES:
                    connection.execute(f"INSERT INTO {table} SELECT * FROM part.{table}")
            connection.execute("DETACH DATABASE part")
        with connection:
            unread = ((text_path(image), reason) for image, reason in parts[0].corrupt.items())
            connection.executemany("INSERT INTO corrupt VALUES (?, ?)", unread)
            write_meta(connection, meta)
    return Index(path)
