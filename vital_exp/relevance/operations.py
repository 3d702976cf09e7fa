"""Relevance rules of single operations (METHODS 1.3; AttnLRP, Achtibat et al. 2024).

Each function computes an operation as the network does, and gives it a backward pass that distributes relevance: what
arrives as the gradient of the output is the output's relevance, what leaves as the gradient of an input is the input's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

EPSILON = 1e-5  # of every division, published
# AttnLRP's gammas of vision transformers: how much more contributions of the output's sign count.
GAMMA_CONVOLUTION = 0.25
GAMMA_LINEAR = 0.05

Backward = Callable[..., tuple[Tensor, ...]]


class _Ruled(torch.autograd.Function):
    """A given value of the inputs whose backward pass is a given rule."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, rule: Backward, *inputs: Tensor) -> Tensor:
        ctx.rule = rule
        ctx.save_for_backward(*inputs)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, relevance: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, *ctx.rule(relevance, *ctx.saved_tensors))


def ruled(value: Tensor, rule: Backward, *inputs: Tensor) -> Tensor:
    """Return ``value`` with ``rule(relevance of value, *inputs)`` as the way back to ``inputs``."""
    result: Tensor = _Ruled.apply(value.detach(), rule, *inputs)
    return result


def stabilised(z: Tensor) -> Tensor:
    """Move z away from zero by epsilon, keeping its sign."""
    return z + torch.where(z < 0, -EPSILON, EPSILON).to(z)


def proportional(relevance: Tensor, x: Tensor, operation: Callable[[Tensor], Tensor]) -> Tensor:
    """Give each input the share of an output's relevance that it contributed through a linear ``operation``."""
    with torch.enable_grad():
        variable = x.detach().requires_grad_()
        z = operation(variable)
        (flow,) = torch.autograd.grad(z, variable, relevance / stabilised(z.detach()))
    return x * flow


def identity(value: Tensor, x: Tensor) -> Tensor:
    """Batch norm, layer norm, ReLU and its like, dropout, layer scale: relevance passes as it is."""
    return ruled(value, lambda relevance, _: (relevance,), x)


def z_plus(value: Tensor, x: Tensor, weight: Tensor, linear: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Positive contributions only: x+ w+ + x- w-, no bias; the same as x w+ for inputs that are nowhere negative."""

    def rule(relevance: Tensor, x: Tensor) -> tuple[Tensor]:
        positive = weight.clamp(min=0)
        if x.amin() >= 0:
            return (proportional(relevance, x, lambda v: linear(v, positive)),)
        negative = weight.clamp(max=0)
        both = lambda v: linear(v.clamp(min=0), positive) + linear(v.clamp(max=0), negative)  # noqa: E731
        return (proportional(relevance, x, both),)

    return ruled(value, rule, x)


def gamma(
    value: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, linear: Callable[..., Tensor], amount: float
) -> Tensor:
    """The epsilon rule (amount 0), or the generalised gamma rule: contributions of the output's sign count more.

    For outputs z >= 0 x+ (w + g w+) + x- (w + g w-), for z < 0 the other two; a bias takes its share.
    """

    def rule(relevance: Tensor, x: Tensor) -> tuple[Tensor]:
        if amount == 0:
            z = value.detach()
            return (_weighted(relevance / stabilised(z), x, lambda v: linear(v, weight, None)),)
        up, down = weight + amount * weight.clamp(min=0), weight + amount * weight.clamp(max=0)
        bias_up = None if bias is None else bias + amount * bias.clamp(min=0)
        bias_down = None if bias is None else bias + amount * bias.clamp(max=0)
        total = torch.zeros_like(x)
        for sign, (first, second, offset) in ((1, (up, down, bias_up)), (-1, (down, up, bias_down))):
            chosen = (
                torch.where(value.detach() >= 0, relevance, 0) if sign > 0 else torch.where(value < 0, relevance, 0)
            )
            total = total + _signed(chosen.detach(), x, first, second, offset, linear)
        return (total,)

    return ruled(value, rule, x)


def _weighted(scaled: Tensor, x: Tensor, operation: Callable[[Tensor], Tensor]) -> Tensor:
    with torch.enable_grad():
        variable = x.detach().requires_grad_()
        (flow,) = torch.autograd.grad(operation(variable), variable, scaled)
    return x * flow


def _signed(
    relevance: Tensor, x: Tensor, first: Tensor, second: Tensor, offset: Tensor | None, linear: Callable[..., Tensor]
) -> Tensor:
    """Distribute relevance over positive inputs by the first weights and over negative ones by the second."""
    with torch.enable_grad():
        variable = x.detach().requires_grad_()
        z = linear(variable.clamp(min=0), first, offset) + linear(variable.clamp(max=0), second, None)
        (flow,) = torch.autograd.grad(z, variable, relevance / stabilised(z.detach()))
    return x * flow


def pooled(value: Tensor, x: Tensor, average: Callable[[Tensor], Tensor]) -> Tensor:
    """Every pooling, the maximum too: proportional to the average-pooled activation."""
    return ruled(value, lambda relevance, x: (proportional(relevance, x, average),), x)


def average_like_maximum(x: Tensor, stride: int | tuple[int, int], size: torch.Size) -> Tensor:
    """Average pooling that stands in for a maximum with this stride and output size: 2x2 for the usual 3x3/2."""
    steps = (stride, stride) if isinstance(stride, int) else tuple(stride)
    if all(side // step == out for side, step, out in zip(x.shape[-2:], steps, size[-2:], strict=True)):
        return F.avg_pool2d(x, steps, steps)
    return F.adaptive_avg_pool2d(x, (size[-2], size[-1]))


def residual_sum(value: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """rho = |a| / (|a| + |b|) of the relevance goes to a, the rest to b."""

    def rule(relevance: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        total = (a.abs() + b.abs()).clamp(min=torch.finfo(a.dtype).tiny)
        rho = a.abs() / total
        return _fold(rho * relevance, a), _fold((1 - rho) * relevance, b)

    return ruled(value, rule, a, b)


def _fold(relevance: Tensor, like: Tensor) -> Tensor:
    """Sum over the axes along which an operand was broadcast."""
    return relevance.sum_to_size(like.shape)


def product(value: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Element-wise products of two activations: half each (AttnLRP, uniform rule)."""
    return ruled(value, lambda r, a, b: (_fold(r / 2, a), _fold(r / 2, b)), a, b)


def matrix_product(value: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Epsilon rule for both factors, each of which takes half of the relevance (AttnLRP)."""

    def rule(relevance: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            first, second = a.detach().requires_grad_(), b.detach().requires_grad_()
            z = first @ second
            scaled = relevance / stabilised(2 * z.detach())
            flow_a, flow_b = torch.autograd.grad(z, (first, second), scaled)
        return a * flow_a, b * flow_b

    return ruled(value, rule, a, b)


def softmax(value: Tensor, x: Tensor, axis: int) -> Tensor:
    """The first Taylor term at x: R_i = x_i (R_i - s_i sum_j R_j) (AttnLRP)."""
    shares = value.detach()

    def rule(relevance: Tensor, x: Tensor) -> tuple[Tensor]:
        # Masked logits are minus infinity and take nothing.
        flow = relevance - shares * relevance.sum(dim=axis, keepdim=True)
        return (torch.where(x.isfinite(), x * flow, 0),)

    return ruled(value, rule, x)


def guided(value: Tensor, x: Tensor, derivative: Callable[[Tensor], Tensor]) -> Tensor:
    """Guided backpropagation through an activation function: only positive gradients pass."""
    return ruled(value, lambda gradient, x: (gradient.clamp(min=0) * derivative(x),), x)
