"""Names of mined units: labels by INVERT's AUC and CoSy's deviation, words by CLIP."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.test_mine_command import MISTAKE, QUIET, command
from tests.tiny import image_folder
from vital_exp.evaluation.ranking import auc
from vital_exp.mining import drawn
from vital_exp.naming.labels import label_scores

pytestmark = pytest.mark.usefixtures("workplace")

SHORT = ("model=embedded_resnet", "k=2", "workers=0", "patches=false", "batch_size=64", *QUIET)


def test_scores_of_labels_are_those_of_pairs() -> None:
    values = torch.randint(0, 5, (30, 4), generator=torch.Generator().manual_seed(0)).float()  # with ties
    owners = ["a", "b", "c"] * 10
    scores = label_scores(values, owners, ["b", "c"])
    inside = torch.tensor([owner == "b" for owner in owners])
    for unit in range(4):
        assert scores.auc[unit, 0] == pytest.approx(auc(values[inside, unit], values[~inside, unit]))
    control = values[~inside].double().numpy()
    expected = (values[inside].double().numpy().mean(0) - control.mean(0)) / control.std(0, ddof=1)
    np.testing.assert_allclose(scores.mad[:, 0], expected, rtol=1e-6)


def test_the_logits_of_a_network_tell_their_own_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawn, "IMAGES_PER_CLASS", 3)
    assert command(*SHORT, "layers=[output]", "sheets=false", "naming.labels=true", "hydra.run.dir=run") == 0
    rows = list(csv.DictReader(Path("run/names.csv").read_text().splitlines()))
    assert len(rows) == 100
    best = {int(row["channel"]): row for row in reversed(rows)}
    assert [best[i]["label"] for i in (0, 1, 9)] == ["star", "heart", "doughnut"]
    assert all(float(row["invert_auc"]) > 0.99 and float(row["cosy_mad"]) > 1 for row in best.values())


def test_words_are_found_by_clip(tiny_clip: dict[str, Any]) -> None:
    image_folder(Path("photos"), ["star", "heart"], count=3)
    Path("words.txt").write_text("cat\ndog\nfish\n")
    clip = [f"naming.clip.{key}={value}" for key, value in tiny_clip.items()]
    asked = ("images=photos", "layers=[layer4]", "channels=0-2", "naming.words=true", "naming.labels=[heart]")
    assert command(*SHORT, *asked, *clip, "naming.clip.vocabulary=words.txt", "hydra.run.dir=run") == 0
    rows = list(csv.DictReader(Path("run/names.csv").read_text().splitlines()))
    assert [(row["channel"], row["label"]) for row in rows] == [("0", "heart"), ("1", "heart"), ("2", "heart")]
    assert all(len(row["words"].split(" | ")) == 3 for row in rows)
    page = Path("run/index.html").read_text()
    assert "tells heart (AUC" in page
    assert rows[0]["words"].split(" | ")[0] in page


def test_mistakes_of_naming(capsys: pytest.CaptureFixture[str]) -> None:
    image_folder(Path("photos"), ["star", "heart"], count=2)
    asked = ("layers=[layer4]", "channels=0", "sheets=false")
    mistakes = {
        ("images=photos", "naming.labels=[hart]"): "naming.labels=hart: no image has this label; there are heart, star",
        ("images=photos/star", "naming.labels=true"): "has no labels",
        (
            "images=photos",
            "naming.words=true",
        ): "naming.words=True: needs the weights of CLIP: naming.clip.checkpoint=file",
        ("images=photos", "naming.words=perhaps"): "naming.words=perhaps: true or false",
        ("images=photos", "naming.words=true", "naming.clip.checkpoint=no.pt"): "naming.clip.checkpoint=no.pt",
    }
    for number, (given, message) in enumerate(mistakes.items()):
        assert command(*SHORT, *asked, *given, f"hydra.run.dir=run{number}") == MISTAKE
        told = capsys.readouterr().err
        assert message in told, told
