"""The site of an atlas in a real browser: search, sort, arrows, links, back, map, both themes, a phone, print."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chromium import Tab, axe, tab
from tests.synthetic_atlas import ERROR, write_atlas
from tests.test_pages import FAINT, NAMELESS, PAPER, PHONE, key
from vital_exp.atlases.compare_page import write_comparison
from vital_exp.atlases.site import write_site
from vital_exp.atlases.store import Entry, Store, UnitRow

LAYERS = {"conv1": 40, "layer1.0": 120}
LAYER = "layer1.0"
PAGES = {
    "entrance": ("index.html", ""),
    "found": ("index.html", "?find=wheel"),
    "layer": ("layer.html", f"{LAYER}?sort=clarity"),
    "map": ("layer.html", f"{LAYER}?view=map"),
    "unit": ("unit.html", f"{LAYER}/12"),
    "failed": ("unit.html", f"{LAYER}/7"),
    "cells": ("cells.html", LAYER),
}
VIOLATIONS = """axe.run({preload: false, resultTypes: ["violations"]}).then(({violations}) => violations
  .map((one) => `${one.id}: ${one.nodes[0].html}`))"""  # preloading would fetch, which no page may


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with tab(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("atlas")
    write_atlas(folder, LAYERS)
    write_cells(folder)
    return write_site(folder).parent


def write_cells(folder: Path) -> None:
    """Write an activation atlas of one layer: six cells on a diagonal and beside it."""
    places = [(0, 0), (0, 1), (1, 1), (2, 2), (2, 1), (3, 3)]
    cells = [
        {"row": row, "column": column, "vectors": 2 + number, "channel": number, "picture": f"pictures/{number}.png"}
        for number, (row, column) in enumerate(places)
    ]
    (folder / "cells" / LAYER).mkdir(parents=True)
    (folder / "cells" / LAYER / "cells.json").write_text(json.dumps({"grid": 8, "vectors": 2000, "cells": cells}))


@pytest.fixture(scope="module")
def comparison(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("comparison")
    others = [(LAYER, 30, None, None), (LAYER, 31, LAYER, 5000)]
    write_matches(folder, site, [(LAYER, unit, LAYER, 119 - unit) for unit in range(30)] + others)
    return write_comparison(folder)


def write_matches(folder: Path, site: Path, matches: list[tuple[Any, ...]]) -> None:
    with sqlite3.connect(folder / "compare.sqlite") as file:
        file.execute("CREATE TABLE meta (key TEXT, value TEXT)")
        file.execute(
            "CREATE TABLE matches (layer TEXT, unit INTEGER, other_layer TEXT, other_unit INTEGER, "
            "correlation REAL, change REAL, rank INTEGER)"
        )
        meta = {"a": str(site), "b": str(site), "images": 2000}
        file.executemany("INSERT INTO meta VALUES (?, ?)", [(name, json.dumps(value)) for name, value in meta.items()])
        rows = [(*match, 0.9 - 0.01 * rank, 0.1 + 0.01 * rank, rank) for rank, match in enumerate(matches)]
        file.executemany("INSERT INTO matches VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
    file.close()


def opened(chromium: Tab, page: Path, fragment: str = "", **screen: Any) -> None:
    chromium.open(page, fragment=fragment, **screen)
    chromium.wait("'ready' in (document.documentElement?.dataset ?? {})")


def type_in(chromium: Tab, field: str, text: str) -> None:
    chromium.ask(
        f"(() => {{ const one = document.getElementById('{field}'); one.value = {json.dumps(text)}; "
        "one.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )


def texts(chromium: Tab, place: str) -> list[str]:
    found: list[str] = chromium.ask(
        f"[...document.querySelectorAll({json.dumps(place)})].map((one) => one.textContent.trim())"
    )
    return found


def click(chromium: Tab, place: str, text: str) -> None:
    """Click the first node at a place of the page that has a text."""
    with_text = f"(one) => one.textContent.trim() === {json.dumps(text)}"
    chromium.ask(f"[...document.querySelectorAll({json.dumps(place)})].find({with_text}).click()")


def box(chromium: Tab, place: str) -> tuple[float, float, float]:
    """Left, top and width of a node, in px of the screen."""
    found = f"document.querySelector({json.dumps(place)}).getBoundingClientRect()"
    left, top, width = chromium.ask(f"(({{left, top, width}}) => [left, top, width])({found})")
    return left, top, width


def values(site: Path, measure: str) -> dict[int, float]:
    found = {row.unit: getattr(row, measure) for row in Store.open(site).units(LAYER)}
    return {unit: value for unit, value in found.items() if value is not None}


def test_the_entrance_shows_the_network_and_finds_units_of_all_layers(site: Path, chromium: Tab) -> None:
    opened(chromium, site / "index.html")
    assert chromium.ask("document.querySelector('h1').textContent") == "resnet50"
    assert "160 units (4 failed), 2\u202f000 images of imagenet/val" in chromium.ask(
        "document.getElementById('summary').textContent"
    )
    assert texts(chromium, ".layer h3") == list(LAYERS)
    assert chromium.ask("document.querySelectorAll('.block title')[1].textContent") == (
        "layer1.0: 120 channels, 28 × 28 map, 98\u00a0% done"
    )
    type_in(chromium, "find", "wheel")
    chromium.wait("document.getElementById('found').textContent === '20 units'")
    assert texts(chromium, "#hits .name") == ["wheel"] * 20
    assert chromium.ask("location.hash") == "#?find=wheel"
    type_in(chromium, "find", f"{LAYER}:12")
    chromium.wait("document.querySelectorAll('#hits li').length === 1")
    chromium.ask("document.querySelector('#hits a').click()")
    chromium.wait("document.documentElement?.dataset.ready === 'layer1.0/12'")
    assert texts(chromium, "h1") == ["Channel 12 of layer1.0"]
    chromium.ask("void setTimeout(() => history.back())")
    chromium.wait("document.querySelectorAll('#hits li').length === 1")
    type_in(chromium, "find", "no such thing")
    chromium.wait("document.getElementById('found').textContent === 'no unit is called so'")
    assert chromium.complaints() == []


def test_a_layer_is_sorted_and_searched_and_its_address_keeps_both(site: Path, chromium: Tab) -> None:
    opened(chromium, site / "layer.html", LAYER)
    assert texts(chromium, "#tiles b")[:3] == ["0", "1", "2"]
    assert "<b>sky</b>" in texts(chromium, "#tiles .name")  # as text, not as a tag
    type_in(chromium, "sort", "clarity")
    clarity = values(site, "clarity")
    best = [str(unit) for unit in sorted(clarity, key=lambda unit: -clarity[unit])]
    assert texts(chromium, "#tiles b")[:9] == best[:9]
    assert "mean cosine" in chromium.ask("document.getElementById('meaning').textContent")
    chromium.ask("document.getElementById('direction').click()")
    assert texts(chromium, "#tiles b")[:9] == best[::-1][:9]
    type_in(chromium, "find", "fur")
    chromium.wait("document.getElementById('shown').textContent === '15 of 120 units'")
    address = chromium.ask("location.href")
    assert address.endswith("#layer1.0?sort=-clarity&find=fur")
    opened(chromium, site / "layer.html", address.partition("#")[2])  # a link that was sent
    assert texts(chromium, "#tiles b") == [unit for unit in best[::-1] if int(unit) % 8 == 6]
    type_in(chromium, "find", "failed")
    chromium.wait("document.querySelectorAll('#tiles .is-failed').length === 3")
    assert chromium.complaints() == []


def test_only_tiles_near_the_screen_are_made(site: Path, chromium: Tab) -> None:
    opened(chromium, site / "layer.html", LAYER, width=700, height=500)
    assert len(texts(chromium, "#tiles li")) < 60
    chromium.ask("scrollTo(0, document.documentElement.scrollHeight)")
    chromium.wait("[...document.querySelectorAll('#tiles b')].at(-1).textContent === '119'")
    assert len(texts(chromium, "#tiles li")) < 60
    assert chromium.ask("document.querySelector('#tiles li:last-child').ariaPosInSet") == "120"


def test_a_unit_s_page_has_all_there_is_of_it(site: Path, chromium: Tab) -> None:
    opened(chromium, site / "unit.html", f"{LAYER}/12")
    assert texts(chromium, ".part > h2")[0].startswith("What it looks for")
    titles = [text.removesuffix("imagewindowwhere it fires") for text in texts(chromium, ".part > h2")[1:]]
    expected = ["Strongest images", "Weakest images", "Numbers", "Activations", "Classes", "Nearest units"]
    assert titles == [*expected, "What feeds it", "Make it again"]
    assert len(texts(chromium, ".facet")) == 2
    assert len(texts(chromium, "#strongest .photo")) == len(texts(chromium, "#weakest .photo")) == 9
    strongest = [row.name for row in Store.open(site).classes(LAYER, 12)]
    assert texts(chromium, ".class") == strongest
    assert chromium.ask("document.querySelectorAll('#histogram rect').length") == 24
    assert "target.layer=layer1.0 target.index=12" in texts(chromium, "#command code")[0]
    beside = Store.open(site).neighbours(LAYER, 12)
    links = "[...document.querySelectorAll('#input a')].map((one) => one.getAttribute('href'))"
    assert chromium.ask(links) == [f"unit.html#conv1/{row.other_unit}" for row in beside if row.kind == "input"]


def test_images_are_shown_whole_by_window_and_where_the_unit_fires(site: Path, chromium: Tab) -> None:
    opened(chromium, site / "unit.html", f"{LAYER}/12")
    buttons, image = "#strongest .choice button", "#strongest .photo img"
    left, _, width = box(chromium, "#strongest .window")
    start, _, wide = box(chromium, "#strongest .frame")
    assert ((start - left) / width, wide / width) == pytest.approx((40 / 224, 112 / 224), abs=0.01)
    click(chromium, buttons, "window")
    start, _, wide = box(chromium, image)
    assert ((left - start) / wide, width / wide) == pytest.approx((40 / 224, 112 / 224), abs=0.01)
    click(chromium, buttons, "where it fires")
    assert chromium.ask(f"document.querySelector('{image}').src").endswith("_fires.webp")
    click(chromium, "#pictures .choice button", "masked")
    assert chromium.ask("document.querySelector('.facet .picture').src").endswith("_masked.png")
    chromium.ask("document.querySelector('.facet .picture').click()")
    chromium.wait("document.querySelector('dialog').open")
    key(chromium, "ArrowRight", 39)  # of the dialog's pictures, not of the units
    key(chromium, "Escape", 27)
    assert chromium.ask("location.hash") == f"#{LAYER}/12"
    assert chromium.complaints() == []


def test_arrows_go_through_the_units_in_the_layer_s_order_and_back_comes_back(site: Path, chromium: Tab) -> None:
    clarity = values(site, "clarity")
    best = sorted(clarity, key=lambda unit: -clarity[unit])
    opened(chromium, site / "layer.html", f"{LAYER}?sort=clarity", height=500)
    chromium.ask("scrollTo(0, 700)")
    chromium.wait("history.state?.scroll === 700")
    click(chromium, "#tiles b", str(best[30]))
    chromium.wait(f"document.documentElement?.dataset.ready === '{LAYER}/{best[30]}'")
    for step, code, place in (("ArrowRight", 39, 31), ("ArrowRight", 39, 32), ("ArrowLeft", 37, 31)):
        key(chromium, step, code)
        chromium.wait(f"document.documentElement?.dataset.ready === '{LAYER}/{best[place]}'")
    assert chromium.ask("document.getElementById('place').textContent") == "32 of 120 by clarity"
    chromium.ask("void setTimeout(() => history.go(-4))")  # answered before the page is gone
    chromium.wait("document.getElementById('tiles') && 'ready' in (document.documentElement?.dataset ?? {})")
    chromium.wait("scrollY === 700")
    assert chromium.complaints() == []


@pytest.mark.parametrize(
    ("fragment", "told"),
    [
        (f"{LAYER}/7", f"This unit failed: {ERROR}"),
        (f"{LAYER}/5000", "layer1.0 has no unit 5000 in this atlas. All units of layer1.0"),
        ("layer9/3", "There is no layer layer9 in this atlas. Its layers: conv1 layer1.0"),
        ("%E0%A4%A/x", "There is no layer %E0%A4%A in this atlas. Its layers: conv1 layer1.0"),
    ],
)
def test_a_unit_that_failed_or_is_not_there_says_so(fragment: str, told: str, site: Path, chromium: Tab) -> None:
    chromium.open(site / "unit.html", fragment=fragment)
    chromium.wait("document.querySelector('main .note')")
    assert texts(chromium, "main .note") == [told]
    assert chromium.complaints() == []


def test_the_map_opens_units_by_mouse_and_by_keyboard(site: Path, chromium: Tab) -> None:
    opened(chromium, site / "layer.html", f"{LAYER}?view=map")
    for _ in range(100):  # the page may still be laid out
        (x, y), (left, top, _) = chromium.ask("vitalMap.where(0)"), box(chromium, "#canvas")
        x, y = x + left, y + top
        chromium._call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        if chromium.ask("document.getElementById('chosen').textContent.startsWith('channel 0')"):
            break
    for kind in ("mousePressed", "mouseReleased"):
        chromium._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
    chromium.wait(f"document.documentElement?.dataset.ready === '{LAYER}/0'")
    opened(chromium, site / "layer.html", f"{LAYER}?view=map")
    chromium.ask("document.getElementById('canvas').focus()")
    key(chromium, "ArrowRight", 39)
    chosen = chromium.ask("document.getElementById('chosen').textContent")
    before = chromium.ask("vitalMap.where(0)")
    key(chromium, "+", 187)
    assert chromium.ask("vitalMap.where(0)") != before
    key(chromium, "0", 48)
    assert chromium.ask("vitalMap.where(0)") == before
    key(chromium, "Enter", 13)
    chromium.wait("document.documentElement?.dataset.ready?.includes('/')")
    number = chromium.ask("document.documentElement.dataset.ready").split("/")[1]
    assert chosen.startswith(f"channel {number}")
    assert chromium.complaints() == []


def test_a_comparison_has_pairs_side_by_side_that_changed_most_first(comparison: Path, chromium: Tab) -> None:
    opened(chromium, comparison)
    assert texts(chromium, ".couple p")[0] == "change 0.100, correlation 0.900"
    assert texts(chromium, ".couple-tiles b")[:2] == ["layer1.0:0", "layer1.0:119"]
    type_in(chromium, "sort", "least")
    assert texts(chromium, ".couple .blank")[:2] == ["not in its atlas", "no match"]
    type_in(chromium, "find", "5")
    chromium.wait("document.getElementById('shown').textContent === '1 of 32 units'")
    chromium.ask("document.querySelector('.couple a').click()")
    chromium.wait(f"document.documentElement?.dataset.ready === '{LAYER}/5'")  # in the atlas itself
    assert chromium.complaints() == []


def test_an_activation_atlas_is_linked_and_walked_through(site: Path, chromium: Tab) -> None:
    opened(chromium, site / "layer.html", LAYER)
    chromium.ask("document.querySelector('#summary a[href^=\"cells.html\"]').click()")
    chromium.wait(f"document.documentElement?.dataset.ready === '{LAYER}' && document.getElementById('cells')")
    assert texts(chromium, "h1") == [f"{LAYER} activation atlas"]
    assert len(chromium.ask("[...document.querySelectorAll('#cells img')].map((one) => one.src)")) == 6
    (left, top, width), (right, _, _) = (box(chromium, f"#cells button:nth-child({place})") for place in (1, 2))
    assert right - left == pytest.approx(width + 2, abs=1)
    assert box(chromium, "#cells button:nth-child(3)")[1] > top
    chromium.ask("document.querySelector('#cells button').click()")
    chromium.wait("document.querySelector('dialog').open")
    key(chromium, "ArrowRight", 39)
    chromium.wait("document.querySelector('dialog h2, dialog h3').textContent === 'Row 1, column 2'")
    key(chromium, "ArrowDown", 40)
    chromium.wait("document.querySelector('dialog h2, dialog h3').textContent === 'Row 2, column 2'")
    assert texts(chromium, "dialog .spread a") == [f"channel 2 of {LAYER}"]
    key(chromium, "Escape", 27)
    chromium.open(site / "cells.html", fragment="conv1")
    chromium.wait("document.querySelector('main .note')")
    assert texts(chromium, "main .note")[0].startswith("There is no activation atlas of conv1 here.")
    assert chromium.complaints() == []


@pytest.mark.parametrize("kind", [*PAGES, "comparison"])
def test_every_page_reads_on_a_phone_in_the_dark_and_on_paper(
    kind: str, site: Path, comparison: Path, chromium: Tab
) -> None:
    name, fragment = PAGES.get(kind, ("", ""))
    page = site / name if name else comparison
    for width, dark in ((PHONE, False), (1300, True)):
        opened(chromium, page, fragment, width=width, dark=dark)
        assert chromium.ask("document.documentElement.scrollWidth") == width
        assert chromium.ask(NAMELESS) == []
        assert chromium.ask(FAINT) == []
    assert chromium.complaints() == []
    chromium._call("Emulation.setDeviceMetricsOverride", width=PAPER, height=900, deviceScaleFactor=1, mobile=False)
    chromium._call("Emulation.setEmulatedMedia", media="print")
    try:
        assert chromium.ask("document.documentElement.scrollWidth") <= PAPER
        assert chromium.ask("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert chromium.ask(
            "[...document.querySelectorAll('.controls, .choice')].every((one) => !one.checkVisibility())"
        )
    finally:
        chromium._call("Emulation.setEmulatedMedia", media="")


@pytest.mark.parametrize("kind", [*PAGES, "comparison"])
def test_axe_finds_nothing(kind: str, site: Path, comparison: Path, chromium: Tab) -> None:
    source = axe()
    name, fragment = PAGES.get(kind, ("", ""))
    for width, dark in ((PHONE, True), (1300, False)):
        opened(chromium, site / name if name else comparison, fragment, width=width, dark=dark)
        chromium.ask(f"void {source}")
        assert chromium.ask(VIOLATIONS) == []
        if name == "unit.html":
            chromium.ask("document.querySelector('.photo img').click()")
            chromium.wait("document.querySelector('dialog').open")
            assert chromium.ask(VIOLATIONS) == []


def test_an_atlas_that_grows_says_how_far_it_is(tmp_path: Path, chromium: Tab) -> None:
    store = write_atlas(tmp_path, {LAYER: 10}, finished=False)
    store.set_meta({"planned": {LAYER: 64}})
    opened(chromium, write_site(tmp_path))
    assert texts(chromium, ".growing")[0].startswith("9 of 64 units are done: the atlas grows")
    chromium.open(tmp_path / "unit.html", fragment=f"{LAYER}/11")
    chromium.wait("document.querySelector('main .note')")
    assert texts(chromium, "main .note")[0].startswith("layer1.0 has no unit 11 in this atlas so far: it grows.")
    opened(chromium, tmp_path / "unit.html", f"{LAYER}/9")
    assert texts(chromium, ".note") == ["Its pictures are not made yet."]
    assert chromium.complaints() == []


def test_no_link_of_an_atlas_of_some_units_is_dead(tmp_path: Path, chromium: Tab) -> None:
    write_atlas(tmp_path, {"conv1": 6, LAYER: 6})
    with sqlite3.connect(tmp_path / "atlas.sqlite") as file:
        file.execute("DELETE FROM units WHERE unit > 2")
    file.close()
    page = write_site(tmp_path).parent / "unit.html"
    links: set[str] = set()
    for unit in range(3):
        opened(chromium, page, f"{LAYER}/{unit}")
        found = chromium.ask("[...document.querySelectorAll('.tile')].map((one) => one.getAttribute('href'))")
        links |= {link for link in found if link is not None}
        assert "not in this atlas" in texts(chromium, ".tile .blank")
    assert links <= {f"unit.html#{name}/{unit}" for name in ("conv1", LAYER) for unit in range(3)}
    assert len(links) > 3


def test_an_atlas_without_a_unit_opens(tmp_path: Path, chromium: Tab) -> None:
    write_atlas(tmp_path, {LAYER: 0}, finished=False)
    opened(chromium, write_site(tmp_path))
    opened(chromium, tmp_path / "layer.html", LAYER)
    assert chromium.ask("document.getElementById('shown').textContent") == "0 units"
    assert chromium.complaints() == []


def test_a_unit_with_nothing_but_its_row_has_a_page(tmp_path: Path, chromium: Tab) -> None:
    store = write_atlas(tmp_path, {"conv1": 0})
    store.write(Entry(UnitRow("conv1", 3, "done")))
    opened(chromium, write_site(tmp_path).parent / "unit.html", "conv1/3")
    assert texts(chromium, "h1") == ["Channel 3 of conv1"]
    assert chromium.complaints() == []
