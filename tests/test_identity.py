"""Networks are told apart by weights, preprocessing and what they compute, in every cache, index and run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.tiny import cifar_resnet20, image_folder
from vital_exp import evaluate, load_model, mine, visualize
from vital_exp.errors import UsageError
from vital_exp.evaluation.evidence import Evidence
from vital_exp.models.identity import begin_call, identity_of
from vital_exp.models.network import VisionNetwork
from vital_exp.references import statistics
from vital_exp.references.tensors import TensorReferences
from vital_exp.targets.class_names import ClassNames
from vital_exp.targets.unit import Target

SIDE = 32
FLOAT, HALF = torch.float32, torch.bfloat16
QUICK = ("trainer.accelerator=cpu", "evaluation=none")


class Gate(nn.Module):
    """A nonlinearity whose printed form does not say which."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """Return the function's values."""
        return self.function(x)


class Net(nn.Module):
    """Two convolutions, and all that a network can hold beside weights."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv1, self.conv2, self.fc = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 16, 3, 2, 1), nn.Linear(16, 4)
        self.gate = Gate(torch.relu)
        self.drop = nn.Dropout(0.5)
        self.scale, self.noise, self.table = 1.0, 0.0, torch.ones(8, 1, 1)
        self.register_buffer("offset", torch.zeros(1))
        self.register_buffer("hidden", torch.zeros(8, 1, 1), persistent=False)

    def forward(self, pictures: Tensor) -> Tensor:
        """Return logits (N, 4)."""
        x = self.table * self.gate(self.conv1(pictures + self.offset)) + self.hidden
        x = nn.functional.dropout(self.conv2(self.drop(x)), self.noise)
        return self.fc(self.head(x) * self.scale)

    def head(self, x: Tensor) -> Tensor:
        """Return (N, C) of (N, C, H, W)."""
        return x.mean((2, 3))


def trained(net: Net) -> None:
    net.train().requires_grad_(True)
    loss = net(torch.rand(2, 3, SIDE, SIDE)).square().sum()
    loss.backward()
    torch.optim.SGD(net.parameters(), 0.1).step()


def one_unit_ablated(net: Net) -> None:
    net.conv1.register_forward_hook(lambda _m, _i, out: out * torch.ones(8, 1, 1).index_fill(0, torch.tensor(3), 0))


CHANGES: dict[str, Callable[[Net], Any]] = {
    "weights trained further": trained,
    "weights set through .data": lambda net: net.fc.bias.data.add_(0.01),
    "a buffer": lambda net: net.offset.add_(0.5),
    "a buffer that no checkpoint holds": lambda net: net.hidden.add_(0.5),
    "a plain tensor": lambda net: setattr(net, "table", torch.full((8, 1, 1), 1.5)),
    "a plain attribute": lambda net: setattr(net, "scale", 3),
    "an attribute of a layer": lambda net: setattr(net.conv2, "stride", (1, 1)),
    "a module of the same printed form": lambda net: setattr(net, "gate", Gate(torch.sin)),
    "a method replaced": lambda net: setattr(net, "head", lambda x: x.amax((2, 3))),
    "a layer's forward replaced": lambda net: setattr(net.gate, "forward", lambda x: x.abs()),
    "a forward hook": one_unit_ablated,
    "a forward pre-hook": lambda net: net.conv2.register_forward_pre_hook(lambda _m, given: (given[0].roll(1, 1),)),
    "a hook on the network": lambda net: net.register_forward_hook(lambda _m, _i, out: out.flip(1)),
    "dropout that stays on": lambda net: setattr(net, "noise", 0.5),
}
# The layer at which each shows, of those that leave the weights alone.
SHOWS = {
    "a plain attribute": "fc",
    "a module of the same printed form": "gate",
    "a forward hook": "conv1",
    "a hook on the network": "output",
}


def known(network: VisionNetwork, cache: Path) -> str:
    begin_call(network, cache)
    return identity_of(network).key


@pytest.mark.parametrize("name", CHANGES)
def test_every_change_makes_another_network_and_none_makes_none(name: str, tmp_path: Path) -> None:
    network = load_model(Net(), size=SIDE)
    before = known(network, tmp_path)
    assert known(network, tmp_path) == known(load_model(Net(), size=SIDE), tmp_path) == before
    CHANGES[name](network.module)
    after = known(network, tmp_path)
    assert after != before
    assert known(network, tmp_path) == after  # also where it draws random numbers
    assert not any(part.training for part in network.modules())
    assert known(load_model(Net(), size=SIDE), tmp_path) == before  # neither has overwritten the other


@pytest.mark.parametrize("keys", [{"mean": [0, 0, 0]}, {"std": [1, 1, 1]}, {"size": SIDE + 8}], ids=str)
def test_other_preprocessing_makes_another_network(keys: dict[str, Any], tmp_path: Path) -> None:
    net = Net()
    assert known(load_model(net, **{"size": SIDE, **keys}), tmp_path) != known(load_model(net, size=SIDE), tmp_path)


def with_two_threads(_network: VisionNetwork) -> None:
    torch.set_num_threads(2)


def in_other_memory(network: VisionNetwork) -> None:
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def with_other_rounding(network: VisionNetwork) -> None:
    """What another device may do: every value of a convolution is off by half a unit in the last place."""

    def rounded(_module: nn.Module, _inputs: object, out: Tensor) -> Tensor:
        signs = 1 - 2 * (torch.arange(out.numel()) % 2).view_as(out)
        return out * (1 + signs.to(out) * torch.finfo(out.dtype).eps / 2)

    for layer in network.module.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(rounded)


@pytest.mark.parametrize(
    ("otherwise", "dtype"),
    [
        (with_two_threads, FLOAT),
        *((otherwise, dtype) for otherwise in (in_other_memory, with_other_rounding) for dtype in (FLOAT, HALF)),
    ],
)
def test_rounding_makes_no_other_network(otherwise: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    network = load_model(cifar_resnet20(), size=SIDE).to(dtype)
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    before = known(network, tmp_path)
    try:
        otherwise(network)
        assert known(network, tmp_path) == before
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.get_rng_state(), state)


def loss(network: VisionNetwork, references: Any, *overrides: str, target: str = "conv2:1", **keys: Any) -> float:
    method = {"references": references, "method": "vital_fourier", "steps": 1}
    made = visualize(network, target, overrides=[*QUICK, "relevance=none", *overrides], **method, **keys)
    return float(made.results[0]["loss"]["total"])


def test_statistics_are_read_again_and_made_anew_after_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    compute = statistics.reference_statistics
    monkeypatch.setattr(statistics, "reference_statistics", lambda *given: (made.append(1), compute(*given))[1])
    network, images = load_model(Net(), size=SIDE), torch.rand(4, 3, SIDE, SIDE)
    first = loss(network, images, target="class:1")
    assert loss(load_model(Net(), size=SIDE), images, target="class:1") == first
    assert len(made) == 1
    for number, name in enumerate(["weights trained further", "a module of the same printed form", "a forward hook"]):
        CHANGES[name](network.module)
        now = loss(network, images, target="class:1")
        assert len(made) == 2 + 2 * number
        assert now == loss(network, images, "references.cache=false", target="class:1")


def test_readings_that_are_kept_are_of_this_network(tmp_path: Path) -> None:
    references = TensorReferences(torch.rand(3, 3, SIDE, SIDE), ClassNames.numbered(4))

    def passes(net: Net) -> int:
        pictures = torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8)
        evidence = Evidence(load_model(net, size=SIDE), [Target("class", 0)], pictures, references, kept=tmp_path)
        evidence.natural_reading("target")
        return evidence.passes["target"]

    assert [passes(Net()), passes(Net())] == [3, 0]
    for name in ("a plain attribute", "a hook on the network", "a buffer that no checkpoint holds"):
        changed = Net()
        CHANGES[name](changed)
        assert [passes(changed), passes(Net())] == [3, 0]


@pytest.mark.parametrize("name", ["weights trained further", "a module of the same printed form", "a forward hook"])
def test_an_index_is_of_the_network_it_was_mined_with(name: str, tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "images", ["a"], count=3, side=SIDE)
    network = load_model(Net(), size=SIDE)

    def top(**keys: Any) -> list[float]:
        index = mine(network, "conv2", folder, k=2, patch=None, cache_dir=tmp_path / "cache", **keys)
        return [row.activation for row in index.top("conv2", 1)]

    first = top(out=tmp_path / "index")
    assert top(out=tmp_path / "index") == top() == first
    CHANGES[name](network.module)
    assert top() != first
    with pytest.raises(UsageError, match=r"another network .*(weights|something else at layer conv2)"):
        top(out=tmp_path / "index")
    with pytest.raises(UsageError, match="another network"):
        loss(network, None, f"references.index={tmp_path / 'index'}", "references.region=image")


def test_what_lies_above_a_mined_layer_does_not_matter_to_its_index(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "images", ["a"], count=2, side=SIDE)
    network = load_model(Net(), size=SIDE)
    mine(network, "conv2", folder, k=1, patch=None, out=tmp_path / "index")
    CHANGES["a plain attribute"](network.module)
    assert mine(network, "conv2", folder, k=1, patch=None, out=tmp_path / "index").top("conv2", 0)


def test_a_run_goes_on_with_its_own_network_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images, out = torch.rand(2, 3, SIDE, SIDE), tmp_path / "run"
    first = loss(load_model(Net(), size=SIDE), images, target="class:1", out=out)
    assert loss(load_model(Net(), size=SIDE), images, target="class:1", out=out) == first
    for name in ("weights trained further", *SHOWS):
        network = load_model(Net(), size=SIDE)
        CHANGES[name](network.module)
        says = f"something else at layer {SHOWS[name]} than when the run began" if name in SHOWS else "weights changed"
        with pytest.raises(UsageError, match=says):
            loss(network, images, target="class:1", out=out)
    with pytest.raises(UsageError, match="preprocessing changed"):
        loss(load_model(Net(), size=SIDE, mean=[0, 0, 0]), images, target="class:1", out=out)
    evaluate(out, model=network, metrics=["accuracy"])
    assert says in caplog.text


def test_a_damaged_record_is_told(tmp_path: Path) -> None:
    network, images, out = load_model(Net(), size=SIDE), torch.rand(2, 3, SIDE, SIDE), tmp_path / "run"
    loss(network, images, target="class:1", out=out)
    for text in ("{}", "[]", "no JSON", json.dumps({**identity_of(network).describe(), "activations": [1]})):
        (out / ".hydra" / "network.json").write_text(text)
        with pytest.raises(UsageError, match=r"hydra\.run\.dir"):
            loss(network, images, target="class:1", out=out)


def test_a_damaged_registry_is_passed_over(tmp_path: Path) -> None:
    network = load_model(Net(), size=SIDE)
    before = known(network, tmp_path)
    for path in (tmp_path / "networks").glob("*/*.json"):
        path.write_text(json.dumps({"conv1": [1]}))
    assert known(network, tmp_path) == before
