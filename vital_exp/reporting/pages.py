"""What all pages have in common: how templates are rendered, how numbers are written."""

from __future__ import annotations

import math

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

OWN = "vital_exp.reporting"  # whose templates hold base.html and base.css


def environment(package: str = OWN) -> Environment:
    """Return what renders a package's templates, and those that all pages extend: everything from files is escaped."""
    loader = ChoiceLoader([PackageLoader(name) for name in dict.fromkeys((package, OWN))])
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters.update(number=format_number, duration=format_duration)
    return made


def format_number(value: object) -> str:
    """Return a number as a person reads it: three digits, a true minus, a dash for none; text stays as it is."""
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


def format_duration(seconds: float) -> str:
    """Return seconds as 4.2 s, 3 min 20 s or 2 h 05 min."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
