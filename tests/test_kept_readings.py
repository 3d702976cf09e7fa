"""Readings of natural images are kept: the same scores without a second pass; a fresh one where anything differs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vital_exp import load_model
from vital_exp.evaluation.metrics import chosen
from vital_exp.evaluation.pictures import PictureSet
from vital_exp.evaluation.settings import MetricSettings
from vital_exp.evaluation.table import Evaluation
from vital_exp.models.network import VisionNetwork
from vital_exp.references.drawn import DrawnReferences
from vital_exp.runs.evaluate import evaluate_pictures
from vital_exp.targets.unit import Target

CLASSES, IMAGES = 3, 4
SCORES = ("activation_ratio", "fid", "path_similarity", "mis", "high_frequency")
HIDDEN = [Target("channel", place, "layer3") for place in range(CLASSES)]
OTHERS = [Target("channel", place + 5, "layer3") for place in range(CLASSES)]


@pytest.fixture(scope="module")
def network() -> VisionNetwork:
    return load_model("embedded_resnet")


def pictures() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (CLASSES, 3, 64, 64), dtype=torch.uint8, generator=generator)


def table(network: VisionNetwork, cache: Path, targets: Sequence[Target] | None = None, **options: Any) -> Evaluation:
    shown = PictureSet(list(targets or [Target("class", place) for place in range(CLASSES)]), pictures())
    keys: dict[str, Any] = {"references": DrawnReferences(count=IMAGES), "judges": ["embedded_judge"], "keep": True}
    keys |= options
    return evaluate_pictures(
        network, shown, metrics=chosen(list(SCORES)), features=(), settings=MetricSettings(), cache_dir=cache, **keys
    )


def natural_passes(found: Evaluation) -> set[int]:
    return {passes - CLASSES for passes in found.forward_passes.values()}


@pytest.mark.parametrize("targets", [None, HIDDEN], ids=["classes", "hidden units"])
def test_a_second_evaluation_says_the_same_without_a_pass(
    network: VisionNetwork, tmp_path: Path, targets: Sequence[Target] | None
) -> None:
    plain = table(network, tmp_path / "none", targets, keep=False)
    first, second = (table(network, tmp_path / "cache", targets) for _ in range(2))
    assert not (tmp_path / "none").exists()
    assert str(first.metrics) == str(second.metrics) == str(plain.metrics)  # as text: NaN is NaN
    assert natural_passes(first) == {CLASSES * IMAGES}
    assert natural_passes(second) == {0}


def test_whatever_a_reading_depends_on_makes_it_anew(network: VisionNetwork, tmp_path: Path) -> None:
    table(network, tmp_path)
    further = table(network, tmp_path, judges=["embedded_judge", "embedded_vit"])
    assert {view for view, passes in further.forward_passes.items() if passes > CLASSES} == {"embedded_vit"}
    changed = load_model("embedded_resnet")
    with torch.no_grad():
        next(iter(changed.module.parameters())).mul_(1.01)
    others = (
        table(network, tmp_path, references=DrawnReferences(count=IMAGES, seed=1)),
        table(changed, tmp_path, judges=[]),
        table(network, tmp_path, HIDDEN, judges=[]),
        table(network, tmp_path, OTHERS, judges=[]),
    )
    for found in others:
        assert found.forward_passes["target"] == CLASSES * (IMAGES + 1)


def test_a_damaged_file_is_made_again(network: VisionNetwork, tmp_path: Path) -> None:
    first = table(network, tmp_path)
    for path in (tmp_path / "readings").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    assert table(network, tmp_path).metrics.keys() == first.metrics.keys()
    assert natural_passes(table(network, tmp_path)) == {0}
