"""Charts and headings: axes, ticks, units, and that a real browser cuts and breaks nothing."""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.chromium import Tab, tab
from vital_exp.attacks.paths import similarity_plot
from vital_exp.reporting.charts import Curve, labelled_ticks, loss_chart
from vital_exp.reporting.combined import Cell
from vital_exp.reporting.pages import environment
from vital_exp.reporting.plots import interval_plot, scatter_plot
from vital_exp.targets.words import in_words

LONG = "vital_fourier, objective.alignment.distance=squared, transforms=published, references.count=20, seed=3"
METHODS = ("vital", "vital_fourier, steps=400", "maco")
LONG_METHODS = ("vital", LONG, f"{LONG},image.parameterisation={'decorrelated' * 8}")


def table(metric: str, values: Sequence[float], methods: Sequence[str] = METHODS, spread: float = 0.0) -> Any:
    """A combined table of one metric and of seconds."""
    numbers = {metric: values, "seconds": [2.0, 30.0, 400.0]}
    if metric == "seconds":
        numbers = {metric: values}
    rows = {
        name: [
            Cell("resnet50", method, name, value, value - spread, value + spread)
            for method, value in zip(methods, row, strict=True)
        ]
        for name, row in numbers.items()
    }
    return SimpleNamespace(methods=list(methods), row=lambda _model, name: rows.get(name, []))


def ticks(svg: str) -> list[str]:
    """What is written at the ticks of a plot."""
    return re.findall(r">(-?\d[\d.e-]*(?: \w+)?)</text>", svg)


@pytest.mark.parametrize(
    ("low", "high"),
    [
        *((4998.0, 5002.0), (5998.2, 6001.1), (0.0, 1.0), (0.9985, 0.9991), (-3.0, 1e4), (1e6, 1.0004e6), (2e-7, 3e-7)),
        *((7.0, 7.0 + 1e-5), (-1e-30, 1e-30), (-0.5, 0.5), (1e5, 9e5), (99_990.0, 100_010.0)),
    ],
)
def test_no_tick_is_written_twice(low: float, high: float) -> None:
    marked = labelled_ticks(low, high)
    gap = min(b - a for a, b in zip(marked, list(marked)[1:], strict=False))
    assert 2 <= len(set(marked.values())) == len(marked) <= 5
    for tick, text in marked.items():
        assert float(text) == pytest.approx(tick, abs=gap / 100)
        assert low - gap / 100 <= tick <= high + gap / 100


@pytest.mark.parametrize("values", [[1.0, 1.0, 1.0], [0.97, 0.99, 1.0], [0.0, 0.0, 0.0]])
@pytest.mark.parametrize("metric", ["accuracy_top1", "transfer_top5[judge]", "probability", "correspondence_auc[x]"])
def test_shares_have_an_axis_from_0_to_1(metric: str, values: list[float]) -> None:
    for svg in (
        interval_plot(table(metric, values), "resnet50", metric),
        scatter_plot(table(metric, values), "", metric),
    ):
        shares = [text for text in ticks(svg) if not text.endswith(" s")]
        assert shares == ["0", "0.25", "0.50", "0.75", "1.00"]


def test_seconds_and_memory_have_units() -> None:
    seconds = interval_plot(table("seconds", [1.0, 20.0, 40.0]), "resnet50", "seconds")
    assert all(text.endswith(" s") for text in ticks(seconds))
    assert "seconds (s) ↓" in seconds
    memory = interval_plot(table("memory", [900.0, 1000.0, 1100.0]), "resnet50", "memory")
    assert all(text.endswith(" MiB") for text in ticks(memory))
    scatter = scatter_plot(table("fid[target]", [900.0, 1000.0, 1100.0]), "resnet50", "fid[target]")
    assert {"2 s", "50 s"} <= set(ticks(scatter))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("class-207", "class 207"),
        ("channel-layer4.2-1935_v2", "channel 1935 of layer4.2, variation 2"),
        ("neuron-layer4.2-1935-7-0", "neuron 1935 of layer4.2 at row 7, column 0"),
        ("concept-blocks-3-2", "concept 2 of blocks-3"),
        ("a name of one's own-3", "a name of one's own-3"),
    ],
)
def test_a_units_name_says_unit_and_layer_in_words(name: str, words: str) -> None:
    assert in_words(name) == words


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with tab(tmp_path_factory.mktemp("profile")) as page:
        yield page


def curve(values: Sequence[float]) -> Curve:
    return Curve(("a",), [array("d", [float(step), value]) for step, value in enumerate(values)])


def paths(layers: Sequence[str]) -> list[dict[str, Any]]:
    known = {"measure": "spearman", "value": 0.7, "low": 0.5, "high": 9.0}
    return [{"run": m, "method": m, "layer": layer, **known} for m in LONG_METHODS[:2] for layer in layers]


CUT = """[...document.querySelectorAll("svg text")].filter((text) => {
  const inner = text.getBoundingClientRect(), outer = text.closest("svg").getBoundingClientRect();
  return inner.left < outer.left - .5 || inner.right > outer.right + .5 || inner.top < outer.top - .5
    || inner.bottom > outer.bottom + .5;
}).map((text) => text.textContent)"""


def test_nothing_that_is_written_in_a_chart_is_cut(chromium: Tab, tmp_path: Path) -> None:
    long = "transfer_top1[a judge with quite a long name, of another architecture and of other weights]"
    svgs = [
        draw(table(metric, values, methods, 0.01), "resnet50", metric)
        for draw in (interval_plot, scatter_plot)
        for metric, values in (("fid[target]", [0.9985, 0.9988, 0.9991]), (long, [0.5, 1.0, 0.1]))
        for methods in (METHODS, LONG_METHODS)
    ]
    svgs += [loss_chart(curve(values), "loss") for values in ([500_123.0, 500_130.0], [1e-7, 2e-7], [1e9, 1.0], [5.0])]
    layers = [f"backbone.stages.{number}.blocks.11.attention.projection" for number in range(90)]
    svgs += [
        similarity_plot(paths(layers[:1])),
        similarity_plot(paths(layers)),
        similarity_plot(paths(["conv1", "fc"])),
    ]
    assert all(svgs)
    page = tmp_path / "charts.html"
    page.write_text(
        f"<!doctype html><meta charset=utf-8>{''.join(f'<div style=width:420px>{svg}</div>' for svg in svgs)}"
    )
    chromium.open(page)
    assert chromium.ask(CUT) == []


BROKEN = """[...document.querySelectorAll("h1, h2, h3")].flatMap((heading) => {
  const walker = document.createTreeWalker(heading, NodeFilter.SHOW_TEXT), broken = [];
  while (walker.nextNode()) for (const word of walker.currentNode.data.matchAll(/\\\\S+/g)) {
    const range = document.createRange();
    range.setStart(walker.currentNode, word.index);
    range.setEnd(walker.currentNode, word.index + word[0].length);
    if (new Set([...range.getClientRects()].map((line) => Math.round(line.top))).size > 1) broken.push(word[0]);
  }
  return broken;
})""".replace("\\\\", "\\")


@pytest.mark.parametrize("width", [1280, 390])
def test_headings_do_not_break_inside_words(width: int, chromium: Tab, tmp_path: Path) -> None:
    note = "total Sobol index 0.123 for golden retriever; striped (AUC 0.97), dotted (AUC 0.95), fur (AUC 0.9)"
    card = {"layer": "layer4", "channel": 12, "largest": 3.2, "patch": 3.1, "src": "", "width": 1000, "height": 400}
    card |= {"awake": 0.5, "bars": (0.0, 1.0), "low": 0.0, "high": 3.2}
    cards = [SimpleNamespace(**card, note=note), SimpleNamespace(**card, note="")]
    page = tmp_path / "index.html"
    known = {
        "meta": {"network": "resnet50", "layers": [{"layer": "layer4"}], "images": 9, "folder": "f", "pooling": "max"}
    }
    counts = {"count": 2, "mined": 2, "corrupt": [], "corrupt_count": 0, "embedded": True, "found": None}
    template = environment().get_template("mining.html")
    page.write_text(template.render(cards=cards, kind="concept", **known, **counts), encoding="utf-8")
    chromium.open(page, width=width)
    chromium.wait("document.querySelector('h2').innerText")  # a card has no text before its first frame
    assert chromium.ask("document.querySelector('h2').innerText") == "Concept 12 of layer4"
    assert chromium.ask(BROKEN) == []
    assert math.isclose(chromium.ask("document.documentElement.scrollWidth"), width)
