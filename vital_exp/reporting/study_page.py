"""The human study as one page that people fill in offline: three parts, in random order, methods hidden."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from markupsafe import Markup
from PIL import Image

from vital_exp.errors import UsageError
from vital_exp.evaluation.study import CORRESPONDENCE, KEY_FILE, KIND, NAMING, PARTS, RATING, Item
from vital_exp.notebook_html import image_uri
from vital_exp.reporting.pages import environment
from vital_exp.reporting.report import as_json
from vital_exp.reporting.sweep import SweepRun
from vital_exp.reporting.thumbnails import BROKEN
from vital_exp.whole_files import write_whole

PAGE = "study.html"
SIDE = 384  # px, of a picture in the page
CODE_DIGITS = 12  # of a question's code, in place of run and target


def write_study(runs: Sequence[SweepRun], out: Path, targets: int = 6, seed: int = 0) -> Path:
    """Write a form of the study, and its key.

    The targets are drawn at random; for each target, all methods are shown with the same seed. The page only holds
    codes. key.json holds the run and target of each code, those of earlier forms too.

    Args:
        runs: the runs of a sweep, or one run.
        out: the folder for study.html and key.json.
        targets: number of targets for each network.
        seed: of the choice and the order; another seed makes another form, for further people.

    Returns:
        The path of the page.

    Raises:
        UsageError: no target has a picture by each method.
    """
    draw = random.Random(seed)
    models = dict.fromkeys(run.model for run in runs)
    items = [item for model in models for item in _items(runs, model, targets, draw, out)]
    coded = {_code(item): item for item in items}
    questions = [_question(code, item, Path(os.path.normpath(out / item.run))) for code, item in coded.items()]
    draw.shuffle(questions)
    questions.sort(key=lambda question: PARTS.index(question["part"]))
    out.mkdir(parents=True, exist_ok=True)
    _write_key(out / KEY_FILE, coded)
    form = hashlib.sha256(",".join(sorted(coded)).encode()).hexdigest()[:CODE_DIGITS]
    data = {"kind": KIND, "form": form, "seed": seed, "questions": questions}
    page = environment().get_template("study.html").generate(data=Markup(as_json(data)))
    return write_whole(out / PAGE, page)


def _items(runs: Sequence[SweepRun], model: str, count: int, draw: random.Random, out: Path) -> Iterator[Item]:
    """The questions about a network's pictures: each method's picture of some targets, in all parts that apply."""
    own = [run for run in runs if run.model == model]
    # method -> target -> runs that have a picture
    pictures: dict[str, dict[str, list[SweepRun]]] = {run.method: {} for run in own}
    for run in own:
        for result in run.run.done:
            if (run.folder / "images" / f"{result['target']}.png").is_file():
                pictures[run.method].setdefault(result["target"], []).append(run)
    shared = sorted(set.intersection(*(set(found) for found in pictures.values())))
    if not shared:
        raise UsageError("study", model, "no target has a picture by each method, so methods cannot be compared")
    for target in draw.sample(shared, min(count, len(shared))):
        turn = draw.randrange(len(own))
        for by_target in pictures.values():
            found = sorted(by_target[target], key=lambda run: run.seed)
            run = found[turn % len(found)]  # the same seed of every method
            result = next(result for result in run.run.done if result["target"] == target)
            for part in _parts(run, result):
                yield Item(
                    Path(os.path.relpath(run.folder, out)).as_posix(), target, str(result.get("label") or target), part
                )


def _parts(run: SweepRun, result: dict[str, Any]) -> Iterator[str]:
    """The parts of the study for a picture: with names for classes alone, with references where there are any."""
    if result.get("layer") is None:
        yield from (NAMING, RATING)
    if (run.folder / "references" / f"{result['target']}.jpg").is_file():
        yield CORRESPONDENCE


def _code(item: Item) -> str:
    return hashlib.sha256("\0".join(asdict(item).values()).encode()).hexdigest()[:CODE_DIGITS]


def _question(code: str, item: Item, run: Path) -> dict[str, str]:
    question = {"item": code, "part": item.part, "picture": _embedded(run / "images" / f"{item.target}.png")}
    if item.part == CORRESPONDENCE:
        question["references"] = _embedded(run / "references" / f"{item.target}.jpg")
    if item.part == RATING:
        question["name"] = item.label
    return question


def _embedded(path: Path) -> str:
    """A picture as a data: URI, encoded again, so that no metadata of its file gives its method away."""
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            picture = image.convert("RGB")
    except BROKEN as error:
        raise UsageError("study", path, f"the picture cannot be read ({error})") from error
    if path.suffix == ".png":
        picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return image_uri(picture)


def _write_key(place: Path, coded: dict[str, Item]) -> None:
    earlier = json.loads(place.read_text(encoding="utf-8"))["items"] if place.is_file() else {}
    items = {**earlier, **{code: asdict(item) for code, item in coded.items()}}
    write_whole(place, [json.dumps({"items": items}, indent=2), "\n"])
