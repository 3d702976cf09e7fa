"""Plots of the combined table as SVG: a metric by method with its intervals, a metric against seconds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from vital_exp.reporting.charts import TERM_COLOURS, Scale, linear, round_ticks
from vital_exp.reporting.combined import Cell, CombinedTable
from vital_exp.reporting.formats import arrow, short

WIDTH = 420.0
ROW = 26.0  # of a method
TOP, BOTTOM, RIGHT = 30.0, 24.0, 14.0
LETTER = 6.6  # about the width of a letter at 12 px, for the room that names take
LONGEST_NAME = 26  # letters of a name that are shown
SCATTER_HEIGHT = 250.0
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, Arial, sans-serif"


@dataclass(frozen=True)
class Point:
    """A method's place in a plot."""

    label: str
    colour: str
    value: float
    low: float | None
    high: float | None
    x: float = math.nan


def colours(methods: Sequence[str]) -> dict[str, str]:
    """Return a colour for each method, the same in every plot."""
    return {method: TERM_COLOURS[place % len(TERM_COLOURS)] for place, method in enumerate(methods)}


def interval_plot(table: CombinedTable, model: str, metric: str) -> str:
    """Return a metric of a model by method, a dot and its interval each; empty when no method has a value."""
    points = _points(table, model, metric)
    if not points:
        return ""
    left = 18 + LETTER * max(len(_cut(point.label)) for point in points)
    height = TOP + ROW * len(points) + BOTTOM
    low, high = _range(points)
    x = linear(low, high, left, WIDTH - RIGHT)
    floor = height - BOTTOM
    parts = [_title(metric)]
    for tick in round_ticks(low, high):
        parts.append(f'<path d="M{x(tick):.1f} {TOP:.0f}V{floor:.0f}" stroke="currentColor" stroke-opacity=".14"/>')
        parts.append(f'<text x="{x(tick):.1f}" y="{height - 7:.0f}" text-anchor="middle" {QUIET}>{tick:.3g}</text>')
    for place, point in enumerate(points):
        y = TOP + ROW * (place + 0.5)
        parts.append(f'<text x="{left - 10:.0f}" y="{y + 4:.1f}" text-anchor="end">{escape(_cut(point.label))}</text>')
        parts.append(_whisker(point, x, y))
    return _svg(height, f"{metric} of {model} by method", "".join(parts))


def scatter_plot(table: CombinedTable, model: str, metric: str) -> str:
    """Return a metric against seconds per picture; empty with fewer than two methods that have both."""
    seconds = {cell.method: cell.value for cell in table.row(model, "seconds")}
    points = [
        Point(point.label, point.colour, point.value, point.low, point.high, float(seconds.get(point.label) or 0))
        for point in _points(table, model, metric)
        if (seconds.get(point.label) or 0) > 0
    ]
    if len(points) < 2:
        return ""
    low, high = _range(points)
    y = linear(low, high, SCATTER_HEIGHT - 42, TOP + 4)
    times = [point.x for point in points]
    first, last = math.log10(min(times)) - 0.12, math.log10(max(times)) + 0.12
    x = linear(first, last, 46, WIDTH - RIGHT)
    parts = [_title(metric, " against seconds per picture")]
    for tick in round_ticks(low, high):
        parts.append(f'<path d="M46 {y(tick):.1f}H{WIDTH - RIGHT:.0f}" stroke="currentColor" stroke-opacity=".14"/>')
        parts.append(f'<text x="38" y="{y(tick) + 4:.1f}" text-anchor="end" {QUIET}>{tick:.3g}</text>')
    for tick in _seconds_ticks(first, last):
        place = x(math.log10(tick))
        parts.append(
            f'<text x="{place:.1f}" y="{SCATTER_HEIGHT - 24:.0f}" text-anchor="middle" {QUIET}>{tick:g}</text>'
        )
    parts.append(
        f'<text x="{(46 + WIDTH - RIGHT) / 2:.0f}" y="{SCATTER_HEIGHT - 6:.0f}" text-anchor="middle" {QUIET}>'
        "seconds per picture, logarithmic</text>"
    )
    parts += _placed(points, x, y)
    return _svg(SCATTER_HEIGHT, f"{metric} of {model} against seconds", "".join(parts))


QUIET = 'fill-opacity=".62" font-size="11"'


def _points(table: CombinedTable, model: str, metric: str) -> list[Point]:
    shades = colours(table.methods)
    return [_point(cell, shades[cell.method]) for cell in table.row(model, metric) if cell.value is not None]


def _point(cell: Cell, colour: str) -> Point:
    return Point(cell.method, colour, float(cell.value or 0), cell.low, cell.high)


def _range(points: Sequence[Point]) -> tuple[float, float]:
    """From the lowest to the highest bound, with a margin; from 0 where that is near."""
    bounds = [bound for point in points for bound in (point.value, point.low, point.high) if bound is not None]
    low, high = min(bounds), max(bounds)
    if 0 <= low < 0.5 * high:
        low = 0.0
    margin = 0.04 * (high - low) or 0.5 * abs(high) or 0.5
    return (low if low == 0 else low - margin), high + margin


def _whisker(point: Point, x: Scale, y: float) -> str:
    line = ""
    if point.low is not None and point.high is not None:
        line = (
            f'<path d="M{x(point.low):.1f} {y:.1f}H{x(point.high):.1f}" stroke="{point.colour}" stroke-width="3" '
            'stroke-opacity=".45" stroke-linecap="round"/>'
        )
    told = escape(f"{point.label}: {_told(point)}")
    dot = f'<circle cx="{x(point.value):.1f}" cy="{y:.1f}" r="5" fill="{point.colour}"><title>{told}</title></circle>'
    return line + dot


def _told(point: Point) -> str:
    interval = "" if point.low is None or point.high is None else f" ({short(point.low)} to {short(point.high)})"
    return short(point.value) + interval


def _placed(points: Sequence[Point], x: Scale, y: Scale) -> list[str]:
    """Dots, whiskers and names of a scatter plot; a name goes where it has room."""
    parts: list[str] = []
    taken: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda one: -one.value):
        place, height = x(math.log10(point.x)), y(point.value)
        if point.low is not None and point.high is not None:
            parts.append(
                f'<path d="M{place:.1f} {y(point.low):.1f}V{y(point.high):.1f}" stroke="{point.colour}" '
                'stroke-width="3" stroke-opacity=".45" stroke-linecap="round"/>'
            )
        told = escape(f"{point.label}: {_told(point)}, {short(point.x)} s")
        parts.append(
            f'<circle cx="{place:.1f}" cy="{height:.1f}" r="5" fill="{point.colour}"><title>{told}</title></circle>'
        )
        room = LETTER * len(_cut(point.label)) + 10
        start = place + 10 if place + room < WIDTH - 4 else place - room
        line = height + 4
        while any(abs(line - other) < 13 and abs(start - beside) < room for beside, other in taken):
            line += 13
        taken.append((start, line))
        parts.append(f'<text x="{start:.1f}" y="{line:.1f}" font-size="12">{escape(_cut(point.label))}</text>')
    return parts


def _seconds_ticks(first: float, last: float) -> list[float]:
    powers = range(math.floor(first), math.ceil(last) + 1)
    ticks = [step * 10.0**power for power in powers for step in (1, 2, 5)]
    shown = [tick for tick in ticks if first <= math.log10(tick) <= last]
    return shown[:: 1 + len(shown) // 8]


def _title(metric: str, more: str = "") -> str:
    text = escape(f"{metric} {arrow(metric)}".strip())
    return f'<text x="4" y="15" font-size="12.5" font-weight="600">{text}<tspan {QUIET}>{more}</tspan></text>'


def _cut(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def _svg(height: float, title: str, content: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="plot" viewBox="0 0 {WIDTH:.0f} {height:.0f}" role="img" '
        f'aria-label="{escape(title)}" font-family="{FONT}" font-size="12" fill="currentColor">{content}</svg>'
    )


def standalone(svg: str) -> str:
    """Return a plot as a file of its own: dark on white, whatever the viewer's theme."""
    head, _, content = svg.partition(">")
    return f'{head} color="#1d1c1a">\n<rect width="100%" height="100%" fill="#fff"/>\n{content}\n'
