"""Pictures as the phases of a Fourier spectrum of fixed magnitude (MACO; Fel et al. 2023, arXiv 2306.06805).

Formulas: docs/methods/images.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vital_exp.errors import UsageError
from vital_exp.images.colours import colour_matrix, decorrelated_logits, mixed, sampled, through_sigmoid
from vital_exp.images.parameterisation import Parameterisation, by_picture
from vital_exp.images.randomness import RandomStreams
from vital_exp.images.spectrum import EMBEDDED, magnitude_for
from vital_exp.images.standardisation import moments_of, standardised
from vital_exp.models.network import Preprocessing
from vital_exp.values import interval


class Maco(Parameterisation):
    """irfft2(r e^{i phi}): only the phases phi are optimised, the magnitudes r are those of natural images.

    Per picture, inside the graph: phases are standardised, the spatial picture is standardised, its colours are
    correlated as in natural images, and a sigmoid brings it into range.

    Args:
        preprocessing: the network's.
        size: (height, width) of the pictures.
        streams: the random streams of the pictures; the phases start from N(0, 1), as published.
        init: pictures to start from, (N, C, H, W) normalised. Only their phases are used, not their magnitudes.
            Standardisation keeps the mean and the spread of these phases; phases from noise are brought to 0 and 1.
        magnitude: (C, H, W // 2 + 1), the path of a .npy or .safetensors file that holds one, or ``"embedded"``, the
            magnitude of images that code draws. A magnitude of another size is resampled.
        resample: how, ``"frequency"`` or ``"bilinear"``; see :func:`vital_exp.images.spectrum.resampled`.
        values_range: [low, high] of the network's input in its normalised space, the same for all channels, as in
            Horama and xplique; None for the network's valid range, which each channel has of its own.
        colours: (C, C) from decorrelated to natural channels; None: :func:`colour_matrix`.
    """

    magnitude: Tensor
    colours: Tensor
    mean: Tensor
    spread: Tensor

    def __init__(
        self,
        preprocessing: Preprocessing,
        size: tuple[int, int],
        streams: RandomStreams,
        init: Tensor | None = None,
        magnitude: str | Tensor = EMBEDDED,
        resample: str = "frequency",
        values_range: Sequence[float] | None = None,
        colours: Tensor | None = None,
    ) -> None:
        super().__init__(preprocessing)
        self.size = size
        self.values_range = None if values_range is None else _range(values_range)
        fixed = magnitude_for(magnitude, self.channels, size, resample)
        self.register_buffer("magnitude", fixed, persistent=False)  # (C, H, W // 2 + 1)
        self.register_buffer("colours", colour_matrix(self.channels) if colours is None else colours, persistent=False)
        if init is None:
            start, moments = streams.normal(fixed.shape, "start"), (torch.zeros(()), torch.ones(()))
        else:
            self.to(init)
            logits = decorrelated_logits(preprocessing.denormalise(init), self.colours)
            start = torch.fft.rfft2(logits).angle()
            moments = moments_of(start)
        self.register_buffer("mean", moments[0], persistent=False)
        self.register_buffer("spread", moments[1], persistent=False)
        self.phase = nn.Parameter(start)  # (N, C, H, W // 2 + 1) in radians

    def forward(self) -> Tensor:
        """Return the pictures, (N, C, H, W) RGB or grey in [0, 1]."""
        if self.values_range is None:
            return self._unit()
        return self.preprocessing.denormalise(self.network_input()).clamp(0, 1)

    def network_input(self) -> Tensor:
        """Return the pictures in the network's space, (N, C, H, W)."""
        return by_picture(self._input_of, *self._phases())

    def followed(self, pictures: Tensor, gradient: Tensor) -> Tensor:
        """Return the gradient, weaker where the sigmoid is flat; see :func:`through_sigmoid`."""
        low, high = self._range_of(pictures)
        return through_sigmoid((sampled(pictures) - low) / (high - low), gradient)

    def _unit(self) -> Tensor:
        """Return the pictures before they are scaled to the range of values, (N, C, H, W) in (0, 1)."""
        return by_picture(self._unit_of, *self._phases())

    def _phases(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the phases, and the mean and the spread that standardisation gives them, each with N entries."""
        each = (len(self.phase), 1, 1, 1)
        return self.phase, self.mean.expand(each), self.spread.expand(each)

    def _input_of(self, phase: Tensor, mean: Tensor, spread: Tensor) -> Tensor:
        unit = self._unit_of(phase, mean, spread)
        low, high = self._range_of(unit)
        return torch.addcmul(low, unit, high - low)

    def _range_of(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Return the lowest and the highest values of the network's input, on the pictures' device."""
        if self.values_range is None:
            return self.preprocessing.valid_range(pictures)
        low, high = pictures.new_tensor(self.values_range)
        return low, high

    def _unit_of(self, phase: Tensor, mean: Tensor, spread: Tensor) -> Tensor:
        spectrum = spectrum_of(self.magnitude, standardised(phase, mean, spread))
        spatial = standardised(torch.fft.irfft2(spectrum, s=self.size))
        return mixed(spatial, self.colours).sigmoid()


def spectrum_of(magnitude: Tensor, phase: Tensor) -> Tensor:
    """Return r e^{i phi}, complex (N, C, H, F), for phases phi and constant magnitudes r that broadcast to them."""
    spectrum: Tensor = _Polar.apply(magnitude, phase)
    return spectrum


class _Polar(torch.autograd.Function):
    """torch.polar for a constant magnitude, in half the time: cosine and sine are vectorised, torch.polar is not."""

    @staticmethod
    def forward(ctx: Any, magnitude: Tensor, phase: Tensor) -> Tensor:
        spectrum = torch.complex(magnitude * phase.cos(), magnitude * phase.sin())
        ctx.save_for_backward(spectrum)
        return spectrum

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        (spectrum,) = ctx.saved_tensors
        (real, imaginary), (along, across) = (torch.view_as_real(z).unbind(dim=-1) for z in (spectrum, gradient))
        return None, (real * across).addcmul_(imaginary, along, value=-1)


def _range(values: Sequence[float]) -> tuple[float, float]:
    key = "image.values_range"
    low, high = interval(key, values, allowed="[low, high], or null for the network's valid range")
    if low == high:
        raise UsageError(key, values, "[low, high], the lower number first")
    return low, high
