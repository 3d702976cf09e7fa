"""SVG plots of the combined table: a metric by method with intervals, and a metric against seconds."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from vital_exp.reporting.charts import CONSTANT, TERM_COLOURS, Scale, labelled_ticks, linear
from vital_exp.reporting.combined import Cell, CombinedTable
from vital_exp.reporting.formats import arrow, short
from vital_exp.reporting.metric_words import metric_title

# Sizes in px.
WIDTH = 420.0
ROW = 26.0  # height of a method's row
BOTTOM, RIGHT, MARGIN = 24.0, 14.0, 4.0
TITLE_LINE, NAME_LINE = 17.0, 14.0  # height of a line of the title, and of a name
LETTER = 6.6  # approximate width of a letter of a name, at 12 px
TICK_LETTER = 6.1  # approximate width of a letter of a tick's label, at 11 px
LONGEST_NAME = 26  # letters of a name beside its dot; longer names stand above the dot, or below the plot
SCATTER_HEIGHT = 235.0  # of a scatter plot without title and names
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, Arial, sans-serif"
QUIET = 'fill-opacity=".62" font-size="11"'
END = 'text-anchor="end"'
UNITS = {"seconds": "s", "memory": "MiB"}  # physical units of metrics
# The beginnings of names of metrics that are shares, probabilities or areas: their axis is from 0 to 1.
SHARES = (
    *("accuracy", "transfer", "crops", "probability", "clip_top1", "clip_top5", "clip_probability", "mis_"),
    *("correspondence_auc", "cosy_auc"),
)


@dataclass(frozen=True)
class Point:
    """A method's point in a plot: its value with the interval and, in a scatter plot, its seconds as x."""

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
    """Return a plot of a metric by method, a dot and an interval for each; empty without a value."""
    points = _points(table, model, metric)
    if not points:
        return ""
    title, top = _title(metric)
    names = [_lines(point.label, WIDTH - 2 * MARGIN) for point in points]
    above = any(len(point.label) > LONGEST_NAME for point in points)
    left = 18 if above else 18 + LETTER * max(len(point.label) for point in points)
    rows = [ROW + (NAME_LINE * len(lines) if above else 0) for lines in names]
    floor = top + sum(rows)
    low, high = _range(metric, points)
    x = linear(low, high, left, WIDTH - RIGHT)
    parts = [title]
    for tick, text in labelled_ticks(low, high).items():
        parts.append(f'<path d="M{x(tick):.1f} {top:.0f}V{floor:.0f}" stroke="currentColor" stroke-opacity=".14"/>')
        parts.append(_tick(x(tick), floor + 17, _with_unit(text, metric)))
    y = top
    for point, lines, height in zip(points, names, rows, strict=True):
        if above:
            parts += [_text(MARGIN, y + NAME_LINE * (line + 1) - 1, text) for line, text in enumerate(lines)]
        else:
            parts.append(_text(left - 10, y + height / 2 + 4, point.label, END))
        y += height
        parts.append(_whisker(point, x, y - ROW / 2))
    return _svg(floor + BOTTOM, f"{metric} of {model} by method", "".join(parts))


def scatter_plot(table: CombinedTable, model: str, metric: str) -> str:
    """Return a plot of a metric against seconds per picture; empty unless at least two methods have both."""
    seconds = {cell.method: cell.value for cell in table.row(model, "seconds")}
    points = [
        Point(point.label, point.colour, point.value, point.low, point.high, float(seconds.get(point.label) or 0))
        for point in _points(table, model, metric)
        if (seconds.get(point.label) or 0) > 0
    ]
    if len(points) < 2:
        return ""
    title, top = _title(metric, "against seconds per picture")
    low, high = _range(metric, points)
    marked = {tick: _with_unit(text, metric) for tick, text in labelled_ticks(low, high).items()}
    left = 16 + TICK_LETTER * max(map(len, marked.values()))
    floor = top + SCATTER_HEIGHT - 52
    y = linear(low, high, floor, top + 8)
    times = [point.x for point in points]
    first, last = math.log10(min(times)) - 0.12, math.log10(max(times)) + 0.12
    x = linear(first, last, left, WIDTH - RIGHT)
    parts = [title]
    for tick, text in marked.items():
        rule = f"M{left:.0f} {y(tick):.1f}H{WIDTH - RIGHT:.0f}"
        parts.append(f'<path d="{rule}" stroke="currentColor" stroke-opacity=".14"/>')
        parts.append(_text(left - 8, y(tick) + 4, text, f'text-anchor="end" {QUIET}'))
    parts += [_tick(x(math.log10(tick)), floor + 18, f"{tick:g} s") for tick in _seconds_ticks(first, last)]
    middle = f'text-anchor="middle" {QUIET}'
    parts.append(_text((left + WIDTH - RIGHT) / 2, floor + 36, "seconds per picture, logarithmic", middle))
    beside = all(len(point.label) <= LONGEST_NAME for point in points)
    parts += _placed(points, x, y, beside)
    names, height = ([], floor + 42) if beside else _named_below(points, floor + 42)
    return _svg(height, f"{metric} of {model} against seconds", "".join([*parts, *names]))


def _points(table: CombinedTable, model: str, metric: str) -> list[Point]:
    shades = colours(table.methods)
    return [_point(cell, shades[cell.method]) for cell in table.row(model, metric) if cell.value is not None]


def _point(cell: Cell, colour: str) -> Point:
    return Point(cell.method, colour, float(cell.value or 0), cell.low, cell.high)


def _range(metric: str, points: Sequence[Point]) -> tuple[float, float]:
    """The axis: 0 to 1 for shares; otherwise the range of all bounds with a margin, and from 0 if 0 is near."""
    if metric.startswith(SHARES):
        return 0.0, 1.0
    bounds = [bound for point in points for bound in (point.value, point.low, point.high) if bound is not None]
    low, high = min(bounds), max(bounds)
    if 0 <= low < 0.5 * high:
        low = 0.0
    margin = 0.04 * (high - low) if high - low > CONSTANT * abs(high) else 0.5 * abs(high) or 0.5
    return (low if low == 0 else low - margin), high + margin


def _whisker(point: Point, x: Scale, y: float) -> str:
    line = ""
    if point.low is not None and point.high is not None:
        line = (
            f'<path d="M{x(point.low):.1f} {y:.1f}H{x(point.high):.1f}" stroke="{point.colour}" stroke-width="3" '
            'stroke-opacity=".45" stroke-linecap="round"/>'
        )
    tip = escape(f"{point.label}: {_value_text(point)}")
    dot = f'<circle cx="{x(point.value):.1f}" cy="{y:.1f}" r="5" fill="{point.colour}"><title>{tip}</title></circle>'
    return line + dot


def _value_text(point: Point) -> str:
    interval = "" if point.low is None or point.high is None else f" ({short(point.low)} to {short(point.high)})"
    return short(point.value) + interval


def _placed(points: Sequence[Point], x: Scale, y: Scale, named: bool) -> list[str]:
    """Dots, intervals and, if ``named``, names of a scatter plot; names are placed so that they do not overlap."""
    parts: list[str] = []
    taken: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda one: -one.value):
        place, height = x(math.log10(point.x)), y(point.value)
        if point.low is not None and point.high is not None:
            parts.append(
                f'<path d="M{place:.1f} {y(point.low):.1f}V{y(point.high):.1f}" stroke="{point.colour}" '
                'stroke-width="3" stroke-opacity=".45" stroke-linecap="round"/>'
            )
        tip = escape(f"{point.label}: {_value_text(point)}, {short(point.x)} s")
        parts.append(
            f'<circle cx="{place:.1f}" cy="{height:.1f}" r="5" fill="{point.colour}"><title>{tip}</title></circle>'
        )
        if not named:
            continue
        room = LETTER * len(point.label) + 10
        right = place + room < WIDTH - MARGIN
        start = place + 10 if right else place - room
        line = height + 4
        while any(abs(line - other) < 13 and abs(start - beside) < room for beside, other in taken):
            line += 13
        taken.append((start, line))
        parts.append(_text(start, line, point.label) if right else _text(place - 10, line, point.label, END))
    return parts


def _named_below(points: Sequence[Point], y: float) -> tuple[list[str], float]:
    """A dot and a name for each method, in lines from y down, and the y below the last line."""
    parts = []
    for point in points:
        parts.append(f'<circle cx="10" cy="{y + 6:.1f}" r="4" fill="{point.colour}"/>')
        for line in _lines(point.label, WIDTH - 20 - MARGIN):
            parts.append(_text(20, y + 10, line))
            y += NAME_LINE + 2
    return parts, y + 4


def _seconds_ticks(first: float, last: float) -> list[float]:
    powers = range(math.floor(first), math.ceil(last) + 1)
    ticks = [step * 10.0**power for power in powers for step in (1, 2, 5)]
    shown = [tick for tick in ticks if first <= math.log10(tick) <= last]
    return shown[:: 1 + len(shown) // 8]


def _title(metric: str, more: str = "") -> tuple[str, float]:
    """Return the lines of a title, and the y at which the plot below begins."""
    name = f"{metric} ({UNITS[metric]})" if metric in UNITS else metric_title(metric)
    lines = [(line, 'font-size="12.5" font-weight="600"') for line in _lines(f"{name} {arrow(metric)}".strip())]
    lines += [(more, QUIET)] if more else []
    texts = [_text(MARGIN, 15 + TITLE_LINE * place, line, style) for place, (line, style) in enumerate(lines)]
    return "".join(texts), 13 + TITLE_LINE * len(lines)


def _lines(text: str, width: float = WIDTH - 2 * MARGIN) -> list[str]:
    """Break a text into lines of a width, after spaces and signs; inside a word only if it is longer than a line."""
    most, lines = int(width / (LETTER + 0.4)), [""]
    for part in re.findall(r"[^\s,;/=]+[\s,;/=]*|[\s,;/=]+", text):
        if lines[-1] and len(lines[-1]) + len(part.rstrip()) > most:
            lines.append("")
        lines[-1] += part
    return [line[first : first + most] for line in lines for first in range(0, max(len(line), 1), most)]


def _text(x: float, y: float, text: str, style: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(text)}</text>'


def _tick(x: float, y: float, text: str) -> str:
    """The label below a tick, shifted so that it stays inside the plot."""
    half = TICK_LETTER * len(text) / 2
    return _text(min(max(x, MARGIN + half), WIDTH - half), y, text, f'text-anchor="middle" {QUIET}')


def _with_unit(number: str, metric: str) -> str:
    return f"{number} {UNITS[metric]}" if metric in UNITS else number


def _svg(height: float, title: str, content: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="plot" viewBox="0 0 {WIDTH:.0f} {height:.0f}" role="img" '
        f'aria-label="{escape(title)}" font-family="{FONT}" font-size="12" fill="currentColor">{content}</svg>'
    )


def standalone(svg: str) -> str:
    """Return a plot as a file of its own: dark on white, independent of the viewer's theme."""
    head, _, content = svg.partition(">")
    return f'{head} color="#1d1c1a">\n<rect width="100%" height="100%" fill="#fff"/>\n{content}\n'
