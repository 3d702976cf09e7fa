"""LRP of every family's block, and of whole ResNets, against twins written out by hand, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from timm.models._efficientnet_blocks import SqueezeExcite
from timm.models.convnext import ConvNeXtBlock
from timm.models.vision_transformer import Block as VisionTransformerBlock
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.densenet import _DenseBlock, _Transition
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.models.resnet import BasicBlock, Bottleneck

from tests.explicit_relevance import (
    EPSILON,
    BlockRule,
    LinearRule,
    basic_block,
    bottleneck,
    convnext_block,
    dense_block,
    gamma,
    inverted_residual,
    random,
    squeeze_excitation,
    transition,
    vit_block,
    z_plus,
)
from vital_exp.relevance.maps import activations_and_relevance
from vital_exp.targets.readout import Readout, readout
from vital_exp.targets.unit import Target

METHODS: dict[str, LinearRule] = {"lrp": z_plus, "lrp_restricted": z_plus, "attn_lrp": gamma}


def _down(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


# Blocks that follow a convolution of 3 to 4 channels, each with its twin; the shape of the pictures.
BLOCKS: dict[str, tuple[Callable[[], list[nn.Module]], list[BlockRule], tuple[int, ...]]] = {
    "basic block": (
        lambda: [BasicBlock(4, 4), BasicBlock(4, 6, 2, _down(4, 6, 2))],
        [basic_block, basic_block],
        (3, 6, 6),
    ),
    "bottleneck": (
        lambda: [Bottleneck(4, 3, 2, _down(4, 12, 2)), Bottleneck(12, 3)],
        [bottleneck, bottleneck],
        (3, 6, 6),
    ),
    "dense block": (
        lambda: [_DenseBlock(2, 4, 2, 3, 0.0), _Transition(10, 5)],
        [dense_block, transition],
        (3, 4, 4),
    ),
    "inverted residual": (
        lambda: [InvertedResidual(4, 4, 1, 3), InvertedResidual(4, 6, 2, 2), InvertedResidual(6, 6, 1, 1)],
        [inverted_residual, inverted_residual, inverted_residual],
        (3, 5, 5),
    ),
    "squeeze and excitation": (
        lambda: [InvertedResidual(4, 4, 1, 2), SqueezeExcite(4, 0.5)],
        [inverted_residual, squeeze_excitation],
        (3, 4, 4),
    ),
    "convnext block": (
        lambda: [ConvNeXtBlock(4, kernel_size=3, ls_init_value=0.5), ConvNeXtBlock(4, ls_init_value=0.5)],
        [convnext_block, convnext_block],
        (3, 4, 4),
    ),
    "vision transformer block": (
        lambda: [VisionTransformerBlock(4, 2, qkv_bias=True), VisionTransformerBlock(4, 1)],
        [vit_block, vit_block],
        (5, 3),
    ),
}


def network_of(blocks: list[nn.Module], shape: tuple[int, ...]) -> nn.Sequential:
    """Blocks after a stem, in float64, with norms whose statistics and weights are not trivial."""
    stem = nn.Conv2d(3, 4, 1) if len(shape) == 3 else nn.Linear(3, 4)
    network = nn.Sequential(stem, *blocks).double().eval().requires_grad_(False)
    return _unsettled(network)


def _unsettled(network: Any) -> Any:
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(std=0.3)
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.3)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    return network


def started(activation: Tensor, channel: int, method: str) -> Tensor:
    """Relevance at the target's layer, (N, C, P): the channel where it is positive, or 1 at one position of it."""
    begun = torch.zeros_like(activation)
    for image, values in enumerate(activation):
        if method == "lrp_restricted":
            place = (values[channel] / values.norm(dim=0)).argmax()
            begun[image, channel, place] = 1
        else:
            begun[image, channel] = values[channel].clamp(min=0)
    return begun


def read_by_hand(
    network: nn.Sequential, twins: list[BlockRule], x: Tensor, begun: Callable[[Tensor], Tensor], rule: LinearRule
) -> dict[str, Tensor]:
    """Relevance at the stem and at every block."""
    inputs = [network[0](x)]
    for block in network[1:]:
        inputs.append(block(inputs[-1]))
    tokens = inputs[-1].ndim == 3
    out = inputs[-1].transpose(1, 2) if tokens else inputs[-1]
    relevance = begun(out.flatten(2)).view_as(out)
    relevance = relevance.transpose(1, 2) if tokens else relevance
    maps = {str(len(twins)): relevance}
    for number in reversed(range(len(twins))):
        relevance = twins[number](network[number + 1], inputs[number], relevance, rule)
        maps[str(number)] = relevance
    return {layer: values.transpose(1, 2) if tokens else values for layer, values in maps.items()}


def most_active(activation: Tensor) -> int:
    """The channel that is positive in the most places of every image."""
    return int((activation > 0).double().mean(2).amin(0).argmax())


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize("name", list(BLOCKS))
@torch.no_grad()
def test_relevance_of_a_familys_blocks_is_that_written_out_by_hand(name: str, method: str) -> None:
    make, twins, shape = BLOCKS[name]
    torch.manual_seed(3)
    network, x = network_of(make(), shape), random(2, *shape, seed=4)
    out = network(x)
    out = (out.transpose(1, 2) if out.ndim == 3 else out).flatten(2)
    layers, channel = [str(number) for number in range(len(network))], most_active(out)
    read = readout([Target("channel", channel, layers[-1])] * 2, out.shape[1])
    _, maps, value = activations_and_relevance(network, x, layers, read, method)
    torch.testing.assert_close(value, out[:, channel], rtol=1e-10, atol=1e-12)
    rule = gamma if vit_block in twins else METHODS[method]  # on a transformer the gamma rules, whatever the method
    begun = lambda activation: started(activation, channel, method)  # noqa: E731
    for layer, expected in read_by_hand(network, twins, x, begun, rule).items():
        assert expected.abs().sum() > 0, layer
        torch.testing.assert_close(maps[layer], expected, rtol=1e-8, atol=1e-10, msg=layer)


def transposed(module: nn.Module, x: Tensor, relevance: Tensor) -> Tensor:
    """The z+ rule for inputs that are nowhere negative, by a transposed convolution: as large as whole networks are."""
    assert isinstance(module, nn.Conv2d)
    assert x.amin() >= 0
    up = module.weight.clamp(min=0)
    share = relevance / (F.conv2d(x, up, None, module.stride, module.padding) + EPSILON)
    reached = [
        (many - 1) * step - 2 * around + kernel
        for many, step, around, kernel in zip(
            share.shape[2:], module.stride, module.padding, module.kernel_size, strict=True
        )
    ]
    rest = [side - end for side, end in zip(x.shape[2:], reached, strict=True)]
    return x * F.conv_transpose2d(share, up, None, module.stride, module.padding, rest)  # type: ignore[arg-type]


def resnet_by_hand(network: Any, x: Tensor, target: str, channel: int) -> dict[str, Tensor]:
    """Relevance at the stem and at each stage below a block, from the channel's activation."""
    stage, _, last = target.partition(".")
    before = network.bn1(network.conv1(x)).relu()
    inputs = {"maxpool": network.maxpool(before)}
    for name in ("layer1", "layer2", "layer3", "layer4")[: int(stage[-1])]:
        for number, block in enumerate(getattr(network, name)):
            if name != stage or not last or number <= int(last):
                inputs[f"{name}.{number}"] = block(list(inputs.values())[-1])
    names, values = list(inputs), list(inputs.values())
    relevance = torch.zeros_like(values[-1])
    relevance[:, channel] = values[-1][:, channel]
    maps = {names[-1]: relevance}
    for below, name in zip(reversed(range(len(names) - 1)), reversed(names), strict=False):
        block = network.get_submodule(name)
        rule = bottleneck if hasattr(block, "conv3") else basic_block
        relevance = rule(block, values[below], relevance, transposed)
        maps[names[below]] = relevance
    return {**maps, "conv1": pooled_stem(before, relevance)}


def pooled_stem(before: Tensor, relevance: Tensor) -> Tensor:
    """What lies under the maximum, by averages of 2 x 2 without overlap."""
    share = relevance / (F.avg_pool2d(before, 2) + EPSILON)
    return before * share.repeat_interleave(2, 2).repeat_interleave(2, 3) / 4


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize(
    ("target", "layers"),
    [
        ("layer2.0", ["conv1", "maxpool", "layer1.0", "layer1.1"]),
        ("layer3", ["conv1", "layer2.0", "layer2.1"]),
        ("layer4.0", ["conv1", "layer1.1", "layer3.0"]),
    ],
)
@torch.no_grad()
def test_relevance_of_whole_resnets_is_that_written_out_by_hand(name: str, target: str, layers: list[str]) -> None:
    torch.manual_seed(5)
    theirs = getattr(torchvision.models, name)(weights=None).double().eval().requires_grad_(False)
    _unsettled(theirs)
    ours = timm.create_model(name).double().eval().requires_grad_(False)
    ours.load_state_dict(theirs.state_dict())
    x = random(2, 3, 64, 64, seed=6)
    read = strongest(theirs, target, x)
    channel = int(read.vectors[0].argmax())
    expected = resnet_by_hand(theirs, x, target, channel)
    for network in (theirs, ours):
        _, maps, _ = activations_and_relevance(network, x, layers, read, "lrp")
        for layer in layers:
            assert expected[layer].abs().sum() > 0
            torch.testing.assert_close(maps[layer], expected[layer], rtol=1e-8, atol=1e-10, msg=layer)


def strongest(network: nn.Module, target: str, x: Tensor) -> Readout:
    """The read-out of the layer's most active channel."""
    found: list[Tensor] = []
    handle = network.get_submodule(target).register_forward_hook(lambda _m, _x, out: found.append(out))
    network(x)
    handle.remove()
    values = found[0].flatten(2)
    return readout([Target("channel", most_active(values), target)] * len(x), values.shape[1])
