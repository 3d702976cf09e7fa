"""Ablation on a circuit's page: a chart per layer, the effects of the shown channels, edges and rank correlations."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from markupsafe import Markup

from vital_exp.reporting.charts import TERM_COLOURS, Scale, linear
from vital_exp.targets.words import in_words

CAUSAL = "causal.json"
ORDERS = {"relevance": "most relevant", "activation": "strongest", "random": "random"}
IMAGES = {"references": "references", "others": "other images"}
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 420.0, 220.0, 38.0, 12.0, 34.0, 34.0
LOWEST, HIGHEST = -0.25, 1.25  # values beyond are drawn at the border


def read_causal(folder: Path, titles: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the content of ``folder/causal.json`` for the page; None where there was no ablation.

    Args:
        folder: the circuit's folder.
        titles: the titles of units on the page, by name.
    """
    if not (folder / CAUSAL).is_file():
        return None
    found: dict[str, Any] = json.loads((folder / CAUSAL).read_text(encoding="utf-8"))
    for layer in found["layers"]:
        layer["charts"] = {words: Markup(chart(layer, name)) for name, words in IMAGES.items()}  # names are escaped
    for part in (*found["edges"], *found["ranks"]):
        part.update({key: titles.get(part[key], in_words(part[key])) for key in ("unit", "channel") if key in part})
    known = [rank["correlation"] for rank in found["ranks"] if rank["correlation"] is not None]
    found["correlation"] = sum(known) / len(known) if known else None
    return found


def chart(layer: Mapping[str, Any], images: str) -> str:
    """Return an SVG chart of faithfulness (solid lines) and completeness (dashed) by number of channels.

    Args:
        layer: the ablation results of a layer.
        images: those over which the values are means: ``references`` or ``others``.
    """
    counts = layer["counts"]
    x, y = linear(0, max(1, len(counts) - 1), LEFT, WIDTH - RIGHT), linear(LOWEST, HIGHEST, HEIGHT - BOTTOM, TOP)
    parts = [
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="currentColor" '
        f'stroke-opacity=".2"/><text x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:g}</text>'
        for value in (0, 0.5, 1)
    ]
    parts += [
        f'<text x="{x(place):.1f}" y="{HEIGHT - 18}" text-anchor="middle">{count}</text>'
        for place, count in enumerate(counts)
    ]
    for number, (order, words) in enumerate(ORDERS.items()):
        curves, colour = layer[images]["curves"][order], TERM_COLOURS[number]
        parts.append(_line(curves["faithfulness"], x, y, f'stroke="{colour}"'))
        parts.append(_line(curves["completeness"], x, y, f'stroke="{colour}" stroke-dasharray="5 4"'))
        left = LEFT + 118 * number
        parts.append(
            f'<rect x="{left}" y="8" width="14" height="4" fill="{colour}"/><text x="{left + 20}" y="14">{words}</text>'
        )
    if not any(value is not None for value in layer[images]["curves"]["relevance"]["faithfulness"]):
        parts.append(f'<text x="{LEFT + 8}" y="{y(0.5) - 6:.1f}">removing the whole layer changes nothing here</text>')
    title = f"Channels of {escape(str(layer['layer']))}: kept (solid) and removed (dashed), over {IMAGES[images]}"
    return (
        f'<svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" font-size="11" '
        f'font-family="system-ui, sans-serif" fill="currentColor"><title>{title}</title>{"".join(parts)}'
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 4}" text-anchor="end" opacity=".72">channels</text></svg>'
    )


def _line(values: Sequence[float | None], x: Scale, y: Scale, style: str) -> str:
    """A curve through the known values; empty where none is known."""
    points = [
        f"{x(place):.1f},{y(min(max(value, LOWEST), HIGHEST)):.1f}"
        for place, value in enumerate(values)
        if value is not None
    ]
    return f'<polyline points="{" ".join(points)}" fill="none" {style} stroke-width="2"/>' if points else ""
