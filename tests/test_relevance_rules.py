"""Every relevance rule against its twin in explicit matrix form, in float64; rules installed; families; mistakes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from timm.layers.activations_me import HardMishMe
from torch import Tensor, nn
from torch.nn import functional as F

from tests.explicit_relevance import (
    EPSILON,
    Array,
    attention_twin,
    gamma_twin,
    matrix,
    proportional_twin,
    random,
    z_plus_twin,
)
from tests.tiny import tiny_net
from vital_exp import load_model
from vital_exp.errors import UsageError
from vital_exp.models.taps import Taps
from vital_exp.relevance import relevance_maps
from vital_exp.relevance.maps import activations_and_relevance
from vital_exp.relevance.out_of_place import Uncovered
from vital_exp.relevance.rule_pass import RelevancePass
from vital_exp.targets.readout import Readout, readout
from vital_exp.targets.unit import Target


def flow(operation: Callable[[Tensor], Tensor], x: Tensor, relevance: Tensor, epsilon_rules: bool = False) -> Array:
    """What a relevance pass gives to the input of an operation."""
    leaf = x.clone().requires_grad_()
    with RelevancePass(epsilon_rules):
        out = operation(leaf)
    (arrived,) = torch.autograd.grad(out, leaf, relevance)
    return arrived.flatten(1).numpy()


def _linear_cases() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    torch.manual_seed(0)
    return {
        "convolution": (nn.Conv2d(3, 4, 3, padding=1, stride=2), (3, 6, 5)),
        "depthwise": (nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False), (4, 5, 5)),
        "grouped": (nn.Conv2d(4, 6, 1, groups=2), (4, 3, 3)),
        "linear": (nn.Linear(7, 5), (7,)),
        "linear over tokens": (nn.Linear(4, 3), (5, 4)),
    }


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("name", list(_linear_cases()))
def test_z_plus_in_matrix_form(name: str, signed: bool) -> None:
    module, shape = _linear_cases()[name]
    module = module.double().requires_grad_(False)
    x = random(2, *shape, seed=1) if signed else random(2, *shape, seed=1).abs()
    with torch.no_grad():
        offset = module(torch.zeros(1, *shape, dtype=torch.float64))
        weights = matrix(lambda basis: module(basis) - offset, shape)
        relevance = random(*module(x).shape, seed=2)
    expected = z_plus_twin(weights, x.flatten(1).numpy(), relevance.flatten(1).numpy())
    np.testing.assert_allclose(flow(module, x, relevance), expected, rtol=1e-8, atol=1e-10)


def test_weights_can_be_given_by_name() -> None:
    x, relevance = random(2, 6, seed=9), random(2, 6, seed=10)
    weight, bias = random(6, 6, seed=11), random(6, seed=12)
    by_name = flow(lambda v: F.linear(v, weight=weight, bias=bias), x, relevance, epsilon_rules=True)
    np.testing.assert_array_equal(by_name, flow(lambda v: F.linear(v, weight, bias), x, relevance, epsilon_rules=True))
    maps, kernels = random(2, 3, 5, 5, seed=1), random(4, 3, 3, 3, seed=2)
    arriving = random(2, 4, 2, 2, seed=3)
    by_name = flow(lambda v: F.conv2d(v, weight=kernels, stride=2), maps, arriving)
    np.testing.assert_array_equal(by_name, flow(lambda v: F.conv2d(v, kernels, None, 2), maps, arriving))


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_gamma_rules_in_matrix_form(kind: str) -> None:
    module, shape = _linear_cases()[kind]
    module = module.double().requires_grad_(False)
    gamma = 0.05 if kind == "linear" else 0.25
    x = random(2, *shape, seed=3)
    with torch.no_grad():
        offset = module(torch.zeros(1, *shape, dtype=torch.float64))
        weights = matrix(lambda basis: module(basis) - offset, shape)
        relevance = random(*module(x).shape, seed=4)
    bias = offset.flatten().numpy()
    flat, arriving = x.flatten(1).numpy(), relevance.flatten(1).numpy()
    expected = gamma_twin(weights, bias, flat, arriving, gamma)
    np.testing.assert_allclose(flow(module, x, relevance, epsilon_rules=True), expected, rtol=1e-8, atol=1e-10)


POOLS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "average": (lambda x: F.avg_pool2d(x, 2), lambda x: F.avg_pool2d(x, 2)),
    "adaptive": (lambda x: F.adaptive_avg_pool2d(x, 1), lambda x: x.mean((2, 3), keepdim=True)),
    "mean": (lambda x: x.mean((2, 3)), lambda x: x.mean((2, 3))),
    "maximum": (lambda x: F.max_pool2d(x, 3, 2, 1), lambda x: F.avg_pool2d(x, 2)),
    "maximum module": (nn.MaxPool2d(2), lambda x: F.avg_pool2d(x, 2)),
}


@pytest.mark.parametrize("name", list(POOLS))
def test_pooling_is_proportional_to_the_average(name: str) -> None:
    pooling, average = POOLS[name]
    x = random(2, 3, 6, 6, seed=5).abs()
    relevance = random(*pooling(x).shape, seed=6)
    weights = matrix(average, (3, 6, 6))
    expected = proportional_twin(weights, x.flatten(1).numpy(), relevance.flatten(1).numpy())
    np.testing.assert_allclose(flow(pooling, x, relevance), expected, rtol=1e-8, atol=1e-12)


IDENTITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "batch norm": nn.BatchNorm2d(3).double().eval(),
    "layer norm": nn.LayerNorm(4).double(),
    "group norm": nn.GroupNorm(1, 3).double(),
    "relu": nn.ReLU(),
    "relu in place": nn.Sequential(nn.Identity(), nn.ReLU(inplace=True)),
    "relu6 in place": nn.ReLU6(inplace=True),
    "gelu": nn.GELU(),
    "silu in place": nn.SiLU(inplace=True),
    "hardswish": nn.Hardswish(inplace=True),
    "dropout": nn.Dropout(0.5).eval(),
    "layer scale": lambda x: x * torch.full((4,), 0.3, dtype=torch.float64),
    "layer scale in place": lambda x: x.mul_(torch.full((4,), 0.3, dtype=torch.float64)),
    "number": lambda x: 2 * x / 3,
    "negated": lambda x: -x,
    "number taken from it": lambda x: x - 1,
    "taken from a number": lambda x: 1 - x,
    "taken from a constant": lambda x: torch.ones(4, dtype=torch.float64) - x,
    "number taken from it in place": lambda x: x.sub_(1, alpha=2),
    "position embedding": lambda x: x + torch.ones(1, 1, 4, 4, dtype=torch.float64),
    "scaled and shifted": lambda x: torch.addcmul(torch.ones(4, dtype=torch.float64), torch.ones(4).double(), x),
}


@pytest.mark.parametrize("name", list(IDENTITIES))
def test_relevance_passes_unchanged(name: str) -> None:
    x, relevance = random(2, 3, 4, 4, seed=7), random(2, 3, 4, 4, seed=8)

    def operation(v: Tensor) -> Tensor:
        return IDENTITIES[name](v * 1)  # not a leaf, which nothing may change in place

    np.testing.assert_allclose(flow(operation, x, relevance), relevance.flatten(1).numpy(), rtol=0, atol=0)


def test_residual_sums_split_by_magnitude_and_concatenations_into_parts() -> None:
    x, relevance = random(2, 6, seed=9), random(2, 6, seed=10)
    a, b = random(6, 6, seed=11), random(6, 6, seed=12)
    main, shortcut = F.linear(x, a), F.linear(x, b)
    rho = (main.abs() / (main.abs() + shortcut.abs())).numpy()
    arriving = relevance.numpy()
    expected = z_plus_twin(a.numpy(), x.numpy(), rho * arriving)
    expected = expected + z_plus_twin(b.numpy(), x.numpy(), (1 - rho) * arriving)
    for add in (torch.add, lambda u, v: u + v, lambda u, v: u.add_(v), lambda u, v: u.__iadd__(v)):
        ours = flow(lambda v, add=add: add(F.linear(v, a), F.linear(v, b)), x, relevance)  # type: ignore[misc]
        np.testing.assert_allclose(ours, expected, rtol=1e-8, atol=1e-10)
    both = torch.cat([relevance, 2 * relevance], dim=1)
    np.testing.assert_allclose(flow(lambda v: torch.cat([v, v], dim=1), x, both), 3 * arriving, rtol=1e-12)


# Sums and differences of two activations, and the same as the sum of two summands.
SUMS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]]] = {
    "difference": (lambda a, b: a - b, lambda a, b: (a, -b)),
    "difference in place": (lambda a, b: a.__isub__(b), lambda a, b: (a, -b)),
    "turned round": (torch.rsub, lambda a, b: (-a, b)),
    "alpha": (lambda a, b: torch.add(a, b, alpha=3), lambda a, b: (a, 3 * b)),
    "alpha in place": (lambda a, b: a.add_(b, alpha=-0.5), lambda a, b: (a, -b / 2)),
    "difference with alpha": (lambda a, b: torch.sub(a, other=b, alpha=3), lambda a, b: (a, -3 * b)),
}


@pytest.mark.parametrize("name", list(SUMS))
def test_differences_and_weighted_sums_are_sums(name: str) -> None:
    operation, summands = SUMS[name]
    x, relevance = random(2, 6, seed=9), random(2, 6, seed=10)
    weights = random(6, 6, seed=11), random(6, 6, seed=12)

    def forward(v: Tensor) -> Tensor:
        return operation(F.linear(v, weights[0]), F.linear(v, weights[1]))

    parts = [part.numpy() for part in summands(*(F.linear(x, weight) for weight in weights))]
    rho = np.abs(parts[0]) / (np.abs(parts[0]) + np.abs(parts[1]))
    expected = z_plus_twin(weights[0].numpy(), x.numpy(), rho * relevance.numpy())
    expected = expected + z_plus_twin(weights[1].numpy(), x.numpy(), (1 - rho) * relevance.numpy())
    np.testing.assert_allclose(flow(forward, x, relevance), expected, rtol=1e-8, atol=1e-10)


ALONE = {**IDENTITIES, **{name: lambda x, own=pair[0]: own(2 * x, x.relu()) for name, pair in SUMS.items()}}


@pytest.mark.parametrize("name", list(ALONE))
def test_a_relevance_pass_changes_no_value(name: str) -> None:
    x = random(2, 3, 4, 4, seed=7)
    with RelevancePass():
        ruled = ALONE[name](x.clone().requires_grad_() * 1)
    torch.testing.assert_close(ruled.detach(), ALONE[name](x.clone()), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("constant_first", [True, False])
def test_a_constant_factor_of_a_matrix_product_takes_no_relevance(constant_first: bool) -> None:
    x, constant = random(2, 4, 4, seed=1), random(2, 4, 4, seed=2)

    def operation(v: Tensor) -> Tensor:
        return constant @ v if constant_first else v @ constant

    relevance = operation(x)
    np.testing.assert_allclose(flow(operation, x, relevance).sum(), relevance.sum(), rtol=1e-4)


def test_a_choice_passes_relevance_to_what_was_chosen() -> None:
    x, relevance = random(2, 6, seed=9), random(2, 6, seed=10)
    a, b = random(6, 6, seed=11), random(6, 6, seed=12)
    first = F.linear(x, a) > 0

    def chosen(v: Tensor) -> Tensor:
        return torch.where(F.linear(v, a) > 0, F.linear(v, a), F.linear(v, b))

    expected = z_plus_twin(a.numpy(), x.numpy(), (relevance * first).numpy())
    expected = expected + z_plus_twin(b.numpy(), x.numpy(), (relevance * ~first).numpy())
    np.testing.assert_allclose(flow(chosen, x, relevance), expected, rtol=1e-8, atol=1e-10)


def self_attention_twin(x: Array, weights: list[Array], relevance: Array) -> Array:
    """One head of self-attention, its queries, keys and values by z+."""
    arrived = attention_twin(*(x @ w.T for w in weights), relevance)
    return sum(  # type: ignore[no-any-return]
        np.stack([z_plus_twin(w, image, arriving) for image, arriving in zip(x, part, strict=True)])
        for w, part in zip(weights, arrived, strict=True)
    )


def test_attention_in_matrix_form() -> None:
    x, relevance = random(2, 5, 4, seed=13), random(2, 5, 4, seed=14)
    weights = [random(4, 4, seed=s) for s in (15, 16, 17)]

    def fused(v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(*(F.linear(v, w)[:, None] for w in weights))[:, 0]

    def explicit(v: Tensor) -> Tensor:
        query, key, value = (F.linear(v, w) for w in weights)
        return ((query / 2) @ key.transpose(-2, -1)).softmax(dim=-1) @ value

    expected = self_attention_twin(x.numpy(), [w.numpy() for w in weights], relevance.numpy()).reshape(2, -1)
    np.testing.assert_allclose(flow(fused, x, relevance), expected, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(flow(explicit, x, relevance), expected, rtol=1e-8, atol=1e-10)


def test_torchvisions_attention_is_timms() -> None:
    torch.manual_seed(0)
    packed = nn.MultiheadAttention(8, 2, batch_first=True).double().eval().requires_grad_(False)
    x, relevance = random(2, 5, 8, seed=18), random(2, 5, 8, seed=19)

    def by_hand(v: Tensor) -> Tensor:
        projected = F.linear(v, packed.in_proj_weight, packed.in_proj_bias)
        query, key, value = projected.reshape(2, 5, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(2, 5, 8)
        return packed.out_proj(mixed)

    def theirs(v: Tensor) -> Tensor:
        return packed(v, v, v, need_weights=False)[0]  # type: ignore[no-any-return]

    torch.testing.assert_close(theirs(x), by_hand(x))
    np.testing.assert_allclose(flow(theirs, x, relevance), flow(by_hand, x, relevance), rtol=1e-8, atol=1e-12)


def tv(name: str) -> nn.Module:
    network: nn.Module = getattr(torchvision.models, name)(weights=None)
    return network


def small_vit() -> nn.Module:
    return torchvision.models.VisionTransformer(64, 16, 3, 2, 32, 64, num_classes=4)


@pytest.mark.parametrize("library", ["timm", "torchvision"])
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", {"residual_sum": 8, "conv2d": 20, "batch_norm": 20, "relu": 17, "max_pool2d": 1, "linear": 1}),
        ("resnet50", {"residual_sum": 16, "conv2d": 53, "batch_norm": 53, "relu": 49, "max_pool2d": 1, "linear": 1}),
        ("densenet121", {"residual_sum": 0, "conv2d": 120, "batch_norm": 121, "relu": 121, "avg_pool2d": 3}),
    ],
)
def test_as_many_rules_are_installed_as_a_network_has_operations(
    library: str, name: str, expected: dict[str, int]
) -> None:
    made = timm.create_model(name) if library == "timm" else getattr(torchvision.models, name)(weights=None)
    network = made.eval().requires_grad_(False)
    with RelevancePass() as rules:
        network(torch.zeros(1, 3, 64, 64).requires_grad_())
    assert {operation: rules.counts[operation] for operation in expected} == expected


def _vit(depth: int) -> dict[str, int]:
    """What a vision transformer of so many blocks has."""
    blocks = {"residual_sum": 2, "layer_norm": 2, "matmul": 2, "softmax": 1, "gelu": 1, "linear": 4}
    once = {"layer_norm": 1, "linear": 1, "conv2d": 1}
    return {name: depth * blocks.get(name, 0) + once.get(name, 0) for name in {**blocks, **once}}


def _convnext(depth: int) -> dict[str, int]:
    """What a ConvNeXt of four stages with so many blocks has; its stem and its three steps down have a norm each."""
    once = {"conv2d": 4, "layer_norm": 5, "linear": 1}
    blocks = {"residual_sum": 1, "conv2d": 1, "layer_norm": 1, "linear": 2, "gelu": 1, "scale": 1}
    return {name: depth * count + once.get(name, 0) for name, count in blocks.items()}


MOBILENET = {"residual_sum": 10, "conv2d": 52, "batch_norm": 52, "hardtanh": 35, "linear": 1}
COUNTS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], dict[str, int]]] = {
    # timm's, torchvision's, what both have
    "vit": (lambda: timm.create_model("vit_tiny_patch16_224", img_size=64, depth=3), small_vit, _vit(3)),
    "convnext": (lambda: timm.create_model("convnext_tiny"), lambda: tv("convnext_tiny"), _convnext(18)),
    "mobilenetv2": (lambda: timm.create_model("mobilenetv2_100"), lambda: tv("mobilenet_v2"), MOBILENET),
}


@pytest.mark.parametrize("library", ["timm", "torchvision"])
@pytest.mark.parametrize("name", list(COUNTS))
def test_as_many_rules_are_installed_as_other_families_have_operations(library: str, name: str) -> None:
    theirs, torchvisions, expected = COUNTS[name]
    network = (theirs if library == "timm" else torchvisions)().eval().requires_grad_(False)
    with RelevancePass() as rules:
        network(torch.zeros(1, 3, 64, 64).requires_grad_())
    assert {operation: rules.counts[operation] for operation in expected} == expected


ENCODER = "encoder.layers.encoder_layer_"
# Network, layers, target's layer, size.
FAMILIES: dict[str, tuple[Callable[[], nn.Module], list[str], str, int]] = {
    "resnet18": (lambda: tv("resnet18"), ["conv1", "layer1", "layer2"], "layer3", 64),
    "timm resnet50": (lambda: timm.create_model("resnet50"), ["conv1", "layer1"], "layer2.1", 64),
    "densenet": (lambda: tv("densenet121"), ["features.conv0", "features.denseblock1"], "features.denseblock2", 64),
    "convnext": (
        lambda: timm.create_model("convnext_atto"),
        ["stem", "stages.1.downsample.1"],
        "stages.2.blocks.1",
        64,
    ),
    "convnextv2": (lambda: timm.create_model("convnextv2_atto"), ["stem"], "stages.1.blocks.1", 64),
    "mobilenetv2": (lambda: timm.create_model("mobilenetv2_100"), ["conv_stem", "blocks.1"], "blocks.3", 64),
    "squeezenet": (lambda: tv("squeezenet1_1"), ["features.0"], "features.7", 64),
    "timm vit": (
        lambda: timm.create_model("vit_tiny_patch16_224", img_size=64),
        *(["patch_embed", "blocks.0"], "blocks.4", 64),
    ),
    "torchvision vit": (small_vit, ["conv_proj", f"{ENCODER}0"], f"{ENCODER}2", 64),
    "swin": (
        lambda: timm.create_model("swin_tiny_patch4_window7_224", img_size=56, window_size=7),
        *(["patch_embed"], "layers.0", 56),
    ),
    "efficientnet": (lambda: timm.create_model("efficientnet_b0"), ["conv_stem", "blocks.1"], "blocks.2", 64),
}


def strongest_channel(network: nn.Module, layer: str, x: Tensor) -> Readout:
    """The read-out of the layer's most active channel: some channels of a random network never are."""
    with torch.no_grad():
        activations, _ = Taps(network, [layer])(x)
    values = activations[layer].flatten(2).amax(dim=-1)  # (N, C)
    return readout([Target("channel", int(values.amin(dim=0).argmax()), layer)] * len(x), values.shape[1])


@pytest.mark.parametrize("method", ["lrp", "guided_backprop", "gradient_x_activation"])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_relevance_reaches_every_layer_of_every_family(family: str, method: str) -> None:
    make, layers, target, size = FAMILIES[family]
    torch.manual_seed(1)
    network = make().eval().requires_grad_(False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    x = torch.randn(1, 3, size, size)
    read = strongest_channel(network, target, x)
    activations, maps, _ = activations_and_relevance(network, x, layers, read, method)
    for layer in layers:
        assert maps[layer].shape == activations[layer].shape
        assert maps[layer].isfinite().all()
        assert maps[layer].abs().sum() > 0, layer
    assert all((value == before[name]).all() for name, value in network.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("target", ["layer4.0", "layer3"])
def test_relevance_is_conserved_down_to_the_stage_below(name: str, target: str) -> None:
    torch.manual_seed(2)
    network = timm.create_model(name, zero_init_last=False).eval().requires_grad_(False)
    below = "layer3" if target == "layer4.0" else "layer2"
    x = torch.randn(2, 3, 96, 96)
    read = strongest_channel(network, target, x)
    _, maps, _ = activations_and_relevance(network, x, [below, target], read, "lrp")
    sums = {layer: values.sum((1, 2, 3)) for layer, values in maps.items()}
    assert (sums[target] > 0).all()
    torch.testing.assert_close(sums[below], sums[target], rtol=1e-3, atol=0)


@pytest.mark.parametrize("boolean", [True, False])
@pytest.mark.parametrize("each_head", [True, False])
def test_torchvisions_attention_heeds_its_mask(boolean: bool, each_head: bool) -> None:
    torch.manual_seed(0)
    packed = nn.MultiheadAttention(8, 2, batch_first=True).double().eval().requires_grad_(False)
    x, relevance = random(2, 5, 8, seed=18), random(2, 5, 8, seed=19)
    hidden = torch.ones(5, 5, dtype=torch.bool).triu(1)
    mask = hidden if boolean else torch.zeros(5, 5, dtype=torch.float64).masked_fill(hidden, -torch.inf)
    mask = mask.expand(4, 5, 5) if each_head else mask

    def by_hand(v: Tensor) -> Tensor:
        projected = F.linear(v, packed.in_proj_weight, packed.in_proj_bias)
        query, key, value = projected.reshape(2, 5, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value, ~hidden).transpose(1, 2).reshape(2, 5, 8)
        return packed.out_proj(mixed)

    def theirs(v: Tensor) -> Tensor:
        return packed(v, v, v, attn_mask=mask, need_weights=False)[0]  # type: ignore[no-any-return]

    torch.testing.assert_close(theirs(x), by_hand(x))
    np.testing.assert_allclose(flow(theirs, x, relevance), flow(by_hand, x, relevance), rtol=1e-8, atol=1e-12)


class AttentionToNothing(nn.MultiheadAttention):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x, x, x)[0]


TO_NOTHING = AttentionToNothing(4, 1, batch_first=True, add_zero_attn=True).double().eval().requires_grad_(False)


@pytest.mark.parametrize(
    ("operation", "named"),
    [
        (lambda x: x / (x.relu() + 1), "division by an activation"),
        (lambda x: torch.ones(1, 2, 4).double().div(other=x), "division by an activation"),
        (lambda x: 1 / x, "rdiv"),
        (TO_NOTHING, "attention with added keys"),
    ],
)
def test_what_has_no_rule_is_refused(operation: Callable[[Tensor], Tensor], named: str) -> None:
    with RelevancePass(), pytest.raises(Uncovered, match=named):
        operation(random(1, 2, 4, seed=1).requires_grad_())


class Changed(nn.Module):
    """Changes activations in place, by statements whose results nobody takes."""

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        F.relu(x, inplace=True)
        x.mul_(0.5)
        x += shortcut  # what it has become
        return x


@pytest.mark.parametrize("method", ["lrp", "guided_backprop", "gradient_x_activation"])
@torch.no_grad()
def test_statements_in_place_change_what_is_read_afterwards(method: str) -> None:
    torch.manual_seed(0)
    first, last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)
    network = nn.Sequential(first, Changed(), last).double().eval().requires_grad_(False)
    x = random(2, 3, 6, 6, seed=1)
    before = first(x)
    read = readout([Target("channel", 0, "2")] * 2, 2)
    activations, maps, value = activations_and_relevance(network, x, ["0", "1"], read, method)
    torch.testing.assert_close(activations["0"], before)
    torch.testing.assert_close(activations["1"], before.relu())  # half of it and the same again
    torch.testing.assert_close(value, last(before.relu())[:, 0].flatten(1))
    if method == "lrp":  # both halves came from the same activation
        torch.testing.assert_close(maps["0"], maps["1"])


class Cumulative(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.cumsum(dim=1)


def test_an_operation_without_a_rule_is_named_with_its_module() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.ReLU(), Cumulative()), nn.Conv2d(4, 2, 1)).eval()
    images = torch.rand(1, 3, 8, 8)
    with pytest.raises(UsageError, match=r"no rule for the operation cumsum in 1\.1; relevance=gradient_x_activation"):
        relevance_maps(load_model(network, size=8), images, "2:0", ["0"])
    assert relevance_maps(load_model(network, size=8), images, "2:0", ["0"], "gradient_x_activation")["0"].shape[1] == 4


class Squared(torch.autograd.Function):
    """An activation function of one's own, which torch shows to no mode."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * gradient * ctx.saved_tensors[0]


class SquaredModule(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Squared.apply(x)  # type: ignore[no-any-return]


class HalfSquared(nn.Module):
    """Uses its result in the module that makes it."""

    def forward(self, x: Tensor) -> Tensor:
        return Squared.apply(x) * 0.5  # type: ignore[no-any-return]


@pytest.mark.parametrize("target", ["1.1:0", "2:0", "class:0"])
@pytest.mark.parametrize(
    ("make", "operation"),
    [(SquaredModule, "Squared"), (HalfSquared, "Squared"), (HardMishMe, "HardMishAutoFn")],
)
def test_a_custom_function_is_named_with_its_module(make: Callable[[], nn.Module], operation: str, target: str) -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Sequential(nn.ReLU(), make()), nn.Conv2d(4, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    model, images = load_model(network.eval(), size=8), torch.rand(1, 3, 8, 8)
    for method in ("lrp", "lrp_restricted", "attn_lrp"):
        with pytest.raises(UsageError, match=rf"no rule for the operation {operation} in 1\.1; relevance=gradient_x_"):
            relevance_maps(model, images, target, ["0"], method)
    for method in ("guided_backprop", "gradient_x_activation"):
        assert relevance_maps(model, images, target, ["0"], method)["0"].isfinite().all()


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_scripted_module_is_refused_and_named() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), torch.jit.trace(nn.Hardswish(), torch.rand(1, 4, 6, 6)), nn.ReLU())
    with pytest.raises(UsageError, match=r"TopLevelTracedModule \(1\): the layers of TorchScript cannot be read"):
        relevance_maps(load_model(network.eval(), size=8), torch.rand(1, 3, 8, 8), "2:0", ["0"])


def test_relevance_of_a_class_starts_from_its_logit() -> None:
    network, images = load_model(tiny_net(), size=32), torch.rand(2, 3, 32, 32)
    maps = relevance_maps(network, images, "class:1", ["conv1", "layer1"], "gradient_x_activation")
    assert maps["layer1"].shape == (2, 16, 8, 8)


@pytest.mark.parametrize("method", ["lrp", "attn_lrp", "lrp_restricted"])
@torch.no_grad()
def test_lrp_of_a_class_distributes_its_logit(method: str) -> None:
    module = tiny_net(classes=8)
    for bias in (module.fc.bias, module.layer1[0].bias):  # biases take relevance, or make it
        bias.zero_()
    network, images = load_model(module, size=32), torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    logits = network.module(network.preprocessing.normalise(images))
    assert (logits.amin(0) > 0.05).any()
    assert (logits.amax(0) < -0.05).any()
    for index in range(8):
        maps = relevance_maps(network, images, f"class:{index}", ["conv1", "layer1", "fc"], method)
        # A class that an image speaks against has nothing to distribute.
        begun = torch.ones(3) if method == "lrp_restricted" else logits[:, index].clamp(min=0)
        for layer, values in maps.items():
            sums = values.flatten(1).sum(1)
            torch.testing.assert_close(sums, begun, rtol=5e-3, atol=1e-5, msg=f"{index} {layer} {sums} {begun}")


@pytest.mark.parametrize(
    ("target", "layers", "method", "message"),
    [
        ("layer1:1", ["layer1", "conv1"], "lpr", r"method=lpr: one of lrp, .*did you mean lrp"),
        ("layer1:1", ["fc"], "lrp", r"model.layers=fc: not below the target's layer layer1"),
        ("layer1:1", ["conv9"], "lrp", r"model.layers=conv9: no such layer.*did you mean conv1"),
        ("layer2:1", ["conv1"], "lrp", r"target=layer2: no such layer"),
        ("layer1:16", ["conv1"], "lrp", r"target=16: layer1 has 16 channels, 0 to 15"),
    ],
)
def test_mistakes(target: str, layers: list[str], method: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        relevance_maps(load_model(tiny_net(), size=32), torch.rand(1, 3, 32, 32), target, layers, method)


def test_guided_backprop_passes_positive_gradients_through_open_relus() -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.ReLU(inplace=True), nn.Conv2d(2, 1, 1, bias=False)).eval()
    with torch.no_grad():
        module[0].weight.copy_(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1))
        module[2].weight.copy_(torch.tensor([2.0, -3.0]).view(1, 2, 1, 1))
    x = torch.tensor([[[[1.0, -1.0]]]])
    read = Readout("2", torch.ones(1, 1), (None,))
    _, maps, _ = activations_and_relevance(module.requires_grad_(False), x, ["0"], read, "guided_backprop")
    # d mean / d relu = [2, -3] / 2; the second is negative, the first open at the first position only.
    assert maps["0"][0].tolist() == [[[1.0, 0.0]], [[0.0, 0.0]]]


def test_z_plus_agrees_with_zennit() -> None:
    zennit = pytest.importorskip("zennit.rules")
    torch.manual_seed(3)
    network = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 5, 3, stride=2), nn.ReLU()).double()
    x = random(2, 3, 9, 9, seed=20)
    read = readout([Target("channel", 2, "3")] * 2, 5)
    network = network.eval().requires_grad_(False)
    _, ours, value = activations_and_relevance(network, x, ["0"], read, "lrp")
    rule = zennit.ZPlus(stabilizer=lambda z: z + EPSILON, zero_params="bias")
    handle = rule.register(network[2])
    try:
        hidden = network[0](x).relu().requires_grad_()
        out = network[2](hidden)
        start = torch.zeros_like(out)
        start[:, 2] = value.reshape(2, *out.shape[2:])
        (theirs,) = torch.autograd.grad(out, hidden, start)
    finally:
        handle.remove()
    torch.testing.assert_close(ours["0"], theirs, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("method", ["lrp", "attn_lrp"])
@pytest.mark.parametrize("average", [nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(4)])
def test_a_network_of_many_layers_agrees_with_zennit(method: str, average: nn.Module) -> None:
    zennit = pytest.importorskip("zennit.rules")
    torch.manual_seed(3)
    body = [nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), average, nn.Conv2d(8, 8, 3, groups=2)]
    head = [nn.ReLU(), nn.Flatten(), nn.Linear(32, 10), nn.ReLU(), nn.Dropout(), nn.Linear(10, 4)]
    network = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), *body, *head).double().eval().requires_grad_(False)
    x = random(2, 3, 8, 8, seed=21)
    away = lambda z: z + torch.where(z < 0, -EPSILON, EPSILON).to(z)  # noqa: E731
    rules = {
        nn.Conv2d: zennit.ZPlus(away, zero_params="bias"),
        nn.Linear: zennit.ZPlus(away, zero_params="bias"),
        type(average): zennit.Norm(away),
        **dict.fromkeys((nn.BatchNorm2d, nn.ReLU, nn.Dropout), zennit.Pass()),
    }
    if method == "attn_lrp":
        rules |= {nn.Conv2d: zennit.Gamma(0.25, away), nn.Linear: zennit.Gamma(0.05, away)}
    hidden = network[0](x).requires_grad_()
    copies = [(module, rules[type(module)].copy()) for module in network[1:] if type(module) in rules]
    handles = [rule.register(module) for module, rule in copies]
    try:
        out = network[1:](hidden)
        start = torch.zeros_like(out)
        start[:, 1] = out.detach()[:, 1].clamp(min=0) + 1
        (theirs,) = torch.autograd.grad(out, hidden, start)
    finally:
        for handle in handles:
            handle.remove()
    with RelevancePass(epsilon_rules=method == "attn_lrp"):
        leaf = hidden.detach().requires_grad_()
        result = network[1:](leaf)
    (ours,) = torch.autograd.grad(result, leaf, start)
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-12)
