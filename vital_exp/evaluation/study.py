"""The human study in VITAL's three parts: people's answers on the study's page become metrics of the runs.

Each part has a machine proxy: of the rating of a picture by its name, CLIP's probability; of picture against
references, correspondence AUC and MIS; of free naming, the similarity of the best words.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vital_exp.errors import UsageError
from vital_exp.evaluation.clip import Clip, load_clip
from vital_exp.evaluation.pictures import finished_targets
from vital_exp.evaluation.score import NotComputed, Score
from vital_exp.evaluation.settings import MetricSettings
from vital_exp.evaluation.table import Evaluation
from vital_exp.text_files import read_json
from vital_exp.values import is_whole

KIND = "vital_exp study answers"
# The parts in the order of the page. Naming comes first: who has read the names cannot name freely any more.
NAMING, CORRESPONDENCE, RATING = "naming", "correspondence", "rating"
PARTS = (NAMING, CORRESPONDENCE, RATING)
LOWEST, HIGHEST = 1, 5  # of a rating
KEY_FILE = "key.json"


@dataclass(frozen=True)
class Item:
    """One question: a picture of a run in a part of the study; ``run`` is the folder, relative to the study's."""

    run: str
    target: str
    label: str
    part: str


@dataclass(frozen=True)
class Answer:
    """One person's answer to one question: a rating from 1 to 5, or words."""

    item: Item
    participant: str
    value: int | str


def read_key(folder: Path) -> dict[str, Item]:
    """Return the questions of a study, by their codes.

    Raises:
        UsageError: the folder holds no study.
    """
    place = folder / KEY_FILE
    if not place.is_file():
        raise UsageError("answers", folder, "no study there: study=true without answers makes one")
    content = read_json(place, "answers")
    return {code: Item(**item) for code, item in content["items"].items()}


def read_answers(places: Sequence[Path], key: Mapping[str, Item]) -> list[Answer]:
    """Return people's answers. Of two files of one person, the one whose name sorts last counts.

    Args:
        places: JSON files that the page saved, or folders of such files.
        key: the result of :func:`read_key`.

    Raises:
        UsageError: there is no file, a file is not the page's or is of another study, or an answer is not allowed.
    """
    files = [file for place in places for file in (sorted(place.glob("*.json")) if place.is_dir() else [place])]
    if not files:
        raise UsageError("answers", ", ".join(map(str, places)), "no answers there: *.json files of the study's page")
    by_person: dict[str, list[Answer]] = {}
    for file in files:
        content = _content(file)
        person = str(content.get("participant") or file.name)
        by_person[person] = [_answer(file, one, person, key) for one in content["answers"]]
    return [answer for answers in by_person.values() for answer in answers]


def _content(file: Path) -> dict[str, Any]:
    content = read_json(file, "answers")
    if not isinstance(content, dict) or content.get("kind") != KIND or not isinstance(content.get("answers"), list):
        raise UsageError("answers", file, "no file of answers that the study's page saved")
    return content


def _answer(file: Path, one: object, person: str, key: Mapping[str, Item]) -> Answer:
    code, value = (one.get("item"), one.get("value")) if isinstance(one, dict) else (None, None)
    item = key.get(str(code))
    if item is None:
        raise UsageError("answers", file, f"has an answer to a question of another study ({code})")
    if item.part == NAMING:
        if not isinstance(value, str):
            raise UsageError("answers", file, f"the answer to question {code} is {value!r}, and words are needed")
        return Answer(item, person, value)
    if not is_whole(value, LOWEST, HIGHEST):
        raise UsageError("answers", file, f"the rating of question {code} is {value!r}, not {LOWEST} to {HIGHEST}")
    return Answer(item, person, value)


def study_tables(
    answers: Sequence[Answer], folder: Path, settings: MetricSettings, cache_dir: Path
) -> dict[Path, Evaluation]:
    """Return the study's metrics by run folder.

    Args:
        answers: the result of :func:`read_answers`.
        folder: the study's folder.
        settings: for the weights of CLIP.
        cache_dir: the folder of downloaded weights.

    Raises:
        UsageError: a run folder is no longer at its place.
    """
    clip = _clip(settings, cache_dir)
    by_run: dict[str, list[Answer]] = {}
    for answer in answers:
        by_run.setdefault(answer.item.run, []).append(answer)
    tables = {}
    for run, own in sorted(by_run.items()):
        place = Path(os.path.normpath(folder / run))
        targets = finished_targets(place)
        tables[place] = Evaluation(targets, study_scores(own, [target.name for target in targets], clip))
    return tables


def _clip(settings: MetricSettings, cache_dir: Path) -> Clip | str:
    """CLIP, or the reason why it cannot be loaded."""
    own = settings.clip
    try:
        return load_clip(
            *(
                own.model,
                own.checkpoint,
                own.pretrained,
                own.templates,
                settings.download,
                torch.device("cpu"),
                cache_dir,
            )
        )
    except NotComputed as error:
        return str(error)


def study_scores(answers: Iterable[Answer], targets: Sequence[str], clip: Clip | str) -> dict[str, Score]:
    """Return the study's metrics of one run.

    ``study_rating`` and ``study_correspondence`` are means of ratings from 1 to 5. ``study_naming`` is the cosine of
    CLIP's text embeddings of answer and class name, ``study_naming_exact`` the share of answers that name the class.

    Args:
        answers: the answers to questions about this run.
        targets: the names of the run's targets.
        clip: CLIP, or the reason why it cannot be loaded.
    """
    by_part: dict[str, list[Answer]] = {part: [] for part in PARTS}
    for answer in answers:
        by_part[answer.item.part].append(answer)
    scores = {}
    for part in (RATING, CORRESPONDENCE):
        rated = [(one.item.target, float(one.value)) for one in by_part[part]]
        scores[f"study_{part}"] = _mean(rated, targets)
    named = by_part[NAMING]
    exact = [(one.item.target, float(names_it(str(one.value), one.item.label))) for one in named]
    scores["study_naming_exact"] = _mean(exact, targets)
    scores["study_naming"] = _similarity(named, targets, clip)
    return scores


def names_it(answer: str, label: str) -> bool:
    """Return whether an answer holds one of a label's names, which commas separate, as whole words."""
    said = f" {_words(answer)} "
    return any(f" {name} " in said for name in map(_words, label.split(",")) if name)


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


def _similarity(named: Sequence[Answer], targets: Sequence[str], clip: Clip | str) -> Score:
    if not named:
        return Score.missing("nobody has answered this part")
    if isinstance(clip, str):
        return Score.missing(clip)
    said = clip.names([str(one.value).strip() or "nothing" for one in named])
    meant = clip.names([one.item.label for one in named])
    cosines = (said * meant).sum(dim=1).tolist()
    return _mean([(one.item.target, value) for one, value in zip(named, cosines, strict=True)], targets)


def _mean(values: Sequence[tuple[str, float]], targets: Sequence[str]) -> Score:
    """The mean over targets of the mean over people."""
    by_target: dict[str, list[float]] = {}
    for target, value in values:
        by_target.setdefault(target, []).append(value)
    means = [sum(found) / len(found) if (found := by_target.get(target)) else math.nan for target in targets]
    try:
        return Score.mean(means, reason=f"{len(values)} answers")
    except NotComputed:
        return Score.missing("nobody has answered this part")
