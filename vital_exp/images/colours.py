"""The decorrelated colour space of Fourier and MACO pictures (Lucid; docs/methods/images.md)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

# The square root of the colour covariance of ImageNet's images, from Lucid.
COLOUR_CORRELATION = ((0.26, 0.09, 0.02), (0.27, 0.00, -0.05), (0.27, -0.09, 0.03))
# A picture is kept this far from 0 and 1 when it is turned back into what a sigmoid made it from.
LOGIT_MARGIN = 1e-3
# Of the largest variance: channels that say the same leave directions without any, and the matrix must be invertible.
LEAST_SHARE = 1e-6
# Along each side of a picture: over one of them the slope of the sigmoid is averaged (benchmarks/results/masks.md).
AREAS = 12
SAMPLES = 8  # along each side of an area, at least: all pixels of a large picture would cost more than they tell


def colour_matrix(channels: int = 3) -> Tensor:
    """Return the (C, C) matrix from decorrelated to natural colours, float32.

    For RGB it is Lucid's, divided by its largest column norm; for other channels the identity, unless their covariance
    is measured (:func:`covariance_root`).

    Examples:
        >>> from vital_exp.images.colours import colour_matrix
        >>> matrix = colour_matrix()
        >>> matrix.norm(dim=0).max().round(decimals=4)
        tensor(1.)
        >>> colour_matrix(1)
        tensor([[1.]])
    """
    if channels != 3:
        return torch.eye(channels)
    matrix = torch.tensor(COLOUR_CORRELATION, dtype=torch.float64)
    scaled: Tensor = (matrix / matrix.norm(dim=0).max()).float()
    return scaled


def covariance_root(covariance: Tensor) -> Tensor:
    """Return the (C, C) matrix from decorrelated to natural channels of a covariance, float32.

    A square root U sqrt(S) of the covariance U S U^T, divided by its largest column norm: what Lucid's is of ImageNet's
    colours. Each column has the sign that makes its sum positive.
    """
    values, vectors = torch.linalg.eigh(covariance.double())
    root = vectors.flip(1) * values.flip(0).clamp(min=float(values.max()) * LEAST_SHARE).sqrt()
    root = root * torch.where(root.sum(dim=0) < 0, -1.0, 1.0)
    scaled: Tensor = (root / root.norm(dim=0).max().clamp(min=torch.finfo(torch.float64).tiny)).float()
    return scaled


def mixed(pictures: Tensor, matrix: Tensor) -> Tensor:
    """Apply a (C, C) matrix to the colours of pictures (N, C, H, W)."""
    return torch.einsum("nchw,dc->ndhw", pictures, matrix)


def decorrelated_logits(pictures: Tensor, matrix: Tensor) -> Tensor:
    """Invert ``sigmoid(mixed(x, matrix))`` for pictures (N, C, H, W) in [0, 1], clamped to [0.001, 0.999].

    Examples:
        >>> import torch
        >>> from vital_exp.images.colours import colour_matrix, decorrelated_logits, mixed
        >>> picture = torch.tensor([0.2, 0.5, 0.8]).view(1, 3, 1, 1)
        >>> back = mixed(decorrelated_logits(picture, colour_matrix()), colour_matrix()).sigmoid()
        >>> torch.allclose(back, picture)
        True
    """
    return mixed(pictures.clamp(LOGIT_MARGIN, 1 - LOGIT_MARGIN).logit(), torch.linalg.inv(matrix))


def sampled(pictures: Tensor) -> Tensor:
    """Return every k-th pixel of large pictures (N, C, H, W), several in each direction of an area; it is a view."""
    every = max(1, min(pictures.shape[-2:]) // (AREAS * SAMPLES))
    return pictures[..., ::every, ::every]


def through_sigmoid(pictures: Tensor, gradient: Tensor) -> Tensor:
    """Return a gradient in pictures that are sigmoids times the root of the sigmoid's slope around.

    The slope s is 4 x (1 - x), 1 at x = 1/2, its mean over colours and over areas of a twelfth of the side. g is the
    gradient in the pixels and s g that in the logits; sqrt(s) g is their geometric mean, in the units of g. Pixel by
    pixel, or with s g, the white parts of an object would be lost as well as a black ground.

    Args:
        pictures: sigmoids in [0, 1], (N, C, h, w): the pictures, or a sample of their pixels.
        gradient: (N, C, H, W).
    """
    slope = (4 * pictures * (1 - pictures)).clamp(min=0).mean(dim=1, keepdim=True)  # (N, 1, h, w)
    areas = functional.adaptive_avg_pool2d(slope, AREAS)
    around = functional.interpolate(areas, gradient.shape[-2:], mode="bilinear", align_corners=False)
    return gradient * around.sqrt()
