"""The gallery: one whole file that shows what a run folder holds, escapes it and fetches nothing."""

from __future__ import annotations

import base64
import io
import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vital_exp.errors import UsageError
from vital_exp.models.network_names import network_title, network_words, short_name
from vital_exp.reporting import gallery
from vital_exp.reporting.charts import MAX_POINTS, SAME, SMALL, Curve, loss_chart, read_curves, undrawn
from vital_exp.reporting.gallery import write_gallery
from vital_exp.reporting.pages import format_duration, format_number

VOID = {"meta", "link", "img", "input", "br"}
HOSTILE = "<script>alert('1')</script> \"dog\" & 🐕"


class Page(HTMLParser):
    """Every element with its attributes, the text inside each kind of element, and whether all tags are closed."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: dict[str, str] = {}
        self.open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in set(self.open):
            self.texts[tag] = self.texts.get(tag, "") + data

    def all(self, tag: str, **attributes: str) -> list[dict[str, str]]:
        """Return the attributes of the elements of a kind that have these values (class_ for class)."""
        wanted = {key.rstrip("_"): value for key, value in attributes.items()}
        found = [a for t, a in self.elements if t == tag]
        return [a for a in found if all(value in a.get(key, "").split(" ") for key, value in wanted.items())]


def result(target: str, **changes: Any) -> dict[str, Any]:
    base = {"target": target, "kind": "class", "layer": None, "index": 1, "label": f"label of {target}"}
    done = {"status": "done", "seed": 0, "steps": 4, "loss": {"align": 0.5, "total": 0.75}, "activation": 12.5}
    return {**base, **done, "image": f"images/{target}.png", "seconds": 3.0, "error": None, **changes}


def picture(path: Path, channels: int = 3, size: int = 8) -> None:
    path.parent.mkdir(exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 256, (size, size, channels), dtype=np.uint8)
    Image.fromarray(noise).save(path)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with two finished targets and a failed one."""
    failed = result("class-3", status="failed", error="NaN in the loss at step 7", loss=None, activation=None)
    results = [result("class-1"), result("class-2", seconds=4.0), failed]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(r) + "\n" for r in results))
    for name in ("class-1", "class-2"):
        picture(tmp_path / "images" / f"{name}.png")
        picture(tmp_path / "images" / f"{name}_masked.png", channels=4)
        picture(tmp_path / "references" / f"{name}.jpg")
    rows = [f"class-{t},{s},{10.0 / 2**s},0.25,{10.0 / 2**s + 0.25}" for s in range(4) for t in (1, 2)]
    (tmp_path / "history.csv").write_text("\n".join(["target,step,align,tv,total", *rows]) + "\n")
    metrics = {"top1": {"value": 0.5, "low": 0.1, "high": 0.9, "n": 2}, "fid": {"value": None, "n": 2}}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    (tmp_path / "metrics.csv").write_text("target,top1,log_probability\nclass-1,1,-0.125\nclass-2,0,-4\n")
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text("model:\n  name: resnet18\nmethod:\n  name: vital\nx: ${y}\n")
    (tmp_path / "provenance.json").write_text('{"torch": "2.8.0", "objective": "alignment/sort + 0.5 diversity"}')
    return tmp_path


def test_shows_every_part_of_the_run_folder(run: Path) -> None:
    path = write_gallery(run)
    assert path == run / "report.html"
    page = Page(path)
    assert "resnet18" in page.texts["title"]
    assert "vital" in page.texts["title"]
    assert len(page.all("li", class_="card")) == 3
    assert len(page.all("img", class_="plain")) == len(page.all("img", class_="masked")) == 2
    assert len(page.all("figure", class_="strip")) == 2
    assert len(page.all("svg", class_="chart")) == 2
    text = page.texts["body"]
    objective = "objective: alignment/sort + 0.5 diversity"
    for words in (
        objective,
        "1 of 2 recognised",
        "10 s",
        "0.100 to 0.900",
        "label of class-1",
        "−0.125",
        "${y}",
        '"2.8.0"',
    ):
        assert words in text
    assert [a["class"] for a in page.all("span", class_="badge")] == ["badge yes", "badge no"]


def test_pictures_are_embedded_byte_for_byte_and_described(run: Path) -> None:
    page = Page(write_gallery(run))
    first = page.all("img", class_="plain")[0]
    assert base64.b64decode(first["src"].split(",")[1]) == (run / "images" / "class-1.png").read_bytes()
    assert (first["width"], first["height"]) == ("8", "8")
    in_cards = [a for a in page.all("img") if "src" in a]
    assert all(a["alt"] and a["loading"] == "lazy" and a["decoding"] == "async" for a in in_cards)
    assert all(a["aria-label"] for a in page.all("svg"))


def test_nothing_is_fetched(run: Path) -> None:
    path = write_gallery(run)
    links = [a[key] for _, a in Page(path).elements for key in ("src", "href", "srcset", "xlink:href") if key in a]
    assert len(links) > 6
    assert all(link.startswith(("data:", "#")) for link in links)
    html = path.read_text(encoding="utf-8")
    assert not any(word in html for word in ("http://", "https://", "url(", "@import", "fetch("))


def test_many_metrics_are_folded_above_the_pictures(run: Path) -> None:
    missing = {"value": None, "reason": "needs a judge"}
    entries = {"transfer": missing, **{f"metric{i}": {"value": i} for i in range(gallery.METRICS_SHOWN + 1)}}
    (run / "metrics.json").write_text(json.dumps(entries))
    read = gallery.read_run(run)
    assert list(read.first_metrics) == [f"metric{i}" for i in range(gallery.METRICS_SHOWN)]
    assert list(read.further_metrics) == ["transfer", f"metric{gallery.METRICS_SHOWN}"]
    assert "2 more metrics" in write_gallery(run).read_text()


def test_what_comes_from_files_is_escaped(run: Path) -> None:
    before = len(Page(write_gallery(run)).all("script"))
    hostile = [result("class-1", label=HOSTILE, loss={HOSTILE: 1.0}), result("x", status="failed", error=HOSTILE)]
    (run / "results.jsonl").write_text("".join(json.dumps(r) + "\n" for r in hostile), encoding="utf-8")
    quoted = HOSTILE.replace('"', '""')
    (run / "history.csv").write_text(f'target,step,"{quoted}"\nclass-1,0,1\nclass-1,1,2\n', encoding="utf-8")
    (run / "metrics.json").write_text(json.dumps({HOSTILE: {"value": HOSTILE}}))
    (run / "metrics.csv").write_text(f'target,"{quoted}"\nclass-1,"{quoted}"\n', encoding="utf-8")
    (run / ".hydra" / "config.yaml").write_text(
        f"model: {{name: {json.dumps(HOSTILE, ensure_ascii=False)}}}", encoding="utf-8"
    )
    (run / "provenance.json").write_text(json.dumps({"</pre>": HOSTILE}))
    page = Page(write_gallery(run))
    assert len(page.all("script")) == before
    assert HOSTILE in page.texts["h1"]
    assert HOSTILE in page.texts["h2"]
    assert HOSTILE in page.texts["svg"]
    assert HOSTILE in page.all("img", class_="plain")[0]["alt"]
    assert page.texts["body"].count(HOSTILE) >= 8


@pytest.mark.parametrize(
    "part",
    ["images", "references", "history.csv", "metrics.json", "metrics.csv", ".hydra/config.yaml", "provenance.json"],
)
def test_a_missing_part_is_left_out(run: Path, part: str) -> None:
    (run / part).rename(run / "elsewhere")
    page = Page(write_gallery(run))
    assert len(page.all("li", class_="card")) == 3
    assert ("not in the run folder" in page.texts["body"]) == (part == "images")


def test_only_results_are_needed(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_text(json.dumps(result("class-1", loss=None, seconds=None)) + "\n")
    page = Page(write_gallery(tmp_path))
    assert page.all("svg") == page.all("details") == page.all("dl", class_="metrics") == []
    (tmp_path / "results.jsonl").write_text("")
    assert Page(write_gallery(tmp_path)).all("li", class_="card") == []


def test_facets_of_a_unit_stand_together_by_share(tmp_path: Path) -> None:
    def facet(number: int, variation: int = 1, **changes: Any) -> dict[str, Any]:
        name = f"channel-layer3-7_f{number}" + (f"_v{variation}" if variation > 1 else "")
        own = {"layer": "layer3", "label": "", "facet": number, "variation": variation, "facets": 3}
        said = {"share": (0.6, 0.3)[number], "coherence": 0.5, "members": ["a/1.png", 5]}
        return result(name, **own, **{**said, **changes})

    lines = [facet(1), result("class-2", label="heart", facet=None), facet(0, 2), facet(0, members=None)]
    lines += [result("class-1_f0", facet=0, facets=1, share=1.0, coherence=1.0, members=["<b>"], label="star")]
    lines += [facet(1, 2, status="failed", error="NaN", share="many", coherence=None)]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = Page(write_gallery(tmp_path))
    assert page.texts["h2"] == (
        "channel 7 of layer3facet 0facet 0, variation 2facet 1facet 1, variation 2heartstarfacet 0"
    )
    names = ["0", "0_v2", "1", "1_v2"]
    titles = [card["data-text"].split()[-1] for card in page.all("li", class_="card")]
    assert titles == [*(f"channel-layer3-7_f{name}" for name in names), "class-2", "class-1_f0"]
    words = [
        "2 of 3 facets",
        "60\xa0% of the unit's images, coherence 0.50",
        "all of the class's images, coherence 1.00",
    ]
    assert all(one in page.texts["p"] for one in words), page.texts["p"]
    assert page.texts["ol"] == "a/1.pngimage 5" * 3 + "<b>"
    assert "star, facet 0" in [card["data-title"] for card in page.all("li", class_="card")]
    assert len(page.all("ul", class_="units")) == 1
    assert len(page.all("li", class_="failed", id="first-failed")) == 1


def test_steps_and_seed_are_told_once_unless_they_differ(tmp_path: Path) -> None:
    lines = [json.dumps(result("class-1", steps=40)), json.dumps(result("class-2", steps=50))]
    (tmp_path / "results.jsonl").write_text(lines[0] + "\n")
    page = Page(write_gallery(tmp_path))
    assert "40 steps, seed 0" in page.texts["header"]
    assert page.texts["dt"] == "activationshare of the batch's time"
    (tmp_path / "results.jsonl").write_text("\n".join(lines))
    assert Page(write_gallery(tmp_path)).texts["dt"] == "activationstepsshare of the batch's time" * 2


def test_a_folder_without_results_is_a_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"results\.jsonl"):
        write_gallery(tmp_path)


def test_a_failed_target_is_a_card_with_its_error(run: Path) -> None:
    page = Page(write_gallery(run))
    assert len(page.all("li", class_="failed", id="first-failed")) == 1
    assert "NaN in the loss at step 7" in page.texts["body"]
    assert "1 failed" in page.texts["a"]


def test_the_last_line_of_a_target_counts_and_torn_lines_are_told(run: Path) -> None:
    with (run / "results.jsonl").open("a") as file:
        file.write(json.dumps(result("class-3", label="second try")) + '\n{"target": "cla')
    page = Page(write_gallery(run))
    assert page.all("li", class_="failed") == []
    assert len(page.all("li", class_="card")) == 3
    assert "second try" in page.texts["h2"]
    assert "1 of 5 lines of results.jsonl" in page.texts["body"]


def test_damaged_files_leave_the_page_standing(run: Path) -> None:
    (run / "images" / "class-1.png").write_bytes(b"no picture")
    (run / "metrics.json").write_text("{")
    (run / "metrics.csv").write_text("")
    (run / "history.csv").write_text("something else\n1\n")
    (run / ".hydra" / "config.yaml").write_text("model: [1\n")
    page = Page(write_gallery(run))
    assert len(page.all("img", class_="plain")) == 1
    assert "metrics.json could not be read" in page.texts["body"]
    assert page.all("svg") == []


def test_a_target_name_never_leaves_the_folder(run: Path) -> None:
    picture(run / "secret.png")
    (run / "results.jsonl").write_text(json.dumps(result("../secret")) + "\n")
    assert Page(write_gallery(run)).all("img", class_="plain") == []


def test_the_page_appears_whole_or_not_at_all(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gallery(run)
    before = (run / "report.html").read_bytes()
    cards = gallery._card

    def break_at_the_second(run: gallery.Run, result: dict[str, Any], compress: bool) -> gallery.Card:
        if result["target"] == "class-2":
            raise OSError("disk full")
        return cards(run, result, compress)

    monkeypatch.setattr(gallery, "_card", break_at_the_second)
    with pytest.raises(OSError, match="disk full"):
        write_gallery(run)
    assert (run / "report.html").read_bytes() == before
    assert not list(run.glob("*.tmp")) + list(run.glob(".*.tmp"))


def test_large_runs_are_embedded_as_webp(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "EMBED_BYTES", 10)
    page = Page(write_gallery(run))
    source = page.all("img", class_="masked")[0]["src"]
    assert source.startswith("data:image/webp;base64,")
    image = Image.open(io.BytesIO(base64.b64decode(source.split(",")[1])))
    assert (image.mode, image.size) == ("RGBA", (8, 8))


def history(path: Path, targets: int, steps: int) -> Path:
    rows = (f"t{t},{s},{1.0 / (s + 1)},{s / steps}" for s in range(steps) for t in range(targets))
    path.write_text("\n".join(["target,step,align,total", *rows]) + "\n")
    return path


@pytest.mark.parametrize("steps", [1, 2, MAX_POINTS - 1, MAX_POINTS, MAX_POINTS + 1, 2 * MAX_POINTS, 3001])
def test_curves_are_thinned_and_keep_their_ends(tmp_path: Path, steps: int) -> None:
    curve = read_curves(history(tmp_path / "history.csv", 2, steps))["t1"]
    kept = [point[0] for point in curve.points]
    assert len(kept) <= MAX_POINTS
    assert len(kept) >= min(steps, MAX_POINTS // 2)
    assert (kept[0], kept[-1]) == (0, steps - 1)
    assert kept == sorted(set(kept))
    assert all(point[1] == 1.0 / (point[0] + 1) for point in curve.points)


def test_curves_of_a_continued_run_go_on_from_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    path.write_text("target,step,a\nt,0,1\nt,1,2\nt,2,9\nt,2,3\nt,3,\nt,4\nt,x,7\n")
    curve = read_curves(path)["t"]
    assert [point[0] for point in curve.points] == [0, 1, 2, 3]
    assert curve.series()["a"][:3] == [1, 2, 3]
    assert math.isnan(curve.series()["a"][3])


def curve_of(**terms: list[float]) -> Curve:
    curve = Curve(tuple(terms))
    for step, row in enumerate(zip(*terms.values(), strict=True)):
        curve.add(step, [repr(value) for value in row])
    curve.close()
    return curve


def test_chart_has_a_line_per_term_and_breaks_it_at_gaps() -> None:
    svg = loss_chart(curve_of(a=[1.0, math.nan, 2.0, 3.0], b=[math.nan] * 4, total=[4.0, 3.0, 2.0, 1.0]), "t")
    lines = [part for part in svg.split("<path ") if "<title>" in part]
    assert len(lines) == 2
    assert lines[0].count("M") == 2
    assert "<title>total" in lines[1]
    assert 'stroke="currentColor"' in lines[1]


def test_a_term_that_is_the_total_and_a_tiny_prior_have_no_line_but_are_told() -> None:
    alignment = [2.0, 1.5, 1.0, 0.5]
    curve = curve_of(alignment=alignment, tv=[1e-5] * 4, l2=[0.4] * 4, total=[value + 1e-5 for value in alignment])
    assert undrawn(curve) == {"tv": SMALL, "alignment": SAME}
    svg = loss_chart(curve, "t")
    assert svg.count("stroke=") == 3  # the grid, l2 and the total
    assert "logarithmic" not in svg
    assert "<title>step 3: alignment 0.5; tv 1e-05; l2 0.4; total 0.5" in svg
    assert undrawn(curve_of(a=[1.0, 2.0], total=[1.1, 2.1])) == {}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("vit_tiny_patch16_224", "ViT-Tiny"),
        ("vit_tiny_patch16_224.augreg_in21k", "ViT-Tiny"),
        ("resnet50", "ResNet-50"),
        ("mobilenetv2_100", "MobileNetV2-100"),
        ("squeezenet1_1", "SqueezeNet-1-1"),
        ("vitality_net", "vitality net"),
        ("package.networks:make_net", "make net"),
        ("/home/me/my_nets/net.py", "net"),
    ],
)
def test_networks_are_called_as_people_write_them(name: str, words: str) -> None:
    assert network_words(name) == words
    assert network_title(name) == (words if ":" in name else name)


@pytest.mark.parametrize(
    ("name", "words"),
    [("resnet50", "resnet50"), ("/home/me/nets.py:wrapped", "wrapped"), ("timm/vit_tiny", "vit_tiny")],
)
def test_a_run_of_a_factory_has_its_function_s_name(name: str, words: str) -> None:
    assert short_name(name) == words


def test_what_networks_take_a_picture_for_is_told_in_words(run: Path) -> None:
    columns = "target,top1,predicted,top1[vit_tiny_patch16_224],top5[vit_tiny_patch16_224],probability[other]"
    (run / "metrics.csv").write_text(f"{columns}\nclass-1,1,dog 0.9; cat 0.05,0,1,0.25\n")
    text = " ".join(Page(write_gallery(run)).texts["li"].split())
    assert "recognised by itself: yes dog 0.9; cat 0.05" in text
    assert "recognised by ViT-Tiny: no its class is among the first five" in text
    assert "recognised by other: – probability 0.250" in text


@pytest.mark.parametrize(
    "values",
    [[5.0], [0.0, 0.0], [1.0, 1e9], [0.0, 1e-30, 1.0], [-3.0, 1e4], [1e-320, 1.0], [math.inf, 1.0], [7.0, 7.0 + 1e-12]],
)
def test_chart_of_any_values_stays_inside_its_frame(values: list[float]) -> None:
    svg = loss_chart(curve_of(a=values), "t")
    assert "nan" not in svg
    assert "inf" not in svg
    points = [p.split() for d in svg.split(' d="')[1:] for p in d.split('"')[0].strip("M").replace("h0", "").split("L")]
    heights = [float(p[1].split("H")[0].split("M")[0]) for p in points]
    assert all(0 <= height <= 132 for height in heights)


def test_chart_turns_logarithmic_when_the_range_is_large() -> None:
    assert ">100<" in loss_chart(curve_of(a=[1000.0, 1.0]), "t")
    assert ">100<" not in loss_chart(curve_of(a=[1000.0, -1.0]), "t")
    assert loss_chart(curve_of(a=[math.nan]), "t") == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "0"),
        (7, "7"),
        (-1.5, "−1.50"),
        (123.4, "123"),
        (12345.6, "12\u202f346"),
        (2.5e9, "2.50e+09"),
        (1e-5, "1.0e−05"),
        (math.nan, "nan"),
        ("two-fold", "two-fold"),
    ],
)
def test_numbers_are_written_for_people(value: object, text: str) -> None:
    assert format_number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.25, "4.2 s"), (59.7, "60 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")]
)
def test_durations_are_written_for_people(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
