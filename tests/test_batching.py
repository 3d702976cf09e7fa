"""How many pictures are made together: ``auto`` measures, stays within the memory, and is kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.test_ranks import pictures, run, workplace
from tests.tiny import command, tiny_net
from vital_exp import load_model
from vital_exp.models.network import VisionNetwork
from vital_exp.setup import batching
from vital_exp.targets.unit import Target

__all__ = ["workplace"]  # a fixture
SIDE = 16


@pytest.fixture
def network() -> VisionNetwork:
    return load_model(tiny_net(), mean=[0.5] * 3, std=[0.5] * 3, size=SIDE)


def test_the_memory_of_a_picture_is_that_of_its_activations(network: VisionNetwork) -> None:
    """By hand: every module without modules in it keeps its output, float32, as often as the source says."""
    outputs: list[torch.Tensor] = []
    leaves = [module for module in network.module.modules() if not list(module.children())]
    for leaf in leaves:
        leaf.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    network(torch.zeros(1, 3, SIDE, SIDE))
    by_hand = 4 * sum(output.numel() for output in outputs) * batching.ACTIVATION_COPIES
    assert batching.bytes_per_picture(network, (SIDE, SIDE)) == int(by_hand) > 0
    assert batching.bytes_per_picture(network, (2 * SIDE, 2 * SIDE)) > 3 * by_hand


@pytest.mark.parametrize(
    ("fitting", "count", "chosen"),
    [(3, 9, 3), (3, 2, 2), (1000, 1000, 16), (1000, 20, 10), (4, 9, 3), (0, 5, 1), (3, 0, 1)],
)
def test_auto_takes_what_fits(
    fitting: int, count: int, chosen: int, network: VisionNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    each = batching.bytes_per_picture(network, (SIDE, SIDE))
    monkeypatch.setattr(batching, "free_memory", lambda _device: each * (fitting + 0.5) / batching.MEMORY_SHARE)
    assert batching.automatic_batch_size(network, (SIDE, SIDE), count) == chosen


def test_no_more_targets_are_made_together_than_one_layer_has() -> None:
    targets = [Target("channel", number, "layer3") for number in range(3)]
    assert batching.together([*targets, Target("channel", 0, "layer4")]) == 3
    assert batching.together([]) == 0


def test_auto_is_recorded_and_a_resumed_run_keeps_it(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "_fitting", lambda *_: 2)
    arguments = run("target.index=0-2", "hydra.run.dir=run", "batch_size=auto")
    assert command(*arguments) == 0
    made = pictures(workplace / "run")
    results = workplace / "run" / "results.jsonl"
    results.write_text("".join(results.read_text().splitlines(keepends=True)[:2]))
    monkeypatch.setattr(batching, "_fitting", lambda *_: 1)  # there is less memory now
    assert command(*arguments) == 0
    assert json.loads((workplace / "run" / "provenance.json").read_text())["batch_size"] == 2
    assert pictures(workplace / "run") == made
