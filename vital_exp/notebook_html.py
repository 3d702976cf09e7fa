"""Self-contained HTML without scripts, which displays results in a notebook."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence

from markupsafe import escape
from PIL import Image

from vital_exp.data_uris import PNG, data_uri

SMALLEST_SHOWN, LARGEST_SHOWN = 128, 256  # px: the range of widths in which pictures are shown
ROWS_SHOWN, CELL_SIDE = 50, 64
DIGITS = 4


def image_uri(image: Image.Image) -> str:
    """Return an image as a data URI that holds a PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return data_uri(buffer.getvalue(), PNG)


def figures(pictures: Iterable[tuple[Image.Image, str]]) -> str:
    """Return HTML with the pictures in a wrapping row, each with its caption."""
    style = "margin:0 12px 12px 0;display:inline-block;vertical-align:top;text-align:center"
    parts = []
    for image, caption in pictures:
        width = min(max(image.width, SMALLEST_SHOWN), LARGEST_SHOWN)
        shown = f'<img src="{image_uri(image)}" width="{width}" alt="{escape(caption)}">'
        parts.append(f'<figure style="{style}">{shown}<figcaption>{escape(caption)}</figcaption></figure>')
    return f"<div>{''.join(parts)}</div>"


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """Return an HTML table with a column per key, of the first ``ROWS_SHOWN`` rows, and the number of rows left out.

    A cell is a text, a number, or a list of images, which are shown ``CELL_SIDE`` px high.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join(
        f"<tr>{''.join(f'<td>{_cell(row.get(column))}</td>' for column in columns)}</tr>" for row in rows[:ROWS_SHOWN]
    )
    more = f"<p>and {len(rows) - ROWS_SHOWN} more</p>" if len(rows) > ROWS_SHOWN else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"


def lines(texts: Iterable[object]) -> str:
    """Return texts as HTML paragraphs."""
    return "".join(f"<p>{escape(text)}</p>" for text in texts)


def contact_sheet(images: Sequence[Image.Image], columns: int) -> Image.Image:
    """Return one image that shows images of equal size in a grid of at most ``columns`` columns."""
    width, height = images[0].size
    scale = max(1, SMALLEST_SHOWN // max(width, 1))
    width, height, gap = width * scale, height * scale, 4
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        tile = image.convert("RGB").resize((width, height), Image.Resampling.NEAREST)
        sheet.paste(tile, (column * (width + gap), row * (height + gap)))
    return sheet


def _cell(value: object) -> str:
    if not isinstance(value, list):
        return str(escape(_text(value)))
    return "".join(f'<img src="{image_uri(image)}" height="{CELL_SIDE}" alt="">' for image in value)


def _text(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.{DIGITS}g}" if isinstance(value, float) else str(value)
