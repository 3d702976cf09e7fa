"""Convolutions with packed weights: the same values and gradients, only while a pass runs, and else as ever."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from tests.test_folding import real_norms
from tests.test_performance import first_step
from tests.tiny import tiny_net
from vital_exp import load_model
from vital_exp.config import compose_config
from vital_exp.errors import UsageError
from vital_exp.models import packing
from vital_exp.models.folding import FoldedNorms
from vital_exp.models.packing import PackedConvolutions
from vital_exp.models.taps import Taps

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def packs(precision: torch.dtype) -> bool:
    """Whether this machine packs weights in a precision."""
    return packing._works(precision)


@pytest.fixture
def fresh() -> Iterator[None]:
    """Forget before and after what was found out of this machine."""
    packing._works.cache_clear()
    yield
    packing._works.cache_clear()


def network_of(module: nn.Module, size: int = 32) -> nn.Module:
    """A network for pictures of a size, its maps (N, H, W, C) in memory."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for parameter in module.parameters():
            nn.init.normal_(parameter)
    return load_model(module, size=size).to(memory_format=torch.channels_last)


def values_and_gradient(module: nn.Module, maps: Tensor) -> tuple[Tensor, Tensor]:
    """What a module returns, and the gradient of the sum of its squares."""
    given = maps.clone(memory_format=torch.preserve_format).requires_grad_()
    values = module(given)
    (gradient,) = torch.autograd.grad(values.float().square().sum(), given)
    return values.detach(), gradient


def agree(ours: tuple[Tensor, ...], own: tuple[Tensor, ...], share: float) -> None:
    """Compare in units of the largest value."""
    for mine, theirs in zip(ours, own, strict=True):
        assert mine.dtype == theirs.dtype
        torch.testing.assert_close(mine, theirs, rtol=0, atol=share * float(theirs.abs().max()))


GEOMETRIES = {
    "plain": {"kernel_size": 3, "padding": 1},
    "pointwise": {"kernel_size": 1, "bias": False},
    "strided": {"kernel_size": 3, "stride": 2, "padding": 1},
    "strided pointwise": {"kernel_size": 1, "stride": 2},
    "stem": {"kernel_size": 7, "stride": 2, "padding": 3, "bias": False},
    "patches": {"kernel_size": 4, "stride": 4},
    "dilated": {"kernel_size": 3, "dilation": 2, "padding": 2},
    "grouped": {"kernel_size": 3, "groups": 4, "padding": 1},
    "depthwise": {"kernel_size": 5, "groups": 8, "padding": 2, "stride": 2},
    "oblong": {"kernel_size": (1, 7), "padding": (0, 3), "stride": (2, 1), "dilation": (1, 2)},
    "leaving out the last rows": {"kernel_size": 2, "stride": 3},
}


@pytest.mark.parametrize("precision", list(TOLERANCE))
@pytest.mark.parametrize("size", [(16, 16), (17, 22)])
@pytest.mark.parametrize("geometry", list(GEOMETRIES))
def test_values_and_gradients_are_the_same(geometry: str, size: tuple[int, int], precision: torch.dtype) -> None:
    if not packs(precision):
        pytest.skip(f"no packed weights in {precision} here")
    network = network_of(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, **GEOMETRIES[geometry])))
    network.module.to(precision)
    generator = torch.Generator().manual_seed(1)
    maps = torch.randn(2, 3, *size, generator=generator).to(precision, memory_format=torch.channels_last)
    own = values_and_gradient(network.module, maps)
    packed = PackedConvolutions(network)
    with packed.active():
        taken = network.module[1].forward
        ours = values_and_gradient(network.module, maps)
        agree(values_and_gradient(network.module, maps), ours, 0)  # with weights that are packed already
        other = maps[:1, :, :-3, :-2].contiguous(memory_format=torch.channels_last)
        elsewhere = values_and_gradient(network.module, other)  # packed for maps of another size
    assert isinstance(taken, packing._Packed)
    assert taken.weights is not None
    assert taken.weights._backward is not None
    agree(ours, own, TOLERANCE[precision])
    agree(elsewhere, values_and_gradient(network.module, other), TOLERANCE[precision])


# Of the first two the activation functions are smooth here: rounding decides which side of a ReLU's edge a value is on.
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18", {"act_layer": nn.SiLU}),
        ("mobilenetv2_035", {"act_layer": nn.SiLU}),
        ("convnext_atto", {}),
        ("efficientnet_b0", {}),
    ],
)
@pytest.mark.parametrize("mixed", [False, True])
def test_networks_compute_the_same(name: str, options: dict[str, Any], mixed: bool) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = timm.create_model(name, num_classes=4, **options)
        network = load_model(module, size=64).to(memory_format=torch.channels_last)
    pictures = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    pictures = pictures.to(memory_format=torch.channels_last)
    packed = PackedConvolutions(network)
    assert len(packed) > 10
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        own = values_and_gradient(network.module, pictures)
        with packed.active():
            ours = values_and_gradient(network.module, pictures)
    agree(ours, own, 5e-2 if mixed else 1e-5)


def test_norms_are_packed_with_their_convolutions_and_lie_nowhere_else() -> None:
    network = load_model(real_norms(tiny_net()), size=32).to(memory_format=torch.channels_last)
    pictures = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    pictures = pictures.to(memory_format=torch.channels_last)
    own = values_and_gradient(network.module, pictures)
    norms, packed = FoldedNorms(network, Taps(network.module, ["layer1"])), PackedConvolutions(network)
    with norms.active(), packed.active():
        ours = values_and_gradient(network.module, pictures)
    agree(ours, own, 1e-4)
    if packs(torch.float32):
        weights = {one.convolution: one.weights for one in packed._packed}
        assert weights[network.module.conv1].folded is norms._folded[0]
        assert weights[network.module.layer1[0]].folded is None
        assert not norms._folded[0]._casts
    assert not any("forward" in vars(one) for one in network.module.modules())
    agree(values_and_gradient(network.module, pictures), own, 0)
    with packed.active():  # the norms are to be whole: others are packed
        agree(values_and_gradient(network.module, pictures), own, 1e-5)


def test_maps_in_another_order_are_convolved_with_the_norm() -> None:
    network = load_model(real_norms(tiny_net()), size=32)
    pictures = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    own = values_and_gradient(network.module, pictures)
    norms, packed = FoldedNorms(network, Taps(network.module, ["layer1"])), PackedConvolutions(network)
    with norms.active(), packed.active():
        agree(values_and_gradient(network.module, pictures), own, 1e-4)
        norm = network.module.bn1
        assert torch.equal(norm(pictures), pictures)


def test_the_network_is_as_it_was_outside() -> None:
    network = load_model(tiny_net(), size=32).to(memory_format=torch.channels_last)
    convolution = network.module.conv1
    random = torch.random.get_rng_state()
    with PackedConvolutions(network).active():
        assert "forward" in vars(convolution)
    assert "forward" not in vars(convolution)
    with pytest.raises(RuntimeError, match="on the way"), PackedConvolutions(network).active():
        raise RuntimeError("on the way")
    assert "forward" not in vars(convolution)
    assert torch.equal(torch.random.get_rng_state(), random)


def test_exchanged_and_changed_weights_are_packed_anew() -> None:
    network = network_of(nn.Sequential(nn.Conv2d(3, 8, 3)))
    maps = torch.randn(1, 3, 16, 16).to(memory_format=torch.channels_last)
    packed, convolution = PackedConvolutions(network), network.module[0]
    seen = []
    for change in (lambda: None, lambda: convolution.weight.mul_(2), lambda: convolution.bias.zero_()):
        with torch.no_grad():
            change()
            own = convolution(maps)
            with packed.active():
                torch.testing.assert_close(convolution(maps), own)
        seen.append(own)
    assert not torch.equal(seen[0], seen[1])
    convolution.weight = nn.Parameter(-convolution.weight, requires_grad=False)
    with torch.no_grad(), packed.active():
        ours = convolution(maps)
    torch.testing.assert_close(ours, convolution(maps))


@pytest.mark.parametrize("given", ["another order in memory", "another precision", "a single map"])
def test_what_cannot_be_packed_is_convolved_as_ever(given: str) -> None:
    network = network_of(nn.Sequential(nn.Conv2d(3, 8, 3)))
    maps = torch.randn(2, 3, 16, 16)
    if given == "another precision":
        network.module.double()
        maps = maps.double().to(memory_format=torch.channels_last)
    elif given == "a single map":
        maps = maps[0]
    own = values_and_gradient(network.module, maps)
    with PackedConvolutions(network).active():
        ours = values_and_gradient(network.module, maps)
        assert network.module[0].forward.weights is None
    agree(ours, own, 0)


def test_padding_that_is_not_zeros_and_own_forward_passes_are_left_alone() -> None:
    class Own(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) + 1

    parts = [nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular"), nn.Conv2d(3, 3, 3, padding="same"), Own(3, 3, 3)]
    parts.append(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 3)))  # its weight is computed
    assert len(PackedConvolutions(network_of(nn.Sequential(*parts)))) == 0


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("failure", ["missing", "wrong"])
def test_without_the_operators_the_log_says_why(
    failure: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def convolve(self: packing._Weights, maps: Tensor) -> Tensor:
        if failure == "missing":
            raise AttributeError("no such operator\nand more")
        return self.convolution(maps) + 1

    monkeypatch.setattr(packing._Weights, "convolve", convolve)
    network = network_of(nn.Sequential(nn.Conv2d(3, 8, 3)))
    maps = torch.randn(1, 3, 16, 16).to(memory_format=torch.channels_last)
    with caplog.at_level(logging.INFO), PackedConvolutions(network).active():
        ours = values_and_gradient(network.module, maps)
    agree(ours, values_and_gradient(network.module, maps), 0)
    reason = {"missing": "no such operator", "wrong": "values differ by"}[failure]
    assert f"the weights of convolutions are not packed in torch.float32: {reason}" in caplog.text
    assert "and more" not in caplog.text


@pytest.mark.parametrize("target", ["class:0", "layer1:0"])
def test_losses_and_gradients_are_the_same(target: str) -> None:
    network = load_model(tiny_net(), size=32)
    asked = ["channels_last=true", "objective/alignment=moments"]  # sorting exchanges what is equal but for rounding
    losses, gradient = first_step(network, "pack_weights=false", *asked, target=target)
    ours, ours_gradient = first_step(network, "pack_weights=true", *asked, target=target)
    torch.testing.assert_close(ours, losses, rtol=1e-5, atol=0)
    assert (ours_gradient - gradient).norm() < 1e-5 * gradient.norm()


def test_packing_is_a_flag() -> None:
    with pytest.raises(UsageError, match="pack_weights=maybe: true or false"):
        compose_config(["pack_weights=maybe"])
