"""Path similarity of a run's pictures, layer by layer: a check without an attack (docs/methods/metrics.md)."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

import torch
from torch import Tensor, nn

from vital_exp.attacks.recorded import RecordedRun
from vital_exp.errors import UsageError
from vital_exp.evaluation.path_similarity import MEASURES, path_similarity
from vital_exp.images.output import resized
from vital_exp.models.layers import layer_shapes
from vital_exp.models.network import VisionNetwork, model_space
from vital_exp.models.precision import exact
from vital_exp.reporting.charts import Scale, linear

LARGEST = 20_000  # activations of a layer that are compared; of more, a random choice, the same for all pictures
IMAGES_PER_PASS = 8
LARGEST_MEMORY = 2**30  # bytes of the natural images' activations; more layers take more passes
VALUES = ("value", "low", "high", "n", "picture", "same", "different")
HALF_WAY = 0.5  # between natural images of other classes (0) and of the same class (1)
# Sizes of the chart in px. The margins grow with the names of layers and runs.
WIDTH, CURVES, LEFT, RIGHT = 860, 236, 50, 12
LINE = 15  # height of a line of the legend
LETTER, SLOPE = 5.2, 60  # approximate width of a letter of a layer's name at 9 px; the name's slope in degrees
CLOSEST = 10  # the smallest distance between two layers' names
LOWEST, HIGHEST = -0.5, 1.5  # values beyond are drawn at the border: early layers have small denominators
SAME = "as similar as natural images of the same class"
# Texts have an outline in the page's colour, so that lines behind them do not cross their letters.
HALO = 'stroke="var(--card, #fff)" stroke-width="4" paint-order="stroke"'
AXES = {
    "spearman": "similarity of activations to those of natural images of the same class (Spearman's rank correlation, "
    "normalised)",
    "cosine": "similarity of activations to those of natural images of the same class (cosine, normalised)",
}
COLOURS = ("#3f87d4", "#e0862a", "#2aa27a", "#c9559c", "#8d74dd", "#ab931c", "#d9544d", "#2aa3b8")


def compared_layers(network: VisionNetwork) -> list[str]:
    """Return the convolutions and linear layers of a network, in the order in which they run."""
    modules = dict(network.module.named_modules())
    return [name for name in layer_shapes(network) if isinstance(modules[name], (nn.Conv2d, nn.Linear))]


def similarity_rows(run: RecordedRun, count: int, layers: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """Yield one row per layer and measure.

    Columns: run, method, layer, depth, measure, value, low, high, n, picture, same, different.

    Args:
        run: its pictures are compared with its targets' natural images.
        count: number of natural images per target.
        layers: layer names; None: all of :func:`compared_layers`.

    Raises:
        UsageError: the run has fewer than two targets, or a layer is unknown.
    """
    if len(run.targets) < 2:
        raise UsageError(
            "run", run.folder, "pictures of at least two targets are needed: images of the others are the value 0"
        )
    layers = compared_layers(run.network) if layers is None else list(layers)
    run.network.taps(layers, "layer")
    own = [run.own_images(target, count) for target in run.targets]
    natural, labels = torch.cat(own), torch.repeat_interleave(torch.tensor([len(images) for images in own]))
    numbers = torch.arange(len(run.targets))
    together = max(1, LARGEST_MEMORY // (4 * LARGEST * len(natural)))
    for first in range(0, len(layers), together):
        some = layers[first : first + together]
        shown, real = _activations(run.network, some, run.pictures), _activations(run.network, some, natural)
        for depth, layer in enumerate(some, start=first):
            for measure in MEASURES:
                found = path_similarity(shown[layer], numbers, real[layer], labels, measure)
                values = {key: getattr(found, key) for key in VALUES}
                names = {"run": str(run.folder), "method": run.name, "layer": layer, "depth": depth, "measure": measure}
                yield names | values


@torch.no_grad()
def _activations(network: VisionNetwork, layers: Sequence[str], images: Tensor) -> dict[str, Tensor]:
    """Each layer's activations at the network's input size, (N, D), a row per image, D at most LARGEST."""
    size, taps, rows = network.preprocessing.size, network.taps(layers), defaultdict(list)
    places: dict[int, Tensor] = {}  # the chosen activations, by the number of all
    for part in images.split(IMAGES_PER_PASS):
        for layer, activations in taps(model_space(resized(part, size), network))[0].items():
            values = exact(activations).flatten(1)
            count = values.shape[1]
            if count > LARGEST and count not in places:
                places[count] = torch.randperm(count, generator=torch.Generator().manual_seed(0))[:LARGEST]
            rows[layer].append(values[:, places[count]] if count in places else values)
    return {layer: torch.cat(parts) for layer, parts in rows.items()}


def verdict(name: str, rows: Sequence[Mapping[str, Any]], measure: str = "spearman") -> str:
    """Return one line: from which layer on, if any, the pictures are processed as natural images are.

    That is the first layer from which on the interval's lower end stays above half way between images of other classes
    (0) and of the same class (1).
    """
    values = [(row["layer"], row["low"], row["value"]) for row in rows if row["measure"] == measure]
    alike = "the pictures are processed more like natural images of their own unit than of others"
    first = len(values)
    while first and values[first - 1][1] > HALF_WAY:
        first -= 1
    if first == len(values):
        layer, low, value = values[-1]
        last = f"{layer}: {measure} {value:.2f}, 95 % interval from {low:.2f}"
        return f"{name}: not even at the last layer is it clear that {alike} ({last})"
    where = "in every layer" if first == 0 else f"from {values[first][0]} on (layer {first + 1} of {len(values)})"
    return f"{name}: {where} {alike}"


def similarity_plot(rows: Sequence[Mapping[str, Any]], measure: str = "spearman") -> str:
    """Return a chart of all runs as SVG: the normalised similarity by layer, with its interval."""
    rows = [row for row in rows if row["measure"] == measure]
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    runs = list(dict.fromkeys((row["run"], row["method"]) for row in rows))
    room = LETTER * max(map(len, layers), default=0)
    across, down = room * math.cos(math.radians(SLOPE)), room * math.sin(math.radians(SLOPE))
    top, left = LINE * (len(runs) + 1) + 12, max(LEFT, across)
    x = linear(-0.5, len(layers) - 0.5, left, WIDTH - RIGHT)
    height = linear(LOWEST, HIGHEST, top + CURVES, top)
    y = lambda value: height(min(max(value, LOWEST), HIGHEST))  # noqa: E731
    frame = _frame(layers, measure, x, y, left)
    parts: list[str] = []
    for number, (folder, name) in enumerate(runs):
        own = {row["layer"]: row for row in rows if row["run"] == folder}
        there = [(x(place), own[layer]) for place, layer in enumerate(layers) if layer in own]
        colour = COLOURS[number % len(COLOURS)]
        parts.append(_curve(there, y, colour))
        parts.append(f'<rect x="4" y="{8 + LINE * number}" width="14" height="4" fill="{colour}"/>')
        parts.append(f'<text x="24" y="{14 + LINE * number}">{escape(name)}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top + CURVES + down + 22:.0f}" role="img" '
        f'font-size="11" font-family="system-ui, sans-serif" fill="currentColor">'
        f"<title>Path similarity by layer</title>{''.join(parts)}{frame}</svg>"
    )


def _frame(layers: Sequence[str], measure: str, x: Scale, y: Scale, left: float) -> str:
    """Grid lines, words for the values 0 and 1, and the layers' names, as many as fit."""
    parts = [f'<text x="4" y="{y(HIGHEST):.1f}" opacity=".72">{AXES.get(measure, measure)}</text>']
    for value, words in ((0.0, "as dissimilar as natural images of different classes"), (0.5, ""), (1.0, SAME)):
        parts.append(
            f'<line x1="{left:.1f}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="currentColor" '
            f'stroke-opacity="{0.5 if words else 0.15}"/><text x="{left - 8:.1f}" y="{y(value) + 4:.1f}" '
            f'text-anchor="end">{value:g}</text>'
            f'<text x="{WIDTH - RIGHT}" y="{y(value) + 14:.1f}" text-anchor="end" opacity=".72" {HALO}>{words}</text>'
        )
    each = math.ceil(CLOSEST / (x(1) - x(0)))
    for place, layer in list(enumerate(layers))[::each]:
        corner = f"translate({x(place):.1f},{y(LOWEST) + 12:.1f}) rotate(-{SLOPE})"
        parts.append(f'<text transform="{corner}" font-size="9" text-anchor="end">{escape(layer)}</text>')
    return "".join(parts)


def _curve(there: Sequence[tuple[float, Mapping[str, Any]]], y: Scale, colour: str) -> str:
    """A band for the interval and a line for the values."""
    upper = [f"{x:.1f},{y(row['high']):.1f}" for x, row in there]
    lower = [f"{x:.1f},{y(row['low']):.1f}" for x, row in reversed(there)]
    line = " ".join(f"{x:.1f},{y(row['value']):.1f}" for x, row in there)
    return (
        f'<polygon points="{" ".join(upper + lower)}" fill="{colour}" opacity=".15"/>'
        f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>{_dots(there, y, colour)}'
    )


def _dots(there: Sequence[tuple[float, Mapping[str, Any]]], y: Scale, colour: str) -> str:
    """A dot per layer, with its value as a tooltip."""
    return "".join(
        f'<circle cx="{x:.1f}" cy="{y(row["value"]):.1f}" r="3.5" fill="{colour}"><title>'
        f"{escape(str(row['layer']))}: {row['value']:.3f} ({row['low']:.3f} to {row['high']:.3f})</title></circle>"
        for x, row in there
    )
