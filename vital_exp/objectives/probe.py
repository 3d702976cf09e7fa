"""A linear probe: logistic regression of a layer's activations, told which images show a theme."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# On the standardised weights, per image (ours): with a dozen images of 512 channels a probe without it is arbitrary.
RIDGE = 0.01
NEWTON_STEPS = 50
TOLERANCE = 1e-10  # of the largest change of a weight


@dataclass(frozen=True)
class Probe:
    """A direction that tells images of a theme from others.

    Attributes:
        weights: (C,) of length 1, on the activations as they are.
        separation: share of pairs of a theme's and another image that a probe fitted to the other half of the images
            puts in the right order: 0.5 is chance, 1 perfect.
    """

    weights: Tensor
    separation: float


def fit_probe(theme: Tensor, others: Tensor) -> Probe:
    """Return the probe of activations (n, C) of a theme's images and (m, C) of others, both at least 2 images.

    Examples:
        >>> import torch
        >>> from vital_exp.objectives.probe import fit_probe
        >>> noise = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
        >>> probe = fit_probe(noise[:20] + torch.tensor([0.0, 5.0, 0.0]), noise[20:])
        >>> int(probe.weights.argmax()), probe.separation
        (1, 1.0)
    """
    theme, others = theme.double(), others.double()
    halves = [(theme[::2], others[::2]), (theme[1::2], others[1::2])]
    fitted = [logistic_weights(*half) for half in halves]
    right = [_ordered(t @ w, o @ w) for w, (t, o) in zip(fitted, reversed(halves), strict=True)]
    weights = logistic_weights(theme, others)
    length = weights.norm()
    return Probe((weights / length if length > 0 else weights).float(), float(sum(right) / len(right)))


def logistic_weights(theme: Tensor, others: Tensor, ridge: float = RIDGE) -> Tensor:
    """Return the weights (C,) on activations of a ridge logistic regression of standardised ones, float64.

    The minimum of the mean over both groups, each counting one half, of log(1 + exp(-y (w z + b))) plus
    ridge / 2 ||w||^2; z are the activations less their mean over their standard deviation. Channels that never change
    have weight 0.

    Args:
        theme: (n, C), y = 1.
        others: (m, C), y = -1.
        ridge: on the standardised weights.
    """
    values = torch.cat([theme, others])
    scale = values.std(dim=0, correction=0)
    standard = (values - values.mean(dim=0)) / scale.clamp(min=torch.finfo(values.dtype).tiny)
    standard = standard * (scale > 0)
    features = torch.cat([standard, torch.ones_like(standard[:, :1])], dim=1)
    wanted = torch.cat([torch.ones(len(theme)), torch.zeros(len(others))]).to(values)
    share = torch.where(wanted > 0, 0.5 / len(theme), 0.5 / max(1, len(others)))
    penalty = torch.full((features.shape[1],), ridge, dtype=values.dtype)
    penalty[-1] = 0  # the bias
    solution = torch.zeros_like(penalty)
    for _ in range(NEWTON_STEPS):
        step = _newton_step(features, wanted, share, penalty, solution)
        solution = solution - step
        if step.abs().max() < TOLERANCE:
            break
    return torch.where(scale > 0, solution[:-1] / scale.clamp(min=torch.finfo(values.dtype).tiny), 0.0)


def _newton_step(features: Tensor, wanted: Tensor, share: Tensor, penalty: Tensor, solution: Tensor) -> Tensor:
    """Return what Newton's method takes off the solution (C + 1,), at most 1 in each standardised weight."""
    chance = (features @ solution).sigmoid()
    gradient = features.mT @ (share * (chance - wanted)) + penalty * solution
    curvature = features.mT @ (features * (share * chance * (1 - chance))[:, None]) + penalty.diag()
    curvature = curvature + 1e-12 * torch.eye(len(penalty), dtype=curvature.dtype)
    step: Tensor = torch.linalg.solve(curvature, gradient)
    return step / step.abs().max().clamp(min=1)


def _ordered(theme: Tensor, others: Tensor) -> float:
    """Return the share of pairs in which the theme's value is the larger one; ties count half."""
    difference = theme[:, None] - others[None]
    return float(((difference > 0).double() + 0.5 * (difference == 0)).mean())
