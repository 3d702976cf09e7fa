"""Image priors: smoothness and size of the pixels in the network's normalised space (docs/methods/objectives.md)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from vital_exp.values import one_of

ORDERS = ("l1", "l2")
# Lucid's boundary penalty: the side of its blur in pixels, and the factor of the squared distance from the colour.
BLUR_SIDE = 5
COLOUR_FACTOR = 0.8


def total_variation(x: Tensor, order: str = "l2") -> Tensor:
    """Return the total variation of each picture, (N,).

    The differences are those to the right, downwards and along both diagonals. ``"l2"`` sums their four Frobenius norms
    (neither squared nor averaged), ``"l1"`` their four mean absolute values.

    Args:
        x: (N, C, H, W) pictures.
        order: ``"l1"`` or ``"l2"``.

    Raises:
        UsageError: another order.

    Examples:
        >>> import torch
        >>> from vital_exp.objectives.priors import total_variation
        >>> step = torch.zeros(1, 1, 2, 2)
        >>> step[..., 1] = 1.0  # black beside white
        >>> total_variation(step)  # sqrt(2) to the right, 0 downwards, 1 along each diagonal
        tensor([3.4142])
        >>> total_variation(step, "l1")
        tensor([3.])
    """
    one_of("objective.total_variation.order", order, ORDERS)
    differences = (
        x[:, :, :, :-1] - x[:, :, :, 1:],
        x[:, :, :-1, :] - x[:, :, 1:, :],
        x[:, :, 1:, :-1] - x[:, :, :-1, 1:],
        x[:, :, :-1, :-1] - x[:, :, 1:, 1:],
    )
    sizes = (d.abs().mean(dim=(1, 2, 3)) if order == "l1" else d.flatten(1).norm(dim=1) for d in differences)
    return sum(sizes, start=x.new_zeros(len(x)))


def l2_norm(x: Tensor) -> Tensor:
    """Return the Frobenius norm of each picture (N, C, H, W): (N,).

    Examples:
        >>> import torch
        >>> from vital_exp.objectives.priors import l2_norm
        >>> l2_norm(torch.tensor([[[[3.0, 4.0]]]]))
        tensor([5.])
    """
    norms: Tensor = x.flatten(1).norm(dim=1)
    return norms


def l1_norm(x: Tensor) -> Tensor:
    """Return the sum of absolute values of each picture (N, C, H, W): (N,)."""
    return x.flatten(1).abs().sum(dim=1)


def high_frequency(x: Tensor, cutoff: float) -> Tensor:
    """Return the mean square of each picture's components above a frequency, (N,).

    By Parseval's theorem this is the sum of |FFT|^2 over the frequencies above the cutoff, divided by C (H W)^2.

    Args:
        x: (N, C, H, W) pictures.
        cutoff: in cycles per pixel; the highest frequency along an axis is 0.5.

    Examples:
        >>> import torch
        >>> from vital_exp.objectives.priors import high_frequency
        >>> stripes = torch.tensor([1.0, -1.0]).repeat(4).expand(1, 1, 8, 8)  # a period of two pixels
        >>> high_frequency(stripes, 0.25), high_frequency(torch.ones(1, 1, 8, 8), 0.25)
        (tensor([1.]), tensor([0.]))
    """
    x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    height, width = x.shape[-2:]
    rows = torch.fft.fftfreq(height, device=x.device, dtype=x.dtype)[:, None]
    columns = torch.fft.rfftfreq(width, device=x.device, dtype=x.dtype)
    kept = torch.hypot(rows, columns) > cutoff  # (H, W // 2 + 1)
    fine = torch.fft.irfft2(torch.fft.rfft2(x) * kept, s=(height, width))
    power: Tensor = fine.square().mean(dim=(1, 2, 3))
    return power


def boundary_complexity(x: Tensor, width: int, colour: float) -> Tensor:
    """Return Lucid's boundary penalty of each picture, (N,).

    The sum over the frame of (blur(x) - x)^2 + 0.8 (x - colour)^2. The blur is a weighted mean over 5x5 pixels, in
    which the outer pixels count half and pixels outside the picture do not count.

    Args:
        x: (N, C, H, W) pictures in [0, 1].
        width: width of the frame in pixels.
        colour: grey value that the frame is drawn to, in [0, 1].
    """
    frame = x.new_ones(x.shape[-2:])
    frame[width : x.shape[-2] - width, width : x.shape[-1] - width] = 0
    complexity = (_blurred(x) - x).square() + COLOUR_FACTOR * (x - colour).square()
    return (complexity * frame).sum(dim=(1, 2, 3))


def _blurred(x: Tensor) -> Tensor:
    window = x.new_full((1, 1, BLUR_SIDE, BLUR_SIDE), 0.5)
    window[..., 1:-1, 1:-1] = 1
    channels = x.shape[1]
    sums = functional.conv2d(x, window.expand(channels, 1, -1, -1), padding=BLUR_SIDE // 2, groups=channels)
    return sums / functional.conv2d(torch.ones_like(x[:1, :1]), window, padding=BLUR_SIDE // 2)
