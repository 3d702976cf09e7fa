"""Every page by eye of a real browser: one dialog, phones, accessible names, contrast, print."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.chromium import Tab, axe, tab
from tests.test_gallery import picture, result
from tests.test_readable_page import write_run as write_units
from tests.test_report import write_run
from vital_exp.attacks.page import Panel, write_page
from vital_exp.reporting.circuit import write_circuit
from vital_exp.reporting.gallery import write_gallery
from vital_exp.reporting.pages import environment, folder_words
from vital_exp.reporting.report import write_report
from vital_exp.reporting.study_page import write_study
from vital_exp.reporting.sweep import find_runs, read_sweep

PHONE, SCREEN, PAPER = 390, 844, 740  # px
LONG = "channel-a_layer_with_quite_a_long_name.3.convolution-1935"


def run_folder(folder: Path, names: list[str], **more: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        for place, channels in ((f"images/{name}.png", 3), (f"images/{name}_masked.png", 4)):
            picture(folder / place, channels, 64)
        picture(folder / "references" / f"{name}.jpg")
    lines = [json.dumps(result(name, **more)) for name in names]
    (folder / "results.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def gallery(folder: Path) -> tuple[Path, str]:
    run_folder(folder, ["class-0", "class-1", "class-2"])
    steps = [f"class-{t},{s},{4 / (s + 1)},{4 / (s + 1)}" for t in range(3) for s in range(9)]
    (folder / "history.csv").write_text("\n".join(["target,step,alignment,total", *steps]) + "\n")
    judge = "vit_tiny_patch16_224"
    rows = [f"class-{t},1,0,dog 0.9; cat 0.1" for t in range(3)]
    (folder / "metrics.csv").write_text("\n".join([f"target,top1,top1[{judge}],predicted", *rows]) + "\n")
    known = {"value": 0.5, "low": 0.1, "high": 0.9, "n": 3}
    (folder / "metrics.json").write_text(json.dumps({f"{name}[{judge}]": known for name in ("transfer_top1", "fid")}))
    return write_gallery(folder), ".picture .plain"


def circuit(folder: Path) -> tuple[Path, str]:
    def node(target: str, layer: str | None, share: float, children: list[Any]) -> dict[str, Any]:
        return {"target": target, "label": None, "layer": layer, "share": share, "children": children}

    below = [node(f"channel-l1-{n}", "l1", 0.1 * (n + 1), []) for n in range(3)]
    tree = node("class-0", None, 1.0, [node(LONG, "l2", 0.5, below), node("channel-l2-9", "l2", 0.05, below)])
    run_folder(folder / "level0", ["class-0"])
    run_folder(folder / "level1", [LONG, "channel-l2-9"], label=None)
    run_folder(folder / "level2", [one["target"] for one in below], label=None)
    (folder / "circuit.json").write_text(json.dumps(tree))
    return write_circuit(folder, "resnet50", "vital_fourier"), ".unit .picture"


def audit(folder: Path) -> tuple[Path, str]:
    folder.mkdir()
    run = run_folder(folder / "run", ["class-0"])
    write_gallery(run)
    panels = [
        Panel(f"target {n}", [("picture", torch.rand(3, 64, 64)), ("natural image", torch.rand(3, 64, 64))])
        for n in "ab"
    ]
    content = {
        "check": "slingshot",
        "runs": [str(run)],
        "verdicts": ["it holds"],
        "notes": ["a note"],
        "facts": {"a": 1.0},
    }
    known = {**content, "table": [{"method": "vital", "value": 1.0}], "saved": {}}
    headings = {"plot": "By layer", "words": "", "facts": "The attack", "table": "By method"}
    return write_page(folder, known, panels, "", headings), ".panel img"


def mining(folder: Path, kind: str = "unit") -> tuple[Path, str]:
    folder.mkdir()
    picture(folder / "sheet.png", size=128)
    card = {
        "layer": "layer4",
        "largest": 3.2,
        "patch": 3.1,
        "src": "sheet.png",
        "width": 1024,
        "height": 700,
        "note": "",
    }
    card |= {"awake": 0.5, "bars": (0.0, 1.0), "low": 0.0, "high": 3.2}
    cards = [SimpleNamespace(**card, channel=channel) for channel in range(3)]
    meta = {
        "network": "resnet50",
        "layers": [{"layer": "layer4"}],
        "images": 9,
        "folder": "/a/imagenet/val",
        "pooling": "max",
    }
    found = {"text": "a star", "measure": "activation", "src": "sheet.png", "width": 900, "height": 128}
    counts = {"count": 3, "mined": 3, "corrupt": [], "corrupt_count": 0, "embedded": False}
    counts["found"] = {**found, "units": [("layer4", 1)]} if kind == "concept" else None
    page = folder / "index.html"
    page.write_text(environment().get_template("mining.html").render(cards=cards, kind=kind, meta=meta, **counts))
    return page, ".sheet"


def sweep(folder: Path) -> tuple[Path, str]:
    for number, method in enumerate(("vital", "maco")):
        values = {f"class-{n}": {"top1[vit_tiny_patch16_224]": n % 2} for n in range(3)}
        metric = {"transfer_top1[vit_tiny_patch16_224]": {"value": 0.5, "low": 0.1, "high": 0.9, "n": 3}}
        write_run(folder / str(number), method, 0, values, metric)
        for name in values:
            picture(folder / str(number) / "images" / f"{name}.png", size=64)
            picture(folder / str(number) / "images" / f"{name}_masked.png", 4, 64)
            picture(folder / str(number) / "references" / f"{name}.jpg")
    return write_report([folder], folder / "report").page, "button.cell"


def concepts(folder: Path) -> tuple[Path, str]:
    return mining(folder, "concept")


def study(folder: Path) -> tuple[Path, str]:
    """Of hidden units, so that each question has reference images."""
    write_units(folder, "vital", {})
    for name in ("channel-0", "channel-1"):
        picture(folder / "images" / f"{name}.png", size=64)
        picture(folder / "references" / f"{name}.jpg")
    return write_study(read_sweep(find_runs([folder])), folder / "study"), ".picture"


PAGES = {
    **{"report": sweep, "gallery": gallery, "circuit": circuit, "audit": audit},
    **{"mining": mining, "concepts": concepts, "study": study},
}
BEGIN = "document.querySelector('main .main-button')?.click()"  # a study says first what it asks
SERIOUS = """axe.run(document.querySelector("dialog[open]") || document, { resultTypes: ["violations"] })
  .then((found) => found.violations.filter((one) => ["serious", "critical"].includes(one.impact))
  .map((one) => `${one.id}: ${one.nodes.slice(0, 3).map((node) => node.html.slice(0, 120)).join(" | ")}`))"""

# Lays the whole page out: axe-core scrolls, and takes a text that a card or an image moves meanwhile for one on white.
LOADED = """(() => {
  document.body.insertAdjacentHTML("beforeend", "<style>* { content-visibility: visible !important; }</style>");
  const loaded = [...document.images].map((image) => { image.loading = "eager"; return image.decode(); });
  return Promise.all(loaded.map((one) => one.catch(() => null))).then(() => document.body.offsetHeight);
})()"""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with tab(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


FIRST_PICTURE = """Math.min(...[...document.querySelectorAll("main img")].map((image) => image.getBoundingClientRect())
  .filter((box) => box.width > 60).map((box) => box.top))"""
SMALL = """[...document.querySelectorAll("main img")].filter((image) => !image.closest("details:not([open])"))
  .map((image) => image.getBoundingClientRect().width).filter((width) => width > 0 && width < 96)"""
# Controls without a name, images without a description.
NAMELESS = """[...document.querySelectorAll("button, a[href], input, select, img, svg[role=img], [role=button]")]
  .filter((one) => one.offsetParent !== null && !(one.getAttribute("aria-label") || one.getAttribute("alt") !== null
    || one.textContent.trim() || (one.labels && [...one.labels].some((label) => label.textContent.trim()))))
  .map((one) => one.outerHTML.slice(0, 120))"""
# Texts whose contrast with what is behind them is below 4.5 to 1, of those on plain backgrounds.
FAINT = """(() => {
  const parse = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const luminance = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (node) => {
    for (let one = node; one; one = one.parentElement) {
      const [r, g, b, a = 1] = parse(getComputedStyle(one).backgroundColor);
      if (a > 0.99) return [r, g, b];
      if (a > 0) return null;
    }
    return [255, 255, 255];
  };
  const found = new Set();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !node.offsetParent || node.closest("svg, script, .flip")) continue;
    const ground = behind(node);
    if (!ground) continue;
    const [a, b] = [luminance(parse(getComputedStyle(node).color)), luminance(ground)].sort((x, y) => y - x);
    const contrast = (a + 0.05) / (b + 0.05);
    if (contrast < 4.5) found.add(`${node.className || node.tagName}: ${contrast.toFixed(2)}`);
  }
  return [...found];
})()"""


@pytest.mark.parametrize("kind", PAGES)
def test_every_page_reads_on_a_phone_and_in_the_dark(kind: str, chromium: Tab, tmp_path: Path) -> None:
    page, _ = PAGES[kind](tmp_path / kind)
    for width, dark in ((PHONE, False), (1300, True)):
        chromium.open(page, width=width, height=SCREEN, dark=dark)
        chromium.ask(BEGIN)
        chromium.wait(f"Number.isFinite({FIRST_PICTURE})")
        assert chromium.ask("document.documentElement.scrollWidth") == width
        if width == PHONE:
            assert chromium.ask(FIRST_PICTURE) < SCREEN - 96
        assert chromium.ask(SMALL) == []
        assert chromium.ask(NAMELESS) == []
        assert chromium.ask(FAINT) == []
    assert chromium.complaints() == []


def key(chromium: Tab, name: str, code: int) -> None:
    chromium._call("Input.dispatchKeyEvent", type="keyDown", key=name, code=name, windowsVirtualKeyCode=code)


@pytest.mark.parametrize("kind", PAGES)
def test_one_dialog_enlarges_the_pictures_of_every_page(kind: str, chromium: Tab, tmp_path: Path) -> None:
    page, place = PAGES[kind](tmp_path / kind)
    chromium.open(page)
    chromium.ask(BEGIN)
    chromium.ask(f"document.querySelector('{place}').focus()")
    assert chromium.ask(f"document.activeElement === document.querySelector('{place}')")  # by keyboard alone
    if kind in ("mining", "concepts", "report"):
        chromium.ask("document.activeElement.click()")
    else:
        key(chromium, " ", 32)
    title = "document.querySelector('.spread h3').parentElement.textContent"  # curves come later, on the other side
    large = "document.querySelector('dialog .large')"
    chromium.wait(f"document.querySelector('dialog').open && {large}.naturalWidth > 0")
    assert chromium.ask(f"{large}.getBoundingClientRect().width") > 300
    first = chromium.ask(title)
    key(chromium, "ArrowRight", 39)
    assert chromium.ask(title) != first
    key(chromium, "ArrowLeft", 37)
    assert chromium.ask(title) == first
    assert chromium.ask("document.querySelector('.bar a').download").endswith(".png")
    if kind in ("gallery", "circuit", "report"):
        plain = chromium.ask(f"{large}.src")
        chromium.ask(
            "[...document.querySelectorAll('.bar button')].find((one) => one.textContent === 'masked').click()"
        )
        assert chromium.ask(f"{large}.src") != plain
        assert chromium.ask("document.querySelector('.bar a').download").endswith("_masked.png")
        assert chromium.ask("document.querySelectorAll('dialog .real').length") == 1
    assert chromium.ask(NAMELESS) == []
    assert chromium.ask(FAINT) == []
    key(chromium, "Escape", 27)
    chromium.wait("!document.querySelector('dialog').open")
    assert chromium.complaints() == []


@pytest.mark.parametrize("kind", PAGES)
def test_axe_finds_nothing_serious(kind: str, chromium: Tab, tmp_path: Path) -> None:
    source = axe()
    page, place = PAGES[kind](tmp_path / kind)
    for width, dark in ((PHONE, True), (1300, False)):
        chromium.open(page, width=width, height=SCREEN, dark=dark)
        chromium.ask(source)
        chromium.ask(LOADED)
        assert chromium.ask(SERIOUS) == []
        chromium.ask(BEGIN)
        chromium.wait(f"document.querySelector('{place}')")
        chromium.ask(f"document.querySelector('{place}').click()")
        chromium.wait("document.querySelector('dialog').open")
        assert chromium.ask(SERIOUS) == []


def test_a_digit_answers_no_question_behind_the_dialog(chromium: Tab, tmp_path: Path) -> None:
    page, place = study(tmp_path / "study")
    chromium.open(page)
    chromium.ask(BEGIN)
    chromium.wait(f"document.querySelector('{place}')")
    asked = "document.getElementById('count').textContent"
    chromium.ask(f"document.querySelector('{place}').click()")
    key(chromium, "3", 51)
    assert chromium.ask(asked) == "1 of 2"
    key(chromium, "Escape", 27)
    key(chromium, "3", 51)
    assert chromium.ask(asked) == "2 of 2"


def test_a_circuit_s_connectors_are_as_wide_as_their_shares(chromium: Tab, tmp_path: Path) -> None:
    page, _ = circuit(tmp_path / "circuit")
    chromium.open(page)
    width = "parseFloat(getComputedStyle(one, '::before').width)"
    assert chromium.ask(f"[...document.querySelectorAll('.tree li li')].map((one) => {width})")[:4] == pytest.approx(
        [14, 4, 6.5, 9]
    )


def test_an_audit_links_the_page_of_its_run(chromium: Tab, tmp_path: Path) -> None:
    page, _ = audit(tmp_path / "audit")
    chromium.open(page)
    assert chromium.ask("document.querySelector('.of-runs a').getAttribute('href')") == "run/report.html"


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/data/imagenet/val", "of imagenet/val"),
        ("/val", "of val"),
        ("/c/vital_exp/drawn/1-1-60/heart", "drawn by code"),
        ("/cache/drawn/1-1-60", "drawn by code"),
        ("/data/drawn/heart", "of drawn/heart"),
    ],
)
def test_folders_of_images_are_called_by_their_names(path: str, words: str) -> None:
    assert folder_words(path) == words


@pytest.mark.parametrize("kind", PAGES)
def test_nothing_is_cut_on_paper(kind: str, chromium: Tab, tmp_path: Path) -> None:
    page, _ = PAGES[kind](tmp_path / kind)
    chromium.open(page, width=PAPER, dark=True)
    chromium._call("Emulation.setEmulatedMedia", media="print")
    try:
        assert chromium.ask("document.documentElement.scrollWidth") <= PAPER
        wide = (
            f"[...document.querySelectorAll('main img')].filter((one) => one.getBoundingClientRect().right > {PAPER})"
        )
        assert chromium.ask(f"{wide}.length") == 0
        assert chromium.ask("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert chromium.ask("[...document.querySelectorAll('.controls')].every((one) => !one.checkVisibility())")
    finally:
        chromium._call("Emulation.setEmulatedMedia", media="")
