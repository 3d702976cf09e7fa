"""Batch norms folded into convolutions: the same values, only while a pass runs, only where nobody reads between."""

from __future__ import annotations

import logging

import pytest
import timm
import torch
from torch import Tensor, nn

from tests.test_performance import first_step
from tests.tiny import TinyNet, tiny_net
from vital_exp import load_model
from vital_exp.config import compose_config
from vital_exp.errors import UsageError
from vital_exp.models.folding import FoldedNorms
from vital_exp.models.network import VisionNetwork
from vital_exp.models.taps import Taps

NOISE = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def real_norms(module: nn.Module) -> nn.Module:
    """Give batch norms statistics and weights that are not trivial."""
    generator = torch.Generator().manual_seed(0)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for values, low in (
                (norm.running_mean, -0.5),
                (norm.running_var, 0.5),
                (norm.weight, 0.5),
                (norm.bias, -0.5),
            ):
                values.data = torch.rand(values.shape, generator=generator) + low
    return module


def timm_network(name: str) -> VisionNetwork:
    """A small network of timm's, random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return load_model(real_norms(timm.create_model(name, num_classes=4)), size=64)


@pytest.mark.parametrize(
    ("name", "layers", "folded", "norms"),
    [
        ("resnet18", ["bn1", "layer2", "layer4"], 20, 20),
        ("resnet18", ["conv1", "layer4"], 19, 20),  # the first norm's input is read
        ("resnet18d", ["conv1", "layer4"], 21, 22),  # likewise: a stem whose last part is a convolution
        ("mobilenetv2_035", ["blocks.2", "bn2"], 52, 52),  # timm's norms with the activation function in them
        ("mobilenetv2_035", ["output"], 52, 52),  # all that a logit needs
        ("densenet121", ["features.denseblock2"], 59, 121),  # the others' inputs are concatenations
        ("vit_tiny_patch16_224", [], 0, 0),
    ],
)
def test_activations_are_the_same(name: str, layers: list[str], folded: int, norms: int) -> None:
    if name.startswith("vit"):
        network = load_model(timm.create_model(name, img_size=64, num_classes=4), size=64)
        layers = ["blocks.3"]
    else:
        network = timm_network(name)
    taps = Taps(network.module, layers)
    folding = FoldedNorms(network, taps)
    assert (len(folding), sum(isinstance(m, nn.BatchNorm2d) for m in network.module.modules())) == (folded, norms)
    own, _ = taps(NOISE)
    with folding.active():
        ours, _ = taps(NOISE)
    for layer in layers:
        torch.testing.assert_close(ours[layer], own[layer], rtol=1e-3, atol=1e-4 * float(own[layer].abs().max()))


def test_the_norms_have_nothing_to_do_inside_and_are_whole_outside() -> None:
    network = load_model(tiny_net(), size=64)
    bn1, weight = network.module.bn1, network.module.conv1.weight
    before, kept = network.module(NOISE), dict(network.module.state_dict())
    normed = bn1(network.module.conv1(NOISE))
    folding = FoldedNorms(network, Taps(network.module, ["layer1"]))
    with folding.active():
        assert torch.equal(bn1(NOISE), NOISE)
        values = network.module.conv1(NOISE)
        torch.testing.assert_close(values, normed)
    with pytest.raises(RuntimeError, match="on the way"), folding.active():
        raise RuntimeError("on the way")
    assert network.module.conv1.weight is weight
    assert not any("forward" in vars(one) for one in network.module.modules())
    assert torch.equal(network.module(NOISE), before)
    assert all(torch.equal(value, kept[name]) for name, value in network.module.state_dict().items())


def test_a_hook_reads_what_lies_between() -> None:
    network = load_model(tiny_net(), size=64)
    folding = FoldedNorms(network, Taps(network.module, ["layer1"]))
    seen: list[Tensor] = []
    watch = network.module.bn1.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with folding.active():
        network.module(NOISE)
    watch.remove()
    watch = network.module.conv1.register_forward_hook(lambda *given: seen.append(given[2].clone()))
    with folding.active():
        network.module(NOISE)
    watch.remove()
    own = torch.nn.functional.conv2d(NOISE, network.module.conv1.weight, stride=2, padding=1)
    assert torch.equal(seen[1], own)
    assert len(seen) == 2


class Shortcut(TinyNet):
    """Uses what comes out of a convolution twice."""

    def forward(self, pictures: Tensor) -> Tensor:
        features = self.conv1(pictures)
        logits: Tensor = self.fc(self.layer1(self.bn1(features) + features).mean((2, 3)))
        return logits


def test_a_network_whose_values_would_change_keeps_its_norms(caplog: pytest.LogCaptureFixture) -> None:
    network = load_model(real_norms(Shortcut()), size=64)
    with caplog.at_level(logging.INFO):
        assert len(FoldedNorms(network, Taps(network.module, ["layer1"]))) == 0
    assert "keeps its batch norms: folded, activations differ by" in caplog.text


def test_a_network_that_folding_breaks_keeps_its_norms() -> None:
    module = tiny_net()
    module.conv1.weight.data.fill_(3e38)  # the norm brings it back; folded it is infinite
    module.bn1.weight.data.fill_(1e3)
    assert len(FoldedNorms(load_model(module, size=64), Taps(module, ["layer1"]))) == 0


@pytest.mark.parametrize("target", ["class:0", "layer1:0"])
@pytest.mark.parametrize("terms", ["[alignment]", "[alignment,batch_norm]", "[alignment,correlation_guidance]"])
@pytest.mark.parametrize("compared", ["sort", "moments"])
def test_losses_and_gradients_are_the_same(target: str, terms: str, compared: str) -> None:
    network = load_model(tiny_net(), size=32)
    asked = ["model.layers=[bn1]", f"objective={terms}", f"objective/alignment={compared}"]
    losses, gradient = first_step(network, "fold_batch_norms=false", *asked, target=target)
    ours, ours_gradient = first_step(network, "fold_batch_norms=true", *asked, target=target)
    torch.testing.assert_close(ours, losses, rtol=1e-5, atol=0)
    # Sorted features that are equal but for rounding may change places, and with them what they are compared with.
    difference = (ours_gradient - gradient).norm() / gradient.norm()
    assert difference < (2e-2 if compared == "sort" else 1e-5)


def test_folding_is_a_flag() -> None:
    with pytest.raises(UsageError, match="fold_batch_norms=maybe: true or false"):
        compose_config(["fold_batch_norms=maybe"])
