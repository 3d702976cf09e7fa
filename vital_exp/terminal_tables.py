"""Tables for a terminal of 80 columns: no cell wraps, and long texts are cut with an ellipsis. Imports no torch."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

WIDTH = 80  # columns of a terminal
LEAST = 8  # width below which no flexible column shrinks


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: the column's heading.
        right: whether cells are aligned right, as numbers are.
        flexible: whether the column shrinks if the table is too wide.
    """

    title: str
    right: bool = False
    flexible: bool = False


def table_text(columns: Sequence[Column], rows: Sequence[Sequence[str]], title: str = "", width: int = WIDTH) -> str:
    """Return a table as text. Lines are at most ``width`` wide, as far as flexible columns can shrink.

    Args:
        columns: the table's columns.
        rows: a cell for each column; a line break in a cell makes a second line of the row.
        title: a line above the table.
        width: width of the terminal, in characters.
    """
    cells = [[column.title for column in columns], *rows]
    natural = [max(cell_len(line) for row in cells for line in row[i].split("\n")) for i in range(len(columns))]
    widths = _given_way(natural, [column.flexible for column in columns], width - 2 * (len(columns) - 1))
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for column, own in zip(columns, widths, strict=True):
        justify = "right" if column.right else "left"
        table.add_column(Text(column.title), justify=justify, no_wrap=True, overflow="ellipsis", width=own)  # type: ignore[arg-type]
    for row in rows:
        table.add_row(*(Text(_shortened(cell, own)) for cell, own in zip(row, widths, strict=True)))
    out = io.StringIO()
    console = Console(file=out, width=max(width, 1), color_system=None, force_jupyter=False)
    console.print(table)
    lines = [line.rstrip() for line in out.getvalue().split("\n")]
    return "\n".join([title] * bool(title) + lines).rstrip("\n")


def _shortened(cell: str, width: int) -> str:
    """Return a cell with its lines shortened before the last comma: "as brain co…, 0.41"."""
    return "\n".join(_line(line, width) for line in cell.split("\n"))


def _line(line: str, width: int) -> str:
    text, comma, last = line.rpartition(", ")
    kept = len(comma + last)
    return line if len(line) <= width or not text or kept > width - 2 else f"{text[: width - kept - 1]}…{comma}{last}"


def _given_way(natural: Sequence[int], flexible: Sequence[bool], room: int) -> list[int]:
    """Return widths whose sum fits into ``room``, if possible: the widest flexible column shrinks first."""
    widths = list(natural)
    while sum(widths) > room:
        able = [i for i, gives in enumerate(flexible) if gives and widths[i] > LEAST]
        if not able:
            break
        widest = max(able, key=lambda i: widths[i])
        widths[widest] -= 1
    return widths


def note_text(notes: Mapping[str, Sequence[str]], width: int = WIDTH) -> str:
    """Return each note once, with the names of all its subjects: ``note: this, that``.

    Args:
        notes: the subjects of each note.
        width: width of the terminal, in characters.
    """
    lines = (f"{note}: {', '.join(about)}" for note, about in notes.items())
    return "\n".join(wrapped(line, width=width) for line in lines)


def wrapped(text: str, indent: int = 2, width: int = WIDTH) -> str:
    """Return a text wrapped at ``width``; longer words are not broken, and lines after the first are indented."""
    return "\n".join(
        textwrap.wrap(text, width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)
    )
