"""The benchmark's transcription of the published loop agrees with the library, and its command reports."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vital_exp import load_model
from vital_exp.engine import learning_rate, objective_and_gradient
from vital_exp.models.network import model_space

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import published_loop
import step_time

LAYERS = ("conv1", "layer1", "layer2", "layer3", "layer4")
SIZE = 64
QUICK = ["--network=resnet18", f"--size={SIZE}", "--references=2"]


def random_pictures(count: int, seed: int) -> Tensor:
    return torch.rand(count, 3, SIZE, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def make_loop(keep_sorted: bool, start: Tensor, references: Tensor, **options) -> published_loop.PublishedLoop:  # type: ignore[no-untyped-def]
    module = step_time.random_network("resnet18")
    network = load_model(module, size=SIZE)
    activations = published_loop.reference_activations(module, LAYERS, model_space(references, network))
    x = model_space(start, network)
    valid = network.preprocessing.valid_range(x)
    weights = dict.fromkeys(LAYERS, 1.0)
    return published_loop.PublishedLoop(module, weights, activations, x, valid, keep_sorted=keep_sorted, **options)


@pytest.mark.parametrize("keep_sorted", [False, True])
def test_first_loss_and_gradient_are_the_library_s(keep_sorted: bool) -> None:
    references, start = random_pictures(3, 0), random_pictures(2, 1)
    loop = make_loop(keep_sorted, start, references)
    losses = loop.losses(loop.pictures)
    (gradient,) = torch.autograd.grad(losses.sum(), loop.pictures)
    network = load_model(step_time.random_network("resnet18"), size=SIZE)
    overrides = ["transforms=none", "references.cache=false"]
    wanted, wanted_gradient = objective_and_gradient(
        network, ["class:0", "class:1"], start, references=references, overrides=overrides
    )
    torch.testing.assert_close(losses.detach(), wanted, rtol=1e-5, atol=0)
    assert (gradient - wanted_gradient).norm() <= 1e-5 * wanted_gradient.norm()


def test_a_step_is_the_published_one() -> None:
    loop = make_loop(False, random_pictures(1, 1), random_pictures(2, 0))
    before = loop.pictures.detach().clone()
    loop.step()
    moved = (loop.pictures.detach() - before).abs()
    assert moved.max().item() == pytest.approx(learning_rate(0, 2000), rel=1e-3)  # Adam's first step is lr * sign
    low, high = loop.valid
    assert bool((loop.pictures >= low).all())
    assert bool((loop.pictures <= high).all())
    assert loop.network.get_parameter("conv1.weight").grad is not None


def test_rates_are_the_library_s() -> None:
    wanted = [learning_rate(step, 300) for step in range(300)]
    assert list(published_loop.rates(300)) == pytest.approx(wanted)


@pytest.mark.slow
def test_the_command_measures_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert step_time.main([*QUICK, "--rounds=2", "--batch=2", f"--json={tmp_path / 'out.json'}"]) == 0
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["loss_difference"]["32"] <= 1e-4
    for row in result["steps"]["32"].values():
        assert 0 < row["least_seconds"] <= row["seconds"]
        assert row["least_ratio"] <= row["ratio"] <= row["largest_ratio"]
    library = step_time.LIBRARY["32"]
    assert result["steps"]["32"][library]["ratio"] == 1
    printed = capsys.readouterr().out
    assert all(name in printed for name in (library, step_time.PUBLISHED, torch.__version__))


def test_bfloat16_losses_agree_roughly() -> None:
    options = step_time.parse([*QUICK, "--rounds=1", "--precision", "32", "bf16"])
    result = step_time.measure(options)
    assert step_time.problems(result) == []
    assert list(result["steps"]) == ["32", "bf16"]
    assert result["loss_difference"]["32"] < result["loss_difference"]["bf16"]


def test_goals_are_those_of_resnet50() -> None:
    both = {"32": 1e-3, "bf16": 1e-3}
    result = {"network": "resnet50", "size": 224, "references": 50, "loss_difference": both}
    rounds = [dict.fromkeys(step_time.LIBRARY.values(), 1.0) | {step_time.PUBLISHED: 14.0, step_time.KEPT: 1.9}]
    steps = {precision: step_time.summary(rounds, precision) for precision in both}
    found = step_time.problems({**result, "steps": steps})
    assert [line.split(":")[0] for line in found] == ["library", *(step_time.PUBLISHED,) * 2, step_time.KEPT]
    assert found[0] == "library: the first losses differ by 1.0e-03"
