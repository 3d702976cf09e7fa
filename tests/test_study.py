"""The human study: a page people can take offline, blind to method, whose answers become metrics of the runs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.chromium import tab
from tests.test_evaluate_command import evaluate
from tests.test_report import png, report, write_run
from vital_exp.commands.hydra_app import MISTAKE
from vital_exp.evaluation import study
from vital_exp.evaluation.metrics import proxy_of
from vital_exp.evaluation.score import Score
from vital_exp.evaluation.study import PARTS, Answer, Item, names_it, read_key, study_scores
from vital_exp.evaluation.table import Evaluation

pytestmark = pytest.mark.usefixtures("workplace")

METHODS = ("vital", "maco")
TARGETS = 3


@pytest.fixture
def sweep(workplace: Path) -> Path:
    """Two methods by two seeds, four classes, one of which MACO has not made."""
    number = 0
    for method in METHODS:
        for seed in (0, 1):
            names = [f"class-{i}" for i in range(TARGETS + (method == "vital"))]
            folder = workplace / "sweep" / str(number)
            values = {name: {"top1": 1.0} for name in names}
            write_run(folder, method, seed, values, {}, [f"label {name}, other {name}" for name in names])
            (folder / "references").mkdir()
            for place, name in enumerate(names):
                png(folder / "images" / f"{name}.png", 10 * number + place)
                Image.new("RGB", (96 * 6, 96), (place * 60, 90, 90)).save(folder / "references" / f"{name}.jpg")
            number += 1
    return workplace / "sweep"


def questions(page: Path) -> list[dict[str, str]]:
    content = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.S)
    assert content is not None
    found: list[dict[str, str]] = json.loads(content[1])["questions"]
    return found


def answered(path: Path, person: str, values: dict[str, Any]) -> Path:
    answers = [{"item": code, "value": value, "seconds": 2.0} for code, value in values.items()]
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"kind": study.KIND, "participant": person, "answers": answers}))
    return path


def test_every_method_s_picture_of_the_same_targets_is_asked_about(sweep: Path) -> None:
    assert evaluate(f"run={sweep}", "study=true", "study_targets=2") == 0
    page, key = sweep / "study/study.html", read_key(sweep / "study")
    asked = questions(page)
    assert [question["part"] for question in asked] == sorted((q["part"] for q in asked), key=PARTS.index)
    items = [key[question["item"]] for question in asked]
    assert len(items) == len(set(items)) == 2 * len(METHODS) * len(PARTS)
    methods = {item.run: "vital" if item.run in ("../0", "../1") else "maco" for item in items}
    for part in PARTS:
        shown = {(methods[item.run], item.target) for item in items if item.part == part}
        assert len(shown) == 4
        assert {target for method, target in shown if method == "vital"} == {t for m, t in shown if m == "maco"}
    seeds = {(item.target, int(item.run[-1]) % 2) for item in items}
    assert len(seeds) == 2  # one seed per target, the same of both methods


def test_the_page_is_blind_and_in_random_order(sweep: Path) -> None:
    orders = []
    for seed in (0, 0, 1):
        assert evaluate(f"run={sweep}", "study=true", f"study_seed={seed}") == 0
        text = (sweep / "study/study.html").read_text()
        assert not re.search("vital|maco", text.replace("vital_exp study answers", "").replace("vital_exp-study", ""))
        asked = questions(sweep / "study/study.html")
        orders.append([question["item"] for question in asked])
        assert all("name" not in question for question in asked if question["part"] != "rating")
        assert all(question["picture"].startswith("data:image/png") for question in asked)
    assert orders[0] == orders[1] != orders[2]
    assert {*orders[0], *orders[2]} <= set(read_key(sweep / "study"))  # answers to the earlier form still count


def test_answers_come_back_into_the_table_and_the_report(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(f"run={sweep}", "study=true") == 0
    key = read_key(sweep / "study")
    for person, shift in (("a", 0), ("b", 1)):
        values: dict[str, Any] = {}
        for code, item in key.items():
            level = 4 if item.run in ("../0", "../1") else 1
            values[code] = f"an Other {item.target}!" if item.part == "naming" and level == 4 else level + shift
            if item.part == "naming" and level == 1:
                values[code] = ""
        answered(Path("answers") / f"{person}.json", person, values)
    answered(Path("answers/c.json"), "b", json.loads(Path("answers/b.json").read_text()) and values)  # b, once more
    assert evaluate(f"run={sweep}", "answers=answers") == 0
    out = capsys.readouterr().out
    assert f"study: {2 * len(key)} answers of 2 people" in out
    assert report(f"runs={sweep}", "out=r") == 0
    content = json.loads(Path("r/table.json").read_text())
    rows = {(row["method"], row["metric"]): row for row in content["rows"] if row["seed"] == "all"}
    assert rows["vital", "study_rating"]["value"] == 4.5
    assert rows["maco", "study_correspondence"]["value"] == 1.5
    assert rows["vital", "study_naming_exact"]["value"] == 1
    assert rows["maco", "study_naming_exact"]["value"] == 0
    assert rows["vital", "study_rating"]["best"]
    assert "needs" in content["not_computed"]["study_naming"]
    assert "study_rating" in Path("r/table.md").read_text()


def test_the_machine_proxies_of_the_three_parts_are_named_so(sweep: Path) -> None:
    """Beside a run's numbers, and below the table of a sweep."""
    proxies = {
        "clip_probability": "(a) rating by name",
        "correspondence_auc[judge]": "(b) picture against references",
        "mis_pictures[judge]": "(b) picture against references",
        "naming": "(c) free naming",
    }
    assert {name: proxy_of(name) for name in proxies} == proxies
    others = ("clip_top1", "clip_score", "mis_natural[judge]", "accuracy_top1", "study_naming", "fid[target]")
    assert not any(map(proxy_of, others))
    scores = {name: Score(0.5, 0.4, 0.6, 3) for name in proxies}
    printed = str(Evaluation([], scores))
    assert all(f"proxy of study {part}" in printed for part in proxies.values())
    for run in range(4):
        entries = {name: {"value": 0.5, "low": 0.4, "high": 0.6, "n": 3} for name in proxies}
        (sweep / str(run) / "metrics.json").write_text(json.dumps(entries))
    assert report(f"runs={sweep}", "out=r") == 0
    told = (
        "Machine proxies of the human study: (a) rating by name: clip_probability; "
        "(b) picture against references: mis_pictures[judge], correspondence_auc[judge]; (c) free naming: naming."
    )
    for file in ("table.md", "table.tex", "report.html"):
        assert told in Path("r", file).read_text(), file


def test_free_naming_is_scored_by_the_texts_likeness() -> None:
    class Texts:
        """Texts with the same letters are alike."""

        def names(self, names: list[str]) -> torch.Tensor:
            counts = torch.tensor(
                [[float(name.count(letter)) for letter in "abcdefghijklmnopqrstuvwxyz"] for name in names]
            )
            return torch.nn.functional.normalize(counts + 1e-6, dim=1)

    items = [Item("../0", f"class-{i}", "golden retriever", "naming") for i in range(2)]
    answers = [Answer(items[0], "a", "golden retriever"), Answer(items[1], "a", "bus")]
    scores = study_scores(answers, ["class-0", "class-1", "class-2"], Texts())  # type: ignore[arg-type]
    values = scores["study_naming"].values
    assert values is not None
    assert values[0] == pytest.approx(1)
    assert values[1] < 0.5
    assert scores["study_naming"].n == 2
    assert scores["study_rating"].value is None


@pytest.mark.parametrize(
    ("answer", "label", "right"),
    [
        ("a Golden  Retriever?", "golden retriever", True),
        ("retriever", "golden retriever", False),
        ("tench", "tench, Tinca tinca", True),
        ("starling", "star", False),
        ("", "star", False),
    ],
)
def test_an_answer_names_a_class_by_one_of_its_names(answer: str, label: str, right: bool) -> None:
    assert names_it(answer, label) is right


MISTAKES = {
    "no run": (("study=true",), ("run=None", "run folder")),
    "no runs there": (("run=empty", "study=true"), ("run=empty", "no run")),
    "no flag": (("run=sweep", "study=1"), ("study=1", "true or false")),
    "answers before a study": (("run=sweep", "answers=answers"), ("answers=", "study=true")),
    "no answers": (("run=made", "answers=empty"), ("answers=empty", "no answers")),
    "a file of something else": (("run=made", "answers=other.json"), ("answers=other.json", "no file of answers")),
    "a file that is broken": (("run=made", "answers=broken.json"), ("answers=broken.json", "cannot be read")),
    "answers of another study": (("run=made", "answers=foreign.json"), ("answers=foreign.json", "another study")),
    "a rating out of range": (("run=made", "answers=high.json"), ("answers=high.json", "is 6", "1 to 5")),
    "no shared targets": (("run=apart", "study=true"), ("study=resnet50", "each method")),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(mistake: str, sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    Path("empty").mkdir()
    shutil.copytree(sweep, "made")
    assert evaluate("run=made", "study=true") == 0
    rating = next(code for code, item in read_key(Path("made/study")).items() if item.part == "rating")
    Path("other.json").write_text("{}")
    Path("broken.json").write_text("{")
    answered(Path("foreign.json"), "a", {"0123": 3})
    answered(Path("high.json"), "a", {rating: 6})
    for number in ("0", "2"):
        shutil.copytree(sweep / number, Path("apart") / number)
    for name in ("class-0", "class-1", "class-2"):
        (Path("apart/2/images") / f"{name}.png").unlink()
    capsys.readouterr()
    arguments, words = MISTAKES[mistake]
    assert evaluate(*arguments) == MISTAKE
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("vital-evaluate: ")
    assert all(word in line for word in words), line


@pytest.mark.slow
def test_people_answer_in_a_real_browser(sweep: Path) -> None:
    assert evaluate(f"run={sweep}", "study=true", "study_targets=1") == 0
    asked = questions(sweep / "study/study.html")
    with tab(Path("profile")) as page:
        page.open(sweep / "study/study.html", width=900)
        for number, question in enumerate(asked):
            if number == 0 or question["part"] != asked[number - 1]["part"]:
                page.ask("document.querySelector('.main-button').click()")
            page.wait("document.querySelector('.picture').naturalWidth > 0")
            if question["part"] == "naming":
                page.ask("document.querySelector('input').value = ' something '")
                page.ask("document.querySelector('form button').click()")
            elif number == len(asked) - 1:
                page.ask("document.dispatchEvent(new KeyboardEvent('keydown', {key: '5'}))")
            else:
                page.ask("document.querySelector('.scale button[value=\"2\"]').click()")
        page.wait("document.getElementById('save')")
        Path("saved.json").write_text(page.ask("window.studyAnswers"))
        assert page.complaints() == []
        assert all(address.startswith(("file:", "data:")) for address in page.requests())
    content = json.loads(Path("saved.json").read_text())
    values = {"naming": "something", "correspondence": 2, "rating": 2}
    expected = [values[question["part"]] for question in asked]
    assert [one["value"] for one in content["answers"]] == [*expected[:-1], 5]
    assert evaluate(f"run={sweep}", "answers=[saved.json]") == 0
