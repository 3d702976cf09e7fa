"""The page of an audit: report.html, one file that opens offline."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup
from torch import Tensor

from vital_exp.images.output import as_image, to_uint8
from vital_exp.models.channels import as_rgb
from vital_exp.notebook_html import image_uri
from vital_exp.reporting.pages import environment
from vital_exp.whole_files import write_whole

LARGEST_SIDE = 320  # px of a picture on the page


@dataclass(frozen=True)
class Panel:
    """Pictures that belong side by side: a name, and captions with pictures (3, H, W) RGB in [0, 1]."""

    name: str
    pictures: list[tuple[str, Tensor]]


def write_page(
    folder: Path, audit: Mapping[str, Any], panels: Sequence[Panel], plot: str, headings: Mapping[str, str]
) -> Path:
    """Write ``folder/report.html`` and return its path.

    Args:
        folder: the audit's folder.
        audit: the content of audit.json.
        panels: pictures side by side.
        plot: a chart as SVG; empty where there is none.
        headings: ``plot``, ``words`` (below the plot's heading), ``facts`` and ``table``.
    """
    embedded = [(panel.name, [(words, _data_uri(picture)) for words, picture in panel.pictures]) for panel in panels]
    page = environment("vital_exp.attacks").get_template("audit.html")
    columns = list(dict.fromkeys(key for row in audit["table"] for key in row))
    runs = [_link(folder, Path(run)) for run in audit["runs"]]
    known = {"audit": audit, "panels": embedded, "columns": columns, "runs": runs, "headings": headings}
    text = page.render(**known, plot=Markup(plot))  # the plot escapes names
    return write_whole(folder / "report.html", [text])


def _link(folder: Path, run: Path) -> tuple[str, str]:
    """A run folder's name with its parent's, and the relative link to its page, or to the folder if it has no page."""
    place = Path(os.path.relpath(run, folder)).as_posix()
    page = "report.html" if (run / "report.html").is_file() else ""
    return "/".join(run.resolve().parts[1:][-2:]), f"{place}/{page}"


def _data_uri(picture: Tensor) -> str:
    image = as_image(to_uint8(as_rgb(picture)))
    image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    return image_uri(image)
