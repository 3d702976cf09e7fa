"""LRP of blocks written out by hand, from matrices, without a gradient: twins of relevance passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

EPSILON = 1e-5
GAMMA_CONVOLUTION, GAMMA_LINEAR = 0.25, 0.05
Array = np.ndarray
# Relevance of the input of a linear module, from module, input and relevance of the output.
LinearRule = Callable[[nn.Module, Tensor, Tensor], Tensor]
# The same of a block, by a rule for its linear modules.
BlockRule = Callable[[Any, Tensor, Tensor, LinearRule], Tensor]


def random(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def stabilised(z: Array) -> Array:
    """Move z away from zero."""
    return z + np.where(z < 0, -EPSILON, EPSILON)


def matrix(linear: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> Array:
    """The matrix (outputs, inputs) of a linear map of one image, from its action on every unit vector."""
    size = int(np.prod(shape))
    basis = torch.eye(size, dtype=torch.float64).reshape(size, *shape)
    return linear(basis).reshape(size, -1).T.numpy()


def z_plus_twin(weights: Array, x: Array, relevance: Array) -> Array:
    """x+ w+ + x- w- for dense weights (outputs, inputs), x (N, inputs), relevance (N, outputs)."""
    up, down, positive, negative = weights.clip(0), weights.clip(None, 0), x.clip(0), x.clip(None, 0)
    share = relevance / stabilised(positive @ up.T + negative @ down.T)
    return positive * (share @ up) + negative * (share @ down)


def gamma_twin(weights: Array, bias: Array, x: Array, relevance: Array, gamma: float) -> Array:
    """The generalised gamma rule: contributions of the output's sign count 1 + gamma, the others 1."""
    expected, out = np.zeros_like(x), x @ weights.T + bias
    for sign in (1, -1):
        own, other = (weights.clip(0), weights.clip(None, 0)) if sign > 0 else (weights.clip(None, 0), weights.clip(0))
        first, second = weights + gamma * own, weights + gamma * other
        shifted = bias + gamma * (bias.clip(0) if sign > 0 else bias.clip(None, 0))
        z = x.clip(0) @ first.T + x.clip(None, 0) @ second.T + shifted
        share = np.where((out >= 0) == (sign > 0), relevance, 0) / stabilised(z)
        expected += x.clip(0) * (share @ first) + x.clip(None, 0) * (share @ second)
    return expected


def proportional_twin(weights: Array, x: Array, relevance: Array) -> Array:
    """Shares of what each input contributes to a dense linear map."""
    return x * ((relevance / stabilised(x @ weights.T)) @ weights)


def dense(module: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> tuple[Array, Array]:
    """The matrix (outputs, inputs) and the offset (outputs,) of an affine map of one image."""
    with torch.no_grad():
        offset = module(torch.zeros(1, *shape, dtype=torch.float64))
        return matrix(lambda basis: module(basis) - offset, shape), offset.flatten().numpy()


def z_plus(module: nn.Module, x: Tensor, relevance: Tensor) -> Tensor:
    """The z+ rule of a convolution or a linear layer."""
    weights, _ = dense(module, tuple(x.shape[1:]))
    return torch.from_numpy(z_plus_twin(weights, x.flatten(1).numpy(), relevance.flatten(1).numpy())).view_as(x)


def gamma(module: nn.Module, x: Tensor, relevance: Tensor) -> Tensor:
    """AttnLRP's gamma rule of a convolution or a linear layer."""
    weights, bias = dense(module, tuple(x.shape[1:]))
    amount = GAMMA_CONVOLUTION if isinstance(module, nn.Conv2d) else GAMMA_LINEAR
    arriving = relevance.flatten(1).numpy()
    return torch.from_numpy(gamma_twin(weights, bias, x.flatten(1).numpy(), arriving, amount)).view_as(x)


def pooled(average: Callable[[Tensor], Tensor], x: Tensor, relevance: Tensor) -> Tensor:
    """Any pooling, by the average that stands for it."""
    weights, _ = dense(average, tuple(x.shape[1:]))
    return torch.from_numpy(proportional_twin(weights, x.flatten(1).numpy(), relevance.flatten(1).numpy())).view_as(x)


def shared(main: Tensor, shortcut: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
    """Relevance of the two summands of a residual block."""
    rho = main.abs() / (main.abs() + shortcut.abs()).clamp(min=torch.finfo(main.dtype).tiny)
    return rho * relevance, (1 - rho) * relevance


def chain(stages: list[tuple[nn.Module, nn.Module]], x: Tensor, relevance: Tensor, rule: LinearRule) -> Tensor:
    """Relevance of the input of linear modules in a row, each followed by what passes relevance unchanged."""
    inputs = []
    for linear, after in stages:
        inputs.append(x)
        x = after(linear(x))
    for (linear, _), given in zip(reversed(stages), reversed(inputs), strict=True):
        relevance = rule(linear, given, relevance)
    return relevance


def run(stages: list[tuple[nn.Module, nn.Module]], x: Tensor) -> Tensor:
    """The forward pass of :func:`chain`."""
    for linear, after in stages:
        x = after(linear(x))
    return x


def _residual(
    main: list[tuple[nn.Module, nn.Module]], block: Any, x: Tensor, relevance: Tensor, rule: LinearRule
) -> Tensor:
    shortcut = x if block.downsample is None else block.downsample(x)
    to_main, to_shortcut = shared(run(main, x), shortcut, relevance)
    if block.downsample is not None:
        to_shortcut = rule(block.downsample[0], x, to_shortcut)
    return chain(main, x, to_main, rule) + to_shortcut


def basic_block(block: Any, x: Tensor, relevance: Tensor, rule: LinearRule) -> Tensor:
    """A ResNet's block of two convolutions."""
    main = [(block.conv1, nn.Sequential(block.bn1, nn.ReLU())), (block.conv2, block.bn2)]
    return _residual(main, block, x, relevance, rule)


def bottleneck(block: Any, x: Tensor, relevance: Tensor, rule: LinearRule) -> Tensor:
    """A ResNet's block of three convolutions."""
    first, second = nn.Sequential(block.bn1, nn.ReLU()), nn.Sequential(block.bn2, nn.ReLU())
    main = [(block.conv1, first), (block.conv2, second), (block.conv3, block.bn3)]
    return _residual(main, block, x, relevance, rule)


def dense_block(block: Any, x: Tensor, relevance: Tensor, rule: LinearRule) -> Tensor:
    """A DenseNet's block: each layer reads all features before it, and adds its own."""
    widths, features = [x.shape[1]], [x]
    for layer in block.values():
        features.append(_dense_layer(layer, torch.cat(features, 1))[-1])
        widths.append(features[-1].shape[1])
    for number, layer in reversed(list(enumerate(block.values(), 1))):
        below, own = relevance.split([sum(widths[:number]), widths[number]], dim=1)
        first, second, _ = _dense_layer(layer, torch.cat(features[:number], 1))
        relevance = below + rule(layer.conv1, first, rule(layer.conv2, second, own))
    return relevance


def _dense_layer(layer: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The inputs of both convolutions, and the output."""
    first = layer.norm1(x).relu()
    second = layer.norm2(layer.conv1(first)).relu()
    return first, second, layer.conv2(second)


def transition(block: Any, x: Tensor, relevance: Tensor, rule: LinearRule) -> Tensor:
    """What lies between a DenseNet's blocks."""
    before = block.norm(x).relu()
    return rule(block.conv, before, pooled(block.pool, block.conv(before), relevance))


def inverted_residual(block: Any, x: Tensor, relevance: Tensor, rule: LinearRule) -> Tensor:
    """A MobileNetV2's block: expansion, depthwise convolution, linear bottleneck."""
    *activated, last, norm = block.conv
    main = [(stage[0], nn.Sequential(stage[1], nn.ReLU6())) for stage in activated]
    main = [*main, (last, norm)]
    if not block.use_res_connect:
        return chain(main, x, relevance, rule)
    to_main, to_shortcut = shared(run(main, x), x, relevance)
    return chain(main, x, to_main, rule) + to_shortcut


def squeeze_excitation(block: Any, x: Tensor, relevance: Tensor, rule: LinearRule) -> Tensor:
    """Channels scaled by a gate that reads their means: half of the relevance to each factor."""
    mean = x.mean((2, 3), keepdim=True)
    to_gate = relevance.sum((2, 3), keepdim=True) / 2
    gate = [(block.conv_reduce, block.act1), (block.conv_expand, nn.Identity())]
    to_mean = chain(gate, mean, to_gate, rule)
    return relevance / 2 + pooled(lambda v: v.mean((2, 3), keepdim=True), x, to_mean)


def convnext_block(block: Any, x: Tensor, relevance: Tensor, rule: LinearRule) -> Tensor:
    """A ConvNeXt's block: depthwise convolution, norm and two linear layers at each position."""
    mixed = block.norm(block.conv_dw(x).permute(0, 2, 3, 1))
    mlp = [(block.mlp.fc1, nn.GELU()), (block.mlp.fc2, nn.Identity())]
    main = (run(mlp, mixed) * block.gamma).permute(0, 3, 1, 2)
    to_main, to_shortcut = shared(main, x, relevance)
    to_mixed = chain(mlp, mixed, to_main.permute(0, 2, 3, 1), rule)
    return rule(block.conv_dw, x, to_mixed.permute(0, 3, 1, 2)) + to_shortcut


def vit_block(block: Any, x: Tensor, relevance: Tensor, rule: LinearRule) -> Tensor:
    """A vision transformer's block: self-attention and two linear layers, each beside a shortcut."""
    between = x + block.attn(block.norm1(x))
    mlp = [(block.mlp.fc1, nn.GELU()), (block.mlp.fc2, nn.Identity())]
    normed = block.norm2(between)
    to_main, to_shortcut = shared(run(mlp, normed), between, relevance)
    relevance = chain(mlp, normed, to_main, rule) + to_shortcut
    to_main, to_shortcut = shared(block.attn(block.norm1(x)), x, relevance)
    return _attention(block.attn, block.norm1(x), to_main, rule) + to_shortcut


def _attention(attention: Any, x: Tensor, relevance: Tensor, rule: LinearRule) -> Tensor:
    count, length, width = x.shape
    parts = attention.qkv(x).reshape(count, length, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4).numpy()
    mixed = torch.from_numpy(attended(*parts)).transpose(1, 2).reshape(x.shape)
    to_mixed = rule(attention.proj, mixed, relevance)
    arriving = to_mixed.reshape(count, length, attention.num_heads, -1).transpose(1, 2).numpy()
    to_parts = torch.from_numpy(np.stack(attention_twin(*parts, arriving)))  # (3, N, heads, T, D / heads)
    return rule(attention.qkv, x, to_parts.permute(1, 3, 0, 2, 4).reshape(count, length, 3 * width))


def attended(query: Array, key: Array, value: Array) -> Array:
    """Scaled dot-product attention."""
    return _shares(query, key) @ value


def _shares(query: Array, key: Array) -> Array:
    scores = query @ key.swapaxes(-1, -2) / np.sqrt(query.shape[-1])
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    return shares / shares.sum(-1, keepdims=True)  # type: ignore[no-any-return]


def attention_twin(query: Array, key: Array, value: Array, relevance: Array) -> tuple[Array, Array, Array]:
    """Relevance of queries, keys and values: Taylor softmax, half of a product's relevance to each factor."""
    scaled, shares = query / np.sqrt(query.shape[-1]), _shares(query, key)
    scores = scaled @ key.swapaxes(-1, -2)
    flow_out = relevance / stabilised(2 * (shares @ value))
    to_shares = shares * (flow_out @ value.swapaxes(-1, -2))
    to_value = value * (shares.swapaxes(-1, -2) @ flow_out)
    to_scores = scores * (to_shares - shares * to_shares.sum(-1, keepdims=True))
    flow_scores = to_scores / stabilised(2 * scores)
    return scaled * (flow_scores @ key), key * (flow_scores.swapaxes(-1, -2) @ scaled), to_value
