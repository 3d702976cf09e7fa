"""Sparse words by Lasso, formulas of labels by beam search: closed forms, and all formulas tried."""

from __future__ import annotations

import csv
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from tests.test_mine_command import MISTAKE, QUIET, command
from tests.tiny import image_folder
from vital_exp.evaluation.ranking import auc
from vital_exp.naming.formulas import best_formulas
from vital_exp.naming.splice import sparse_weights

SHORT = ("model=embedded_resnet", "k=2", "workers=0", "patches=false", "batch_size=64", *QUIET)


def test_weights_of_orthogonal_words_are_a_soft_threshold() -> None:
    """c_i and -c_i have the mean 0 and are orthogonal otherwise: w = max(0, <z, c> - penalty c_max)."""
    basis = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0)).double()).Q
    words = torch.cat([basis, -basis])
    mean = torch.full((6,), 0.1).double()
    pictures = normalize(torch.randn(4, 6, generator=torch.Generator().manual_seed(1)).double(), dim=1)
    for penalty in (0.3, 0.9):
        found = sparse_weights(pictures, words, mean, penalty)
        cosines = normalize(pictures - mean, dim=1) @ words.T
        expected = (cosines - penalty * cosines.amax(dim=1, keepdim=True)).clamp(min=0)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_weights_are_optimal() -> None:
    """Karush-Kuhn-Tucker: the gradient is minus the penalty where a weight is positive, at least that elsewhere."""
    numbers = torch.Generator().manual_seed(2)
    words = normalize(torch.randn(40, 12, generator=numbers).double() + 1, dim=1)
    pictures, mean = normalize(torch.randn(3, 12, generator=numbers).double(), dim=1), torch.zeros(12).double()
    found = sparse_weights(pictures, words, mean, 0.4)
    dictionary = normalize(words - words.mean(dim=0), dim=1)
    for picture, weights in zip(pictures, found, strict=True):
        limit = 0.4 * float((dictionary @ picture).max())
        gradient = dictionary @ (dictionary.T @ weights - picture)
        assert 0 < int((weights > 0).sum()) < 13
        torch.testing.assert_close(
            gradient[weights > 0], torch.full_like(gradient[weights > 0], -limit), atol=1e-3, rtol=0
        )
        assert gradient.min() >= -limit - 1e-3


def test_formulas_are_the_best_of_all() -> None:
    numbers = np.random.default_rng(0)
    owners = [[name for name in "abc" if numbers.random() < 0.5] for _ in range(40)]
    masks = {name: np.array([name in own for own in owners]) for name in "abc"}
    noise = torch.from_numpy(numbers.random(40))
    values = torch.stack([torch.from_numpy(masks["a"] & ~masks["b"]) + noise / 2, noise], dim=1)
    first, second = best_formulas(values, owners, list("abc"), 2)
    assert (first.text, first.auc) == ("a and not b", 1)
    literals = [mask for own in masks.values() for mask in (own, ~own)]
    tried = [*literals, *(op(x, y) for op in (np.logical_and, np.logical_or) for x, y in product(literals, repeat=2))]
    whole = [mask for mask in tried if 0 < mask.sum() < 40]
    most = max(float(auc(values[mask, 1], values[~mask, 1])) for mask in whole)
    assert second.auc <= most + 1e-9
    assert second.auc > most - 0.05  # a beam of five
    (alone, *_) = best_formulas(values, owners, list("abc"), 1)
    assert alone.text in ("a", "not b")


def test_longer_formulas_have_brackets_and_are_worth_it() -> None:
    owners = [["a"], ["b"], ["c"], ["d"]] * 5
    values = torch.tensor([[3.0], [2.0], [0.0], [0.0]] * 5)
    (found,) = best_formulas(values, owners, list("abcd"), 3)
    assert found.auc == 1
    assert set(found.text.split()) <= {"a", "b", "c", "d", "not", "or", "and"}
    assert len(found.text.split()) <= 5


@pytest.mark.usefixtures("workplace")
def test_the_command_writes_sparse_words_and_formulas(tiny_clip: dict[str, Any]) -> None:
    image_folder(Path("photos"), ["star", "heart", "tree"], count=3)
    Path("words.txt").write_text("cat\ndog\nfish\n")
    clip = [f"naming.clip.{key}={value}" for key, value in tiny_clip.items()]
    asked = ("images=photos", "layers=[layer4]", "channels=0-2", "naming.labels=true", "naming.formula_length=2")
    splice = ("naming.words=true", "naming.method=splice", "naming.penalty=0.6", "naming.clip.vocabulary=words.txt")
    assert command(*SHORT, *asked, *splice, *clip, "hydra.run.dir=run") == 0
    rows = list(csv.DictReader(Path("run/names.csv").read_text().splitlines()))
    for row in rows:
        assert float(row["formula_auc"]) >= max(
            float(one["invert_auc"]) for one in rows if one["channel"] == row["channel"]
        )
        for said in filter(None, row["words"].split(" | ")):
            assert float(said.rsplit(" ", 1)[1]) > 0
    assert any(row["words"] for row in rows)
    assert rows[0]["formula"] in Path("run/index.html").read_text()


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("naming.method=splise", "naming.method=splise: nearest or splice"),
        ("naming.penalty=2.0", "naming.penalty=2.0: a share between 0 and 1"),
        ("naming.formula_length=0", "naming.formula_length=0: a whole number of at least 1"),
    ],
)
def test_mistakes_are_one_line(given: str, problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(*SHORT, "layers=[layer4]", given, "naming.words=true", "hydra.run.dir=run") == MISTAKE
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert problem in lines[0]
