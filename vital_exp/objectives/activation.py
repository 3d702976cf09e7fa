"""What activation maximisation maximises: read-outs, their cosine-weighted form, squared activations.

Formulas and sources: docs/methods/objectives.md.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vital_exp.objectives.distances import gram_matrix
from vital_exp.targets.readout import Readout

# Lucid's: added to each norm of a cosine, and the least cosine, so that a picture that points away can turn around.
COSINE_EPSILON = 1e-4
LEAST_COSINE = 0.1
GRAM_EPSILON = 1e-5  # Lucid's: the least norm by which a Gram matrix is divided


def read_activation(activation: Tensor, readout: Readout, cosine_power: float = 0.0) -> Tensor:
    """Return the mean over positions of dot * max(0.1, cos)^p, (N,), where a target reads its layer.

    dot is the read-out of a position and cos that of the angle between its channels and the target's vector (Lucid's
    direction objective). p = 0 is the mean read-out: a channel's mean, a neuron's activation, a class's logit.

    Args:
        activation: (N, C, ...) of the layer.
        readout: what each picture's target reads.
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
    """Return the mean squared activation (N,) of (N, C, ...): what DeepDream maximises (Mordvintsev et al. 2015).

    Examples:
        >>> import torch
        >>> from vital_exp.objectives.activation import mean_square
        >>> mean_square(torch.tensor([[[1.0, 3.0]]]))
        tensor([5.])
    """
    return activation.flatten(1).square().mean(dim=1)


def dot_cosine(activation: Tensor, given: Tensor, cosine_power: float = 0.0) -> Tensor:
    """Return dot * max(0.1, cos)^p, (N,), of whole activations (N, C, ...): Lucid's caricature objective.

    Lucid's own notebook divides by one norm only; here cos is the cosine.

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
    """Return ||a - a0||^2 / ||a0||^2, (N,), of activations (N, C, ...) (Mahendran and Vedaldi 2015).

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
    """Return the mean over positions of ||a(p) - a0(p)||, (N,), of activations (N, C, ...): accentuation's."""
    distances: Tensor = (activation.flatten(2) - given.flatten(2)).norm(dim=1).mean(dim=1)
    return distances


def gram_cosines(activation: Tensor) -> Tensor:
    """Return the cosine of the Gram matrices of each pair of pictures, (N, N), for activations (N, C, ...).

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
