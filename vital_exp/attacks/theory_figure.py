"""The chart of the check ``theory``: what the pictures leave open, a bar per class of functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from vital_exp.reporting.charts import linear

WIDTH, LEFT, RIGHT, ROW, TOP = 860, 250, 60, 22, 34  # px of the figure


def figure(lines: Sequence[Mapping[str, Any]]) -> str:
    """Return lines of :func:`theory.summary` as SVG: a bar to the worst image, a line at the mean over images."""
    x = linear(0, 1, LEFT, WIDTH - RIGHT)
    parts = [_tick(x, value, TOP + ROW * len(lines)) for value in (0, 0.5, 1)]
    for number, line in enumerate(lines):
        top = TOP + ROW * number
        parts.append(f'<text x="{LEFT - 10}" y="{top + 15}" text-anchor="end">{escape(line["class"])}</text>')
        if line["undecided"] is None:
            parts.append(f'<text x="{LEFT + 6}" y="{top + 15}" opacity=".72">no such function found</text>')
            continue
        end, middle = x(min(line["undecided"], 1)), x(min(line["undecided_mean"], 1))
        parts.append(
            f'<rect x="{LEFT}" y="{top + 4}" width="{max(end - LEFT, 1):.1f}" height="{ROW - 8}" fill="#3f87d4" '
            f'opacity=".55"/><line x1="{middle:.1f}" x2="{middle:.1f}" y1="{top + 2}" y2="{top + ROW - 2}" '
            f'stroke="currentColor" stroke-width="2"/>'
            f'<text x="{end + 6:.1f}" y="{top + 15}">{line["undecided"]:.2f}</text>'
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {TOP + ROW * len(lines) + 12}" role="img" '
        f'font-size="12" font-family="system-ui, sans-serif" fill="currentColor">'
        f"<title>What the pictures leave open, by class of functions</title>{''.join(parts)}</svg>"
    )


def _tick(x: Callable[[float], float], value: float, bottom: float) -> str:
    words = {0: "0: determined", 0.5: "half of the range", 1: "1: all is open"}[value]
    anchor = {0: "start", 0.5: "middle", 1: "end"}[value]
    return (
        f'<line x1="{x(value):.1f}" x2="{x(value):.1f}" y1="{TOP}" y2="{bottom}" stroke="currentColor" '
        f'stroke-opacity=".25"/><text x="{x(value):.1f}" y="{TOP - 12}" text-anchor="{anchor}" '
        f'opacity=".72">{words}</text>'
    )
