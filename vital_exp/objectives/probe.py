"""A linear probe: a logistic regression on a layer's activations that recognises images of a theme."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Penalty of the squared weights on standardised activations (ours); without it, a dozen images do not determine the
# weights of 512 channels.
RIDGE = 0.01
NEWTON_STEPS = 50
TOLERANCE = 1e-10  # Newton's method ends when no weight changes by more


@dataclass(frozen=True)
class Probe:
    """A direction that separates images of a theme from other images.

    Attributes:
        weights: (C,), a vector of length 1, for activations that are not standardised.
        separation: share of held-out pairs, of one image of the theme and one other image, in which the image of the
            theme has the larger value. Probes of both halves of the images are tested on the other half. Chance is 0.5.
    """

    weights: Tensor
    separation: float


def fit_probe(theme: Tensor, others: Tensor) -> Probe:
    """Return the probe for activations (n, C) of a theme's images and (m, C) of other images; n and m are at least 2.

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
    """Return the weights (C,), float64, of a logistic regression with a ridge penalty.

    Minimises the mean of log(1 + exp(-y (w z + b))), in which both groups of images count one half, plus
    ridge / 2 ||w||^2. z are the activations, standardised per channel. The returned weights are for activations that
    are not standardised. Constant channels have weight 0.

    Args:
        theme: (n, C), y = 1.
        others: (m, C), y = -1.
        ridge: factor of the penalty.
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
    """Return the step (C + 1,) that Newton's method subtracts from the solution, scaled to at most 1 per weight."""
    chance = (features @ solution).sigmoid()
    gradient = features.mT @ (share * (chance - wanted)) + penalty * solution
    curvature = features.mT @ (features * (share * chance * (1 - chance))[:, None]) + penalty.diag()
    curvature = curvature + 1e-12 * torch.eye(len(penalty), dtype=curvature.dtype)
    step: Tensor = torch.linalg.solve(curvature, gradient)
    return step / step.abs().max().clamp(min=1)


def _ordered(theme: Tensor, others: Tensor) -> float:
    """Return the share of pairs in which the theme's value is larger; ties count half."""
    difference = theme[:, None] - others[None]
    return float(((difference > 0).double() + 0.5 * (difference == 0)).mean())
