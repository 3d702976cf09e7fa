"""Functions of activations that terms maximise or compare: read-outs, cosine-weighted dot products, squares, distances.

Formulas and sources: docs/methods/objectives.md.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vital_exp.objectives.distances import gram_matrix
from vital_exp.targets.readout import Readout

COSINE_EPSILON = 1e-4  # added to each norm of a cosine (Lucid)
LEAST_COSINE = 0.1  # smaller cosines are raised to it, so that an opposite activation still has a gradient (Lucid)
GRAM_EPSILON = 1e-5  # the least norm that a Gram matrix is divided by (Lucid)


def read_activation(activation: Tensor, readout: Readout, cosine_power: float = 0.0) -> Tensor:
    """Return the mean of dot * max(0.1, cos)^p over the positions of the target, (N,) (Lucid's direction objective).

    At each position dot is the read-out, and cos the cosine between the activation and the target's vector. For p = 0
    this is the mean read-out: the mean of a channel, the activation of a neuron, the logit of a class.

    Args:
        activation: (N, C, ...) of the layer.
        readout: the read-out of each picture's target.
        cosine_power: p.
    """
    values = readout.map(activation)  # (N, P)
    if cosine_power:
        norms = activation.flatten(2).norm(dim=1)  # (N, P)
        target_norms = readout.vectors.to(activation).norm(dim=1, keepdim=True)  # (N, 1)
        cosine = values / (COSINE_EPSILON + norms) / (COSINE_EPSILON + target_norms)
        values = values * cosine.clamp(min=LEAST_COSINE) ** cosine_power
    mask = readout.mask(activation)
    return (values * mask).sum(dim=1) / mask.sum(dim=1)


def mean_square(activation: Tensor) -> Tensor:
    """Return the mean squared activation (N,) of activations (N, C, ...), as DeepDream (Mordvintsev et al. 2015).

    Examples:
        >>> import torch
        >>> from vital_exp.objectives.activation import mean_square
        >>> mean_square(torch.tensor([[[1.0, 3.0]]]))
        tensor([5.])
    """
    return activation.flatten(1).square().mean(dim=1)


def dot_cosine(activation: Tensor, given: Tensor, cosine_power: float = 0.0) -> Tensor:
    """Return dot * max(0.1, cos)^p, (N,), of two whole activations (N, C, ...): Lucid's caricature objective.

    Here cos is the cosine; Lucid's notebook divides by one norm only.

    Examples:
        >>> import torch
        >>> from vital_exp.objectives.activation import dot_cosine
        >>> a = torch.tensor([[[3.0], [4.0]]])
        >>> dot_cosine(a, a), dot_cosine(a, torch.tensor([[[4.0], [-3.0]]]))  # the square of the norm; at right angles
        (tensor([25.]), tensor([0.]))
    """
    ours, theirs = activation.flatten(1), given.flatten(1)
    dot = (ours * theirs).sum(dim=1)
    if not cosine_power:
        return dot
    norms = (COSINE_EPSILON + ours.norm(dim=1)) * (COSINE_EPSILON + theirs.norm(dim=1))
    weighted: Tensor = dot * (dot / norms).clamp(min=LEAST_COSINE) ** cosine_power
    return weighted


def relative_distance(activation: Tensor, given: Tensor) -> Tensor:
    """Return ||a - a0||^2 / ||a0||^2, (N,), of activations a and given a0, (N, C, ...) (Mahendran and Vedaldi 2015).

    Examples:
        >>> import torch
        >>> from vital_exp.objectives.activation import relative_distance
        >>> a = torch.tensor([[[3.0], [4.0]]])
        >>> relative_distance(0 * a, a), relative_distance(a, a)
        (tensor([1.]), tensor([0.]))
    """
    wanted = given.flatten(1)
    return (activation.flatten(1) - wanted).square().sum(dim=1) / wanted.square().sum(dim=1).clamp(min=COSINE_EPSILON)


def position_distance(activation: Tensor, given: Tensor) -> Tensor:
    """Return the mean of ||a(p) - a0(p)|| over positions p, (N,), of activations a and given a0, (N, C, ...)."""
    distances: Tensor = (activation.flatten(2) - given.flatten(2)).norm(dim=1).mean(dim=1)
    return distances


def gram_cosines(activation: Tensor) -> Tensor:
    """Return the cosine between the Gram matrices of each pair of pictures, (N, N), for activations (N, C, ...).

    Examples:
        >>> import torch
        >>> from vital_exp.objectives.activation import gram_cosines
        >>> a = torch.tensor([[[1.0, 2.0], [0.0, 0.0]], [[2.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [1.0, 1.0]]])
        >>> gram_cosines(a)  # the first two have the same channels, at other places
        tensor([[1., 1., 0.],
                [1., 1., 0.],
                [0., 0., 1.]])
    """
    grams = gram_matrix(activation.flatten(2)).flatten(1)  # (N, C * C)
    directions = grams / grams.norm(dim=1, keepdim=True).clamp(min=GRAM_EPSILON)
    with torch.autocast(directions.device.type, enabled=False):
        cosines: Tensor = directions @ directions.mT
        return cosines
