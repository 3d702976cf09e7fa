"""Pictures handed over as tensors: mistakes in shape, type and range are told; what is meant so is taken as it is."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny import tiny_net
from vital_exp import load_model, visualize
from vital_exp.errors import UsageError
from vital_exp.images.ranges import checked_pictures
from vital_exp.models.network import IMAGENET_MEAN, IMAGENET_STD
from vital_exp.relevance import relevance_maps
from vital_exp.setup.problem import as_references

SIZE = 32
RGB = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
MEAN, STD = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
KEYS = ["evaluation=none", "references.cache=false"]
NETWORK = load_model(tiny_net(), size=SIZE)
QUICK: dict[str, Any] = {"method": "vital_fourier", "steps": 1, "overrides": KEYS}

BAD: dict[str, tuple[object, str]] = {
    "0 to 255": (RGB * 255, r"values from .* to 25\d.*tensor / 255"),
    "dark, 0 to 255": (RGB * 12, "tensor / 255"),
    "bytes": ((RGB * 255).byte(), "uint8.*tensor / 255"),
    "normalised": ((RGB - MEAN) / STD, r"values from -2\.\d+ to 2\.\d+.*normalised"),
    "-1 to 1": (RGB * 2 - 1, r"values from -.*normalised"),
    "-1 to 1, bright": (torch.where(RGB < 0.05, -1.0, 1.0), "normalised"),
    "normalised, low contrast": ((RGB * 0.1 + 0.3 - MEAN) / STD, "normalised"),
    "NaN": (RGB.masked_fill(RGB < 0.01, torch.nan), "NaN"),
    "infinite": (RGB / 0, "NaN or infinite"),
    "grey": (RGB[:, :1], "expand"),
    "transparent": (RGB[:, [0, 1, 2, 2]], r"tensor\[:, :3\]"),
    "channels last": (RGB.permute(0, 2, 3, 1), "permute"),
    "one picture": (RGB[0], r"tensor\[None\]"),
    "empty": (RGB[:0], ">= 1"),
    "numpy": (RGB.numpy(), "ndarray.*must be a tensor"),
}
GOOD: dict[str, Callable[[], Tensor]] = {
    "overshoot": lambda: RGB * 1.1 - 0.05,
    "float16": lambda: RGB.half(),
    "float64": lambda: RGB.double(),
    "black": lambda: RGB * 0,
}


@pytest.mark.parametrize(("given", "told"), BAD.values(), ids=BAD)
def test_mistakes_are_told_with_what_was_seen(given: Any, told: str) -> None:
    network = NETWORK
    for references in (given, {"class:1": given}):
        with pytest.raises(UsageError, match=f"^references=.*{told}"):
            as_references(references, network)
    with pytest.raises(UsageError, match=f"^init=.*{told}"):
        checked_pictures(given, "init")
    with pytest.raises(UsageError, match=f"^images=.*{told}"):
        relevance_maps(network, given, "layer1.0:1", ["conv1"])


def test_every_entrance_of_tensors_checks_them() -> None:
    bad, network = RGB * 255, NETWORK
    for given in ({"references": bad}, {"references": RGB, "init": bad}):
        with pytest.raises(UsageError, match=r"values from .* to 25\d"):
            visualize(network, ["class:1", "class:2"], **given, **QUICK)
    with pytest.raises(UsageError, match=r"^init=.*one picture \(3, H, W\) per target"):
        visualize(network, "class:1", references=RGB, init=RGB, **QUICK)


def test_a_target_whose_references_are_no_numbers_fails_alone(caplog: pytest.LogCaptureFixture) -> None:
    references = {"class:1": RGB, "class:2": RGB / 0}
    made = visualize(NETWORK, ["class:1", "class:2"], references=references, **QUICK)
    assert [result["status"] for result in made.results] == ["done", "failed"]
    assert "references=class-2 NaN or infinite" in caplog.text


@pytest.mark.parametrize("given", GOOD.values(), ids=GOOD)
def test_pictures_that_overshoot_a_little_are_taken_without_a_word(
    given: Callable[[], Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    network = NETWORK
    made = visualize(network, ["class:1", "class:2"], references=given(), init=given(), **QUICK)
    assert [result["status"] for result in made.results] == ["done", "done"]
    assert not caplog.records


def test_noise_about_grey_is_taken_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    noise = torch.randn(20, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)) * STD + MEAN
    network = NETWORK
    with caplog.at_level(logging.WARNING, "vital_exp"):
        visualize(network, ["class:1", "class:2"], references={"class:1": noise, "class:2": noise}, **QUICK)
    (record,) = caplog.records
    assert "references=class-1 values from -0" in record.message
    assert "RGB in [0, 1] is wanted" in record.message


def test_targets_may_have_references_of_different_sizes() -> None:
    references = {"class:1": RGB, "class:2": torch.rand(1, 3, 40, 24)}
    made = visualize(NETWORK, ["class:1", "class:2"], references=references, **QUICK)
    assert [result["status"] for result in made.results] == ["done", "done"]
