"""The decorrelated colour space of Fourier and MACO pictures (Lucid; docs/methods/images.md)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

# The square root of the colour covariance of ImageNet's images, from Lucid.
COLOUR_CORRELATION = ((0.26, 0.09, 0.02), (0.27, 0.00, -0.05), (0.27, -0.09, 0.03))
# Distance from 0 and 1 that a picture is clamped to, so that its logits are finite.
LOGIT_MARGIN = 1e-3
# Least eigenvalue of a covariance, as a share of the largest: linearly dependent channels have eigenvalues of 0, and
# the matrix must be invertible.
LEAST_SHARE = 1e-6
# Areas along each side of a picture; the slope of the sigmoid is averaged over each area (benchmarks/results/masks.md).
AREAS = 12
SAMPLES = 8  # pixels read along each side of an area, at least; more pixels cost time and hardly change the average


def colour_matrix(channels: int = 3) -> Tensor:
    """Return the (C, C) matrix from decorrelated to natural colours, float32.

    For RGB: Lucid's matrix, divided by its largest column norm. For other channels: the identity;
    :func:`covariance_root` returns a matrix for a measured covariance.

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
    """Return the (C, C) matrix from decorrelated to natural channels for a measured covariance (C, C), float32.

    The matrix is the square root U sqrt(S) of the covariance U S U^T, divided by its largest column norm. Lucid's
    matrix is this root for the colours of ImageNet. The sign of each column makes its sum positive.
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
    """Return every k-th pixel of pictures (N, C, H, W), as a view; large enough areas keep 8 pixels along each side."""
    every = max(1, min(pictures.shape[-2:]) // (AREAS * SAMPLES))
    return pictures[..., ::every, ::every]


def through_sigmoid(pictures: Tensor, gradient: Tensor) -> Tensor:
    """Return sqrt(s) g, (N, C, H, W), for a gradient g in pixels that a sigmoid made: less where the sigmoid is flat.

    s is the slope of the sigmoid relative to its largest, 4 x (1 - x) for a pixel x, averaged over colours and over
    areas of a twelfth of the side. The gradient in the logits is s g; sqrt(s) g is the geometric mean of g and s g, in
    the units of g. With s g, or with the slope of single pixels, a map would lose the white parts of an object together
    with a black background.

    Args:
        pictures: (N, C, h, w) in [0, 1], the output of the sigmoid: all pixels, or a sample of them.
        gradient: g, (N, C, H, W).
    """
    slope = (4 * pictures * (1 - pictures)).clamp(min=0).mean(dim=1, keepdim=True)  # (N, 1, h, w)
    areas = functional.adaptive_avg_pool2d(slope, AREAS)
    around = functional.interpolate(areas, gradient.shape[-2:], mode="bilinear", align_corners=False)
    return gradient * around.sqrt()
