"""Relevance rules of single operations (docs/relevance.md; AttnLRP, Achtibat et al., ICML 2024).

Each function computes an operation as the network does, and gives the result a backward pass that distributes
relevance: the gradient of the output stands for the output's relevance, the gradient of an input for the input's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

EPSILON = 1e-5  # of every division, published
# AttnLRP's gammas for vision transformers: additional weight of contributions that have the output's sign.
GAMMA_CONVOLUTION = 0.25
GAMMA_LINEAR = 0.05

# By the number of axes.
AVERAGES: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
ADAPTIVE_AVERAGES: dict[int, Callable[..., Tensor]] = {
    1: F.adaptive_avg_pool1d,
    2: F.adaptive_avg_pool2d,
    3: F.adaptive_avg_pool3d,
}

Backward = Callable[..., tuple[Tensor, ...]]


class _Ruled(torch.autograd.Function):
    """A function of the inputs with a given value and a given rule as its backward pass."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, rule: Backward, *inputs: Tensor) -> Tensor:
        ctx.rule = rule
        ctx.save_for_backward(*inputs)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, relevance: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, *ctx.rule(relevance, *ctx.saved_tensors))


def ruled(value: Tensor, rule: Backward, *inputs: Tensor) -> Tensor:
    """Return ``value`` with ``rule(relevance of value, *inputs)`` as its backward pass to ``inputs``."""
    result: Tensor = _Ruled.apply(value.detach(), rule, *inputs)
    return result


def stabilised(z: Tensor) -> Tensor:
    """Return z, moved away from zero by epsilon with its sign, as a divisor."""
    return z + torch.where(z < 0, -EPSILON, EPSILON).to(z)


def proportional(relevance: Tensor, x: Tensor, operation: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the relevance of x: its share of each output's relevance, as it contributed to a linear ``operation``."""
    with torch.enable_grad():
        variable = x.detach().requires_grad_()
        z = operation(variable)
        (flow,) = torch.autograd.grad(z, variable, relevance / stabilised(z.detach()))
    return x * flow


def identity(value: Tensor, x: Tensor) -> Tensor:
    """Norms, activation functions, dropout, scales: relevance passes unchanged, summed where x was broadcast."""
    return ruled(value, lambda relevance, x: (_fold(relevance, x),), x)


def positive(x: Tensor) -> Tensor:
    """Note that an activation is nowhere negative, so that no rule has to test it: a test on a GPU synchronises."""
    x._nowhere_negative = True  # type: ignore[attr-defined]
    return x


def is_positive(x: Tensor) -> bool:
    """Return whether an activation is marked as nowhere negative."""
    return getattr(x, "_nowhere_negative", False)


def z_plus(value: Tensor, x: Tensor, weight: Tensor, linear: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The z+ rule: only positive contributions x+ w+ + x- w- count, without the bias."""
    known = is_positive(x)

    def rule(relevance: Tensor, x: Tensor) -> tuple[Tensor]:
        up = _laid_out_as(weight, weight.clamp(min=0))
        if known or x.amin() >= 0:
            return (proportional(relevance, x, lambda v: linear(v, up)),)
        down = _laid_out_as(weight, weight.clamp(max=0))
        both = lambda v: linear(v.clamp(min=0), up) + linear(v.clamp(max=0), down)  # noqa: E731
        return (proportional(relevance, x, both),)

    return ruled(value, rule, x)


def _laid_out_as(weight: Tensor, values: Tensor) -> Tensor:
    """Return values with the strides of ``weight``: torch loses those of axes of length 1 (1 x 1 kernels)."""
    same = zip(weight.shape, weight.stride(), values.stride(), strict=True)
    if any(length > 1 and theirs != ours for length, theirs, ours in same):
        return values  # a weight that is a view of a larger or an expanded tensor has other strides than its copy
    return values.as_strided(weight.shape, weight.stride())


def gamma(
    value: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, linear: Callable[..., Tensor], amount: float
) -> Tensor:
    """The generalised gamma rule: contributions of the output's sign count more.

    The denominator is x+ (w + g w+) + x- (w + g w-) for outputs z >= 0, and x+ (w + g w-) + x- (w + g w+) for z < 0; a
    bias takes its share. Since x+ w+ + x- w- = (x w + |x| |w|) / 2, the denominator is
    (1 + g/2) z +- g/2 (|x| |w| + |b|): three products instead of eight.

    Args:
        value: x w + b, as part of a graph from ``x``.
        x: the input.
        weight: of the linear map.
        bias: its offset, if any.
        linear: maps input, weight and bias to the output.
        amount: g.
    """
    source, half = x, amount / 2

    def rule(relevance: Tensor, x: Tensor) -> tuple[Tensor]:
        z = value.detach()
        sign = torch.where(z >= 0, 1, -1).to(z) * half
        with torch.enable_grad():
            size = x.detach().abs().requires_grad_()
            most = linear(size, _laid_out_as(weight, weight.abs()), None if bias is None else bias.abs())
        scaled = relevance / stabilised((1 + half) * z + sign * most.detach())
        (flow,) = torch.autograd.grad(value, source, (1 + half) * scaled, retain_graph=True)
        (unsigned,) = torch.autograd.grad(most, size, sign * scaled)
        return (x * flow + size.detach() * unsigned,)

    return ruled(value, rule, x)


def pooled(value: Tensor, x: Tensor, average: Callable[[Tensor], Tensor]) -> Tensor:
    """Pooling, sums, means and maxima: relevance is shared in proportion to each value's part of the average."""
    return ruled(value, lambda relevance, x: (proportional(relevance, x, average),), x)


def average_like_maximum(x: Tensor, stride: int | Sequence[int] | None, size: torch.Size, axes: int) -> Tensor:
    """Return an average pooling with the output size of a maximum pooling: 2x2 for the usual 3x3 with stride 2.

    Args:
        x: an activation whose last ``axes`` axes are pooled.
        stride: stride of the maximum pooling; None for an adaptive pooling.
        size: shape of the output of the maximum pooling.
        axes: 1, 2 or 3.
    """
    if stride is not None:
        steps = (stride,) * axes if isinstance(stride, int) else tuple(stride)
        steps = steps * axes if len(steps) == 1 else steps
        if all(side // step == out for side, step, out in zip(x.shape[-axes:], steps, size[-axes:], strict=True)):
            return AVERAGES[axes](x, steps, steps)
    return ADAPTIVE_AVERAGES[axes](x, tuple(size[-axes:]))


def residual_sum(value: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """A sum of two activations: a gets the share |a| / (|a| + |b|) of the relevance, b the rest."""

    def rule(relevance: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        share = a.abs()
        total = (share + b.abs()).clamp_(min=torch.finfo(a.dtype).tiny)
        share = share.div_(total) if share.shape == total.shape else share / total
        to_a = share * relevance
        return _fold(to_a, a), _fold(relevance - to_a, b)

    return ruled(value, rule, a, b)


def _fold(relevance: Tensor, like: Tensor) -> Tensor:
    """Return the relevance summed over the axes along which ``like`` was broadcast."""
    return relevance.sum_to_size(like.shape)


def product(value: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Element-wise products of two activations: half of the relevance to each (AttnLRP, uniform rule)."""
    return ruled(value, lambda r, a, b: (_fold(r / 2, a), _fold(r / 2, b)), a, b)


def outer(value: Tensor, a: Tensor, b: Tensor, product: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Products without a sum, such as ``einsum("nchw,nc->nchw")``: half to each, or all to the only activation."""
    half = 1 / (a.requires_grad + b.requires_grad)

    def rule(relevance: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():  # a gradient with respect to ones sums relevance where a factor was repeated
            first, second = torch.ones_like(a).requires_grad_(), torch.ones_like(b).requires_grad_()
            (to_a,) = torch.autograd.grad(product(first, second.detach()), first, relevance * half)
            (to_b,) = torch.autograd.grad(product(first.detach(), second), second, relevance * half)
        return to_a, to_b

    return ruled(value, rule, a, b)


def matrix_product(value: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Epsilon rule for both factors, (..., n, m) and (..., m, k), half of the relevance each (AttnLRP).

    If one factor is constant, the other takes all of the relevance.
    """
    activations = a.requires_grad + b.requires_grad

    def rule(relevance: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        scaled = relevance / stabilised(activations * value.detach())
        return a * _fold(scaled @ b.mT, a), b * _fold(a.mT @ scaled, b)

    return ruled(value, rule, a, b)


def bilinear(value: Tensor, a: Tensor, b: Tensor, product: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The rule of matrix products for any operation that is linear in each of two factors."""

    def rule(relevance: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            first, second = a.detach().requires_grad_(), b.detach().requires_grad_()
            scaled = relevance / stabilised(2 * value.detach())
            to_a, to_b = torch.autograd.grad(product(first, second), (first, second), scaled)
        return a * to_a, b * to_b

    return ruled(value, rule, a, b)


def softmax(value: Tensor, x: Tensor, axis: int) -> Tensor:
    """The rule of softmax s, the first Taylor term at x: R_i = x_i (R_i - s_i sum_j R_j) (AttnLRP)."""
    shares = value.detach()

    def rule(relevance: Tensor, x: Tensor) -> tuple[Tensor]:
        # Masked logits are minus infinity and get no relevance.
        flow = relevance - shares * relevance.sum(dim=axis, keepdim=True)
        return (torch.where(x.isfinite(), x * flow, 0),)

    return ruled(value, rule, x)


def guided(value: Tensor, x: Tensor, derivative: Callable[[Tensor], Tensor]) -> Tensor:
    """Guided backpropagation through an activation function: only positive gradients pass."""
    return ruled(value, lambda gradient, x: (gradient.clamp(min=0) * derivative(x),), x)
