"""Standardisation to a given mean and spread, differentiable, in few passes over memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

EPSILON = 1e-4  # added to standard deviations, Horama
AXES = (1, 2, 3)


def moments_of(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of each picture's values (N, C, H, W), and their standard deviation + 1e-4: (N, 1, 1, 1) each."""
    return values.mean(dim=AXES, keepdim=True), values.std(dim=AXES, keepdim=True) + EPSILON


def standardised(values: Tensor, mean: float | Tensor = 0.0, spread: float | Tensor = 1.0) -> Tensor:
    """Return ``mean + spread * (values - m) / (s + 1e-4)`` with each picture's own mean m and standard deviation s.

    The formula is that of MACO in Horama. Its backward pass is written out because memory limits the speed for pictures
    of 1,280 px, and autograd would pass over memory far more often.

    Args:
        values: (N, C, H, W).
        mean, spread: constants that broadcast to (N, 1, 1, 1).
    """
    result: Tensor = _Standardised.apply(values, mean, spread)
    return result


class _Standardised(torch.autograd.Function):
    """Forward: one multiplication and addition. Backward: two sums, then two multiplications and additions."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, mean: float | Tensor, spread: float | Tensor) -> Tensor:
        own, std = values.mean(dim=AXES, keepdim=True), values.std(dim=AXES, keepdim=True)
        scale = spread / (std + EPSILON)
        result = torch.addcmul(mean - own * scale, values, scale)
        ctx.constants = mean, spread
        ctx.save_for_backward(result, std)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """With y the standardised values: dx = spread / (s + e) (g - mean(g) - y <g, y> (s + e) / ((n - 1) s))."""
        (result, std), (mean, spread) = ctx.saved_tensors, ctx.constants
        count = result[0].numel()
        total = gradient.sum(dim=AXES, keepdim=True)
        along = torch.linalg.vecdot(gradient.flatten(1), result.flatten(1)).view_as(total)
        along = (along - mean * total) / spread  # <g, y>
        scale = spread / (std + EPSILON)
        slope = (along / ((count - 1) * std)).masked_fill_(std == 0, 0)  # equal values: torch.std has the gradient 0
        found = torch.addcmul(slope * mean - total / count * scale, gradient, scale)
        return found.addcmul_(result, -slope), None, None
