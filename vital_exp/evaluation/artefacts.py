"""Artefacts of pictures that natural images lack: repeated patterns, and energy at high frequencies."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

# Share of the side: peaks of the autocorrelation nearer to its centre belong to the central lobe.
CENTRE = 1 / 16
# Cycles per pixel, half the Nyquist frequency. Natural images have little energy above: their power falls as 1 / f^2.
HIGH = 0.25
# High-frequency energy of white noise: the share of the unit square of frequencies outside the circle of radius HIGH.
WHITE_NOISE = 1 - math.pi * HIGH**2


def repetition(pictures: Tensor) -> Tensor:
    """Return the height of the largest off-centre peak of each picture's autocorrelation, (N,) in [0, 1].

    It is the circular autocorrelation of the grey picture minus its mean, scaled to 1 at the centre. A peak is at least
    as high as its eight neighbours, and at least 1/16 of the side (and 2 px) away from the centre. The result is 0
    where there is no positive peak.

    Args:
        pictures: (N, C, H, W) in [0, 1].

    Examples:
        >>> import torch
        >>> from vital_exp.evaluation.artefacts import repetition
        >>> tiles = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)).repeat(1, 1, 4, 4)
        >>> repetition(tiles)
        tensor([1.])
    """
    grey = pictures.float().mean(dim=1)  # (N, H, W)
    grey = grey - grey.mean(dim=(1, 2), keepdim=True)
    power = torch.fft.rfft2(grey).abs().square()
    correlation = torch.fft.irfft2(power, s=grey.shape[-2:])
    energy = correlation[:, :1, :1]
    correlation = torch.where(energy > torch.finfo(torch.float32).eps, correlation / energy.clamp(min=1e-12), 0)
    around = functional.max_pool2d(functional.pad(correlation[:, None], (1, 1, 1, 1), mode="circular"), 3, stride=1)
    peak = (correlation >= around[:, 0]) & ~_near_centre(*grey.shape[-2:]).to(grey.device)
    return correlation.where(peak, torch.zeros(())).amax(dim=(1, 2)).clamp(0, 1)


def _near_centre(height: int, width: int) -> Tensor:
    """Whether each circular shift, (H, W), belongs to the central lobe."""
    rows = torch.fft.fftfreq(height, 1 / height)[:, None]
    columns = torch.fft.fftfreq(width, 1 / width)[None]
    centre: Tensor = (rows.square() + columns.square()).sqrt() < max(2.0, CENTRE * min(height, width))
    return centre


def high_frequency(pictures: Tensor) -> Tensor:
    """Return the share of each picture's energy above 0.25 cycles per pixel, (N,) in [0, 1]; the mean does not count.

    A Hann window removes the jump at the border.

    Args:
        pictures: (N, C, H, W) in [0, 1].

    Examples:
        >>> import torch
        >>> from vital_exp.evaluation.artefacts import high_frequency
        >>> board = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).repeat(8, 8).expand(1, 3, 16, 16)  # a period of two pixels
        >>> high_frequency(board).round(decimals=2)
        tensor([1.])
    """
    height, width = pictures.shape[-2:]
    window = torch.hann_window(height, periodic=False)[:, None] * torch.hann_window(width, periodic=False)
    window = window.to(pictures.device)
    values = pictures.float()
    mean = (values * window).sum(dim=(2, 3), keepdim=True) / window.sum()
    power = torch.fft.fft2((values - mean) * window).abs().square().sum(dim=1)  # (N, H, W)
    frequency = torch.fft.fftfreq(height)[:, None].square() + torch.fft.fftfreq(width).square()
    high = (frequency.sqrt() > HIGH).to(power.device)
    total = power.sum(dim=(1, 2))
    share = (power * high).sum(dim=(1, 2)) / total.clamp(min=torch.finfo(torch.float32).tiny)
    return torch.where(total > torch.finfo(torch.float32).eps, share, torch.zeros_like(share))
