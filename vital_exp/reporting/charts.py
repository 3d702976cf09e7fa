"""Loss curves of a run: read from history.csv as a stream, thinned to a few points, drawn as inline SVG."""

from __future__ import annotations

import csv
import math
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

# Points kept of each curve, the last step among them; the chart has hardly more pixels.
MAX_POINTS = 200
# The axis is logarithmic where the largest value exceeds the smallest by more than this factor.
LOG_RATIO = 20.0
# Decades below the largest value that a logarithmic axis shows: a prior that vanishes must not squeeze other terms.
LOG_DECADES = 6.0
# The sum of the terms, drawn in the colour of the text.
TOTAL = "total"
# A term within so many pixels of the total has no line of its own.
SAME_LINE = 1.0
# A term smaller than this share of the largest has no line: it would flatten all others.
NEGLIGIBLE = 1e-3
SAME, SMALL = "same as total", "not drawn: small"
HOVERED = 24  # strips of a chart with their values as a tooltip
# Medium tones, distinct on white and on black, also for most colour-blind readers.
TERM_COLOURS = ("#3f87d4", "#e0862a", "#2aa27a", "#c9559c", "#8d74dd", "#ab931c", "#d9544d", "#2aa3b8")

# Sizes in units of the viewBox (about one CSS pixel in a card).
WIDTH, HEIGHT = 320.0, 132.0
LEFT, RIGHT, TOP, BOTTOM = 38.0, 6.0, 20.0, 18.0
LETTER = 5.6  # approximate width of a digit at 10 px
# Values that differ by less than this share of the largest are drawn as constant: their ticks would have too many
# digits to read.
CONSTANT = 1e-6
MOST_DIGITS = 8  # of a tick's label, after the point

Scale = Callable[[float], float]


@dataclass
class Curve:
    """The loss terms of one target by step, thinned while they are read.

    Attributes:
        terms: names of the terms, in the order of the columns.
        points: arrays (step, value of each term), fewer than ``most`` and the last step; NaN where there is no number.
        most: the number of points at which every second one is dropped.
    """

    terms: tuple[str, ...]
    points: list[array[float]] = field(default_factory=list)
    most: int = MAX_POINTS
    _stride: int = 1
    _seen: int = 0
    _pending: tuple[float, Sequence[str]] | None = None

    def add(self, step: float, cells: Sequence[str]) -> None:
        """Add the next row. A step again (of a run that was continued) replaces this step and all later ones."""
        if self._pending is not None and step <= self._pending[0]:
            while self.points and self.points[-1][0] >= step:
                self.points.pop()
        self._pending = (step, cells)
        if self._seen % self._stride == 0:
            self._keep()
        self._seen += 1

    def _keep(self) -> None:
        assert self._pending is not None
        step, cells = self._pending
        self.points.append(array("d", [step, *map(_number, cells)]))
        if len(self.points) == self.most:
            del self.points[1::2]
            self._stride *= 2

    def close(self) -> None:
        """Add the last row, if it was thinned out."""
        if self._pending is not None and (not self.points or self.points[-1][0] != self._pending[0]):
            self._keep()

    def series(self) -> dict[str, list[float]]:
        """Return {term: its values at ``points``} for the terms with a finite value."""
        columns = {term: [point[1 + i] for point in self.points] for i, term in enumerate(self.terms)}
        return {term: values for term, values in columns.items() if any(map(math.isfinite, values))}

    def colour(self, term: str) -> str:
        """Return the CSS colour of a term's line, the same in every chart of a run."""
        if term == TOTAL or term not in self.terms:
            return "currentColor"
        return TERM_COLOURS[[t for t in self.terms if t != TOTAL].index(term) % len(TERM_COLOURS)]


def read_curves(path: Path, most: int = MAX_POINTS) -> dict[str, Curve]:
    """Return {target: curve} of a history.csv (columns target, step, then loss terms), thinned as it is read.

    Args:
        path: the file.
        most: points kept of each curve.

    Rows that are cut short, or whose step is no number, are skipped. A file without the two columns has no curves.
    """
    curves: dict[str, Curve] = {}
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        rows = csv.reader(line.replace("\0", "") for line in file)
        header = next(rows, [])
        if header[:2] != ["target", "step"]:
            return {}
        terms = tuple(header[2:])
        for row in rows:
            if len(row) != len(header) or math.isnan(step := _number(row[1])):
                continue
            if row[0] not in curves:
                curves[row[0]] = Curve(terms, most=most)
            curves[row[0]].add(step, row[2:])
    for curve in curves.values():
        curve.close()
    return curves


def loss_chart(curve: Curve, title: str) -> str:
    """Return the curve as one inline ``<svg>`` with a line per term and ``title`` as its label; empty without a value.

    The axis of the loss is logarithmic where all values are >= 0 and spread by more than ``LOG_RATIO``. Terms that
    :func:`undrawn` names have no line. The chart has no legend (:func:`line_colour` gives the colours for one);
    tooltips show the values.
    """
    missing = undrawn(curve)
    series = {term: values for term, values in curve.series().items() if term not in missing}
    finite = _finite(series)
    if not finite:
        return ""
    y, ticks, kind = _loss_axis(finite)
    left = max(LEFT, 12 + LETTER * max(map(len, ticks.values()), default=0))
    x = linear(curve.points[0][0], curve.points[-1][0], left, WIDTH - RIGHT)
    steps = [x(point[0]) for point in curve.points]
    # The total comes last, on top of the terms.
    order = sorted(series, key=lambda term: term == TOTAL)
    lines = "".join(_line(steps, list(map(y, series[term])), curve.colour(term), term) for term in order)
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}" role="img" aria-label="{escape(title)}" '
        f'font-size="10" fill="currentColor"><text x="2" y="12" fill-opacity=".72">loss{kind}</text>'
        f"{_grid(y, ticks, left)}{_step_labels(curve, left)}"
        f'<g fill="none" stroke-width="1.5" stroke-linejoin="round" stroke-linecap="round">{lines}</g>'
        f'<g fill="transparent">{_hovered(curve, steps, left)}</g></svg>'
    )


def undrawn(curve: Curve) -> dict[str, str]:
    """Return the terms without a line of their own, each with the reason."""
    series = curve.series()
    largest = {term: max(abs(value) for value in _finite({term: values})) for term, values in series.items()}
    most = max(largest.values(), default=0.0)
    found = {term: SMALL for term in series if term != TOTAL and largest[term] < NEGLIGIBLE * most}
    total = series.get(TOTAL)
    if total is None:
        return found
    rest = {term: values for term, values in series.items() if term not in found}
    y, _, _ = _loss_axis(_finite(rest))
    for term, values in rest.items():
        if term != TOTAL and all(_near(y(a), y(b)) for a, b in zip(values, total, strict=True)):
            found[term] = SAME
    return found


def line_colour(curve: Curve, term: str, missing: Mapping[str, str]) -> str:
    """Return the colour of the line that shows a term, the total's where both coincide; empty where it has no line."""
    if missing.get(term) == SMALL:
        return ""
    return curve.colour(TOTAL if term in missing else term)


def _near(height: float, other: float) -> bool:
    return (math.isnan(height) and math.isnan(other)) or abs(height - other) <= SAME_LINE


def _finite(series: Mapping[str, Sequence[float]]) -> list[float]:
    return [value for values in series.values() for value in values if math.isfinite(value)]


def _hovered(curve: Curve, steps: Sequence[float], left: float) -> str:
    """Return transparent strips with the values of all terms at a step as tooltips."""
    stride = max(1, -(-len(steps) // HOVERED))
    chosen = list(range(len(steps) - 1, -1, -stride))[::-1]
    series = curve.series()
    width = (WIDTH - RIGHT - left) / max(len(chosen) - 1, 1)
    strips = []
    for place in chosen:
        values = "; ".join(
            f"{term} {values[place]:.4g}" for term, values in series.items() if math.isfinite(values[place])
        )
        start = min(max(steps[place] - width / 2, left), WIDTH - RIGHT)
        end = max(start, min(steps[place] + width / 2, WIDTH - RIGHT))
        strips.append(
            f'<rect x="{start:.1f}" y="{TOP:.0f}" width="{end - start:.1f}" height="{HEIGHT - TOP - BOTTOM:.0f}">'
            f"<title>{escape(f'step {curve.points[place][0]:.0f}: {values}')}</title></rect>"
        )
    return "".join(strips)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def linear(low: float, high: float, start: float, end: float) -> Scale:
    """Return the linear scale that maps low to start and high to end."""
    span = (high - low) or 1.0
    return lambda value: start + (end - start) * (value - low) / span


def _loss_axis(values: list[float]) -> tuple[Scale, dict[float, str], str]:
    """Return the scale from a loss to a height (NaN off the axis), its ticks with their labels, and its kind."""
    low, high = min(values), max(values)
    positive = min((value for value in values if value > 0), default=high)
    floor, ceiling = HEIGHT - BOTTOM, TOP
    if low >= 0 and high / (positive or 1.0) > LOG_RATIO:
        bottom = max(math.log10(positive), math.log10(high) - LOG_DECADES)
        scale = linear(bottom, math.log10(high), floor, ceiling)
        marked = {tick: _plain(f"{tick:g}") for tick in _decades(bottom, high)}
        on_axis = lambda v: scale(math.log10(v)) if v > 0 and math.log10(v) >= bottom else math.nan  # noqa: E731
        return on_axis, marked, ", logarithmic"
    largest = max(abs(low), abs(high))
    margin = (0.5 * largest or 0.5) if high - low <= CONSTANT * largest else 0.0
    scale = linear(low - margin, high + margin, floor, ceiling)
    return lambda v: scale(v) if math.isfinite(v) else math.nan, labelled_ticks(low - margin, high + margin), ""


def _decades(bottom: float, high: float) -> list[float]:
    """Return powers of ten from 10**bottom to high, evenly spaced, about four at most."""
    exponents = range(math.ceil(bottom), math.floor(math.log10(high)) + 1)
    return [10.0**e for e in exponents[:: 1 + len(exponents) // 5]]


def round_ticks(low: float, high: float) -> list[float]:
    """Return two to five round numbers between low and high."""
    power = 10.0 ** math.floor(math.log10(high - low))
    gap = next(power * m for m in (0.2, 0.25, 0.5, 1.0, 2.0, 2.5, 5.0) if (high - low) / (power * m) <= 4)
    return [gap * i for i in range(math.ceil(low / gap), math.floor(high / gap) + 1)]


def labelled_ticks(low: float, high: float) -> dict[float, str]:
    """Return two to five round numbers between low and high with their labels, no label twice."""
    ticks = round_ticks(low, high)
    gap = ticks[1] - ticks[0] if len(ticks) > 1 else abs(ticks[0]) or 1.0
    largest = max(map(abs, ticks))
    kind = "f" if largest == 0 or 1e-3 <= largest < 1e5 else "e"
    for digits in range(MOST_DIGITS + 1):
        texts = [_plain(f"{tick:.{digits}{kind}}") for tick in ticks]
        if all(abs(float(text) - tick) < 1e-3 * gap for text, tick in zip(texts, ticks, strict=True)):
            break
    first = {text: tick for tick, text in zip(reversed(ticks), reversed(texts), strict=True)}
    return {tick: text for text, tick in reversed(first.items())}


def _plain(text: str) -> str:
    """Write any form of zero as 0, and 1.5e+07 as 1.5e7."""
    number, e, exponent = text.partition("e")
    return "0" if float(number) == 0 else f"{number}{e}{int(exponent) if e else ''}"


def _grid(y: Scale, ticks: dict[float, str], left: float) -> str:
    rules = "".join(f'<path d="M{left:.0f} {y(t):.1f}H{WIDTH - RIGHT:.0f}"/>' for t in ticks)
    texts = "".join(f'<text x="{left - 6:.0f}" y="{y(t) + 3.5:.1f}">{text}</text>' for t, text in ticks.items())
    return (
        f'<g stroke="currentColor" stroke-opacity=".14">{rules}</g><g text-anchor="end" fill-opacity=".62">{texts}</g>'
    )


def _step_labels(curve: Curve, left: float) -> str:
    first, last = curve.points[0][0], curve.points[-1][0]
    end = f'<text x="{WIDTH - RIGHT:.0f}" y="{HEIGHT - 5:.0f}" text-anchor="end">step {last:.0f}</text>'
    start = f'<text x="{left:.0f}" y="{HEIGHT - 5:.0f}">{first:.0f}</text>' if first != last else ""
    return f'<g fill-opacity=".62">{start}{end}</g>'


def _line(xs: list[float], ys: list[float], colour: str, term: str) -> str:
    """Return one path, interrupted where a height is NaN; a single point becomes a dot as wide as the line."""
    data = "".join("M" + "L".join(run) + ("h0" if len(run) == 1 else "") for run in _runs(xs, ys))
    return f'<path d="{data}" stroke="{colour}"><title>{escape(term)}</title></path>' if data else ""


def _runs(xs: list[float], ys: list[float]) -> Iterator[list[str]]:
    run: list[str] = []
    for x, y in zip(xs, ys, strict=True):
        if not math.isnan(y):
            run.append(f"{x:.1f} {y:.1f}")
        elif run:
            yield run
            run = []
    if run:
        yield run
