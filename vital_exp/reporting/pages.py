"""Common parts of all pages: the rendering of templates, and numbers, names and durations in words."""

from __future__ import annotations

import math
import re
from functools import cache
from itertools import pairwise
from pathlib import PurePath

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from vital_exp.models.network_names import network_title

DRAWN = re.compile(r"drawn/\d+-\d+-\d+")  # folders of the cache that hold drawn images: revision, seed, count
OWN = "vital_exp.reporting"  # the package whose templates are base.html and base.css


@cache
def environment(package: str = OWN) -> Environment:
    """Return the Jinja environment of a package's templates and of the shared ones; it escapes all values.

    There is one per package, so that each template is compiled once.
    """
    loader = ChoiceLoader([PackageLoader(name) for name in dict.fromkeys((package, OWN))])
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters.update(number=format_number, duration=format_duration, folder=folder_words, network=network_title)
    return made


def format_number(value: object) -> str:
    """Return a number for people: three significant digits, a minus sign, a dash for None; text is not changed."""
    if value is None:
        return "–"
    if isinstance(value, (bool, str)) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int) or value == 0 or not math.isfinite(value):
        text = f"{value:.0f}"
    elif abs(value) >= 1000:
        text = f"{value:,.0f}".replace(",", "\u202f") if abs(value) < 1e7 else f"{value:.2e}"
    else:
        text = f"{value:#.3g}" if abs(value) >= 1e-3 else f"{value:.1e}"
    return text.rstrip(".").replace("-", "−")


def folder_words(path: str) -> str:
    """Return the words after "images": "of parent/folder", or "drawn by code" for the cache of drawn images."""
    parts = PurePath(path).parts
    if any(DRAWN.fullmatch("/".join(pair)) for pair in pairwise(parts)):
        return "drawn by code"
    return f"of {'/'.join(part for part in parts[-2:] if part != PurePath(path).anchor) or path}"


def format_duration(seconds: float) -> str:
    """Return a duration in seconds as text: 4.2 s, 3 min 20 s or 2 h 05 min."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
