"""What channels do for a unit, by ablation: closed forms on a network that is linear above the layer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from tests.tiny import tiny_net
from vital_exp import load_model
from vital_exp.circuits.ablation import Ablation, ablated, channel_means
from vital_exp.circuits.causal import causal, counts_of, spread
from vital_exp.circuits.tree import grow
from vital_exp.errors import UsageError
from vital_exp.models.unit_readout import unit_readout
from vital_exp.references.tensors import TensorReferences
from vital_exp.reporting.causal import chart, read_causal
from vital_exp.targets.class_names import ClassNames
from vital_exp.targets.unit import Target

SIZE = 32


def images(seed: int, count: int = 6) -> Tensor:
    return torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def tiny() -> tuple[nn.Module, Ablation]:
    module = tiny_net()
    own = load_model(module, size=SIZE)
    means = channel_means(own, "layer1", images(1))
    return module, Ablation(own, unit_readout(own, [Target("class", 2)]), "layer1", means, images(0) ** 3)


def pooled(ablation: Ablation) -> np.ndarray:  # type: ignore[type-arg]
    """The mean over images and positions of each channel of layer1, (C,)."""
    return channel_means(ablation.network, "layer1", ablation.images).numpy()


def test_removing_a_channel_changes_a_logit_by_its_weight(tiny: tuple[nn.Module, Ablation]) -> None:
    """Above layer1 the network is a mean and a linear layer: effect = w_c (mean of images - mean of others)."""
    module, ablation = tiny
    weights = module.fc.weight[2].detach().double().numpy()  # type: ignore[union-attr, index]
    shift = weights * (pooled(ablation) - ablation.means.numpy())
    whole, none = ablation.ends
    assert whole - none == pytest.approx(shift.sum(), abs=1e-5)
    for channels in ([3], [0, 5, 7]):
        assert whole - ablation.without(channels) == pytest.approx(shift[channels].sum(), abs=1e-5)
        assert ablation.keeping(channels) - none == pytest.approx(shift[channels].sum(), abs=1e-5)
    (share,) = ablation.shares([ablation.keeping([0, 5, 7])], (whole, none))
    assert share == pytest.approx(shift[[0, 5, 7]].sum() / shift.sum(), rel=1e-3)
    assert ablation.shares([1.0], (2.0, 2.0)) == [None]


@pytest.mark.parametrize("layer", ["relu", "bn1", "conv1"])
def test_a_layer_in_the_middle_is_replaced_as_the_twin_replaces_it(layer: str) -> None:
    module, given = tiny_net(), images(2)
    own = load_model(module, size=SIZE, mean=(0.0,) * 3, std=(1.0,) * 3)
    means = channel_means(own, layer, images(3))
    chosen = torch.arange(8) % 3 == 0
    with ablated(own, layer, chosen, means), torch.no_grad():
        found = own(given)
    with torch.no_grad():
        x = given
        for name in ("conv1", "bn1", "relu"):
            x = getattr(module, name)(x).clone()
            if name == layer:
                x[:, chosen] = means[chosen].float().view(1, -1, 1, 1)
        twin = module.fc(module.layer1(x).mean((2, 3)))  # type: ignore[operator]
    torch.testing.assert_close(found, twin)
    with torch.no_grad():  # the hooks are gone
        torch.testing.assert_close(own(given), module(given))


class Tokens(nn.Module):
    """Tokens (N, T, D), as of a transformer, and a classifier of their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.mixed, self.head = nn.Conv2d(3, 8, 8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.mixed(self.patches(x).flatten(2).transpose(1, 2))
        logits: Tensor = self.head(tokens.mean(dim=1))
        return logits


def test_channels_of_tokens_are_features() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        own = load_model(Tokens(), size=SIZE)
    means = channel_means(own, "mixed", images(1))
    ablation = Ablation(own, unit_readout(own, [Target("class", 0)]), "mixed", means, images(0))
    weights = own.module.head.weight[0].detach().double()  # type: ignore[union-attr, index]
    shift = weights * (channel_means(own, "mixed", images(0)) - means)
    whole, _ = ablation.ends
    assert whole - ablation.without([4]) == pytest.approx(float(shift[4]), abs=1e-6)


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


def test_a_layer_of_several_tensors_is_refused() -> None:
    own = load_model(nn.Sequential(nn.Conv2d(3, 4, 3), Pair(), _First(), nn.Flatten(), nn.Linear(144, 2)), size=8)
    with (
        pytest.raises(UsageError, match=r"target\.layers=1: returns tuple"),
        ablated(own, "1", torch.ones(4, dtype=torch.bool), torch.zeros(4)),
    ):
        own(torch.rand(1, 3, 8, 8))


class _First(nn.Module):
    def forward(self, both: tuple[Tensor, Tensor]) -> Tensor:
        return both[0]


def test_a_circuit_with_all_channels_is_faithful_and_edges_have_their_ranks(tmp_path: Path) -> None:
    module = tiny_net()
    with torch.no_grad():
        module.fc.weight.abs_()  # type: ignore[operator, union-attr]
    own = load_model(module, size=SIZE)
    references = TensorReferences(images(0) ** 3, ClassNames.numbered(4))
    root = Target("class", 2)
    tree = grow(own, root, ["layer1", "relu"], 2, lambda _: references)
    found = causal(own, tree, lambda _: references, images(1), "lrp", 6)
    for layer in found["layers"]:
        assert layer["counts"][-1] == layer["channels"]
        for curves in layer["references"]["curves"].values():
            assert curves["faithfulness"][-1] == pytest.approx(1, abs=1e-4)
            assert curves["completeness"][-1] == pytest.approx(0, abs=1e-4)
        assert layer["references"]["whole"] != layer["others"]["whole"]
    # A logit is linear in the pooled relu: over the images that give the means, that layer has no effect.
    relu, layer1 = (found["layers"][number]["others"]["curves"]["relevance"] for number in (0, 1))
    assert set(relu["faithfulness"]) == {None}
    assert layer1["faithfulness"][-1] == pytest.approx(1, abs=1e-4)
    assert layer1["completeness"][-1] == pytest.approx(0, abs=1e-4)
    assert layer1 != found["layers"][1]["references"]["curves"]["relevance"]
    assert [chart(found["layers"][number], "others").count("<polyline") for number in (0, 1)] == [0, 6]
    assert "changes nothing" in chart(found["layers"][0], "others")
    assert [edge["unit"] for edge in found["edges"]].count("class-2") == 2
    first = found["ranks"][0]
    ablation = Ablation(
        own, unit_readout(own, [root]), "layer1", channel_means(own, "layer1", images(1)), images(0) ** 3
    )
    from vital_exp.circuits.tree import channel_relevance

    relevance = channel_relevance(own, root, references, "layer1")
    whole = ablation.ends[0]
    effects = [whole - ablation.without([channel]) for channel in range(16)]
    assert first["n"] == 16
    assert first["correlation"] == pytest.approx(spearmanr(relevance.numpy(), effects).statistic, abs=1e-6)
    (tmp_path / "causal.json").write_text(json.dumps(found))
    page = read_causal(tmp_path, {"class-0": "star"})
    assert page is not None
    assert page["layers"][0]["charts"]["references"].count("<polyline") == 6
    assert page["correlation"] is not None
    assert read_causal(tmp_path / "nowhere", {}) is None


def test_counts_double_and_ranks_are_spread() -> None:
    assert counts_of(16) == [1, 2, 4, 8, 16]
    assert counts_of(10) == [1, 2, 4, 8, 10]
    assert counts_of(1) == [1]
    chosen = spread(torch.arange(100.0))
    assert (chosen[0], chosen[-1], len(chosen)) == (99, 0, 16)
