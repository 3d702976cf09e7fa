"""Pictures as Fourier coefficients in a decorrelated colour space (Lucid; Olah et al., Distill 2017).

Formulas: docs/methods/images.md.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vital_exp.images.colours import colour_matrix, decorrelated_logits, mixed, sampled, through_sigmoid
from vital_exp.images.parameterisation import Parameterisation, by_picture
from vital_exp.images.randomness import RandomStreams
from vital_exp.models.network import Preprocessing
from vital_exp.values import number

START_STD = 0.01  # standard deviation of the coefficients at the start (Lucid)
SPATIAL_DIVISOR = 4.0  # gives the start a mild contrast (Lucid)


class Fourier(Parameterisation):
    """Fourier coefficients, scaled by frequency, transformed to pixels, with natural colour correlations and a sigmoid.

    Lucid multiplies by sqrt(w h), and its inverse transform divides by w h. Lucent has no such factor, and its
    transform is orthonormal. Both make the same pictures as this class.

    Args:
        preprocessing: the network's.
        size: (height, width) of the pictures.
        streams: the random streams of the pictures, for the start.
        init: pictures to start from, (N, C, H, W) normalised; clamped to RGB in [0.001, 0.999].
        decay: d, where a coefficient of frequency f is scaled by 1 / f^d; 1 is Lucid's.
        colours: (C, C) from decorrelated to natural channels; None: :func:`colour_matrix`.
    """

    frequency_scale: Tensor
    colours: Tensor

    def __init__(
        self,
        preprocessing: Preprocessing,
        size: tuple[int, int],
        streams: RandomStreams,
        init: Tensor | None = None,
        decay: float = 1.0,
        colours: Tensor | None = None,
    ) -> None:
        super().__init__(preprocessing)
        number("image.decay", decay, 0)
        self.size = size
        self.register_buffer("frequency_scale", frequency_scale(size, decay), persistent=False)
        self.register_buffer("colours", colour_matrix(self.channels) if colours is None else colours, persistent=False)
        if init is None:
            start = START_STD * streams.normal((self.channels, *self.frequency_scale.shape, 2), "start")
        else:
            self.to(init)
            start = self._coefficients(preprocessing.denormalise(init))
        self.coefficients = nn.Parameter(start)  # (N, C, H, W // 2 + 1, 2), real and imaginary parts

    def forward(self) -> Tensor:
        """Return the pictures, (N, C, H, W) RGB or grey in (0, 1)."""
        return by_picture(self._rgb, self.coefficients)

    def network_input(self) -> Tensor:
        """Return the pictures in the network's space, (N, C, H, W)."""
        return by_picture(lambda coefficients: self.preprocessing.normalise(self._rgb(coefficients)), self.coefficients)

    def smaller(self, size: tuple[int, int]) -> Tensor:
        """Return the pictures in the network's space at a smaller (height, width), (N, C, height, width).

        The coefficients are the same ones. Those of frequencies that the smaller size cannot show have no influence.
        """
        spectrum = torch.view_as_complex(self.coefficients) * self.frequency_scale
        shown = low_frequencies(spectrum * self._centred(size), size)
        share = size[0] * size[1] / (self.size[0] * self.size[1])  # the inverse transform divides by its own size
        return self.preprocessing.normalise(self._coloured(shown * share, size))

    def _centred(self, size: tuple[int, int]) -> Tensor:
        """Return the factors (H, W // 2 + 1) that move the pictures by the distance between the pixels' centres.

        The centre of a smaller picture's first pixel lies (H / h - 1) / 2 rows below that of the picture's own.
        """
        down, right = ((whole / small - 1) / 2 for whole, small in zip(self.size, size, strict=True))
        rows = torch.fft.fftfreq(self.size[0], dtype=torch.float64)[:, None]
        columns = torch.fft.rfftfreq(self.size[1], dtype=torch.float64)[None]
        angles = 2 * torch.pi * (rows * down + columns * right)
        return torch.polar(torch.ones_like(angles), angles).to(torch.complex64).to(self.frequency_scale.device)

    def followed(self, pictures: Tensor, gradient: Tensor) -> Tensor:
        """Return the gradient, weaker where the sigmoid is flat; see :func:`through_sigmoid`."""
        return through_sigmoid(self.preprocessing.denormalise(sampled(pictures)), gradient)

    def _rgb(self, coefficients: Tensor) -> Tensor:
        return self._coloured(torch.view_as_complex(coefficients) * self.frequency_scale, self.size)

    def _coloured(self, spectrum: Tensor, size: tuple[int, int]) -> Tensor:
        decorrelated = torch.fft.irfft2(spectrum, s=size) / SPATIAL_DIVISOR
        return mixed(decorrelated, self.colours).sigmoid()

    def _coefficients(self, rgb: Tensor) -> Tensor:
        """Invert :meth:`forward`."""
        decorrelated = decorrelated_logits(rgb, self.colours)
        spectrum = torch.fft.rfft2(decorrelated * SPATIAL_DIVISOR) / self.frequency_scale
        return torch.view_as_real(spectrum).contiguous()


def frequencies(size: tuple[int, int]) -> Tensor:
    """Return the frequency of each entry of a half spectrum in cycles per pixel, (H, W // 2 + 1), float64.

    Examples:
        >>> from vital_exp.images.fourier import frequencies
        >>> frequencies((4, 4))  # cycles per pixel, rows by columns
        tensor([[0.0000, 0.2500, 0.5000],
                [0.2500, 0.3536, 0.5590],
                [0.5000, 0.5590, 0.7071],
                [0.2500, 0.3536, 0.5590]], dtype=torch.float64)
    """
    rows = torch.fft.fftfreq(size[0], dtype=torch.float64)
    return torch.hypot(rows[:, None], torch.fft.rfftfreq(size[1], dtype=torch.float64)[None])


def low_frequencies(spectrum: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the entries of a half spectrum (..., H, W // 2 + 1) that a smaller (h, w) has, (..., h, w // 2 + 1).

    Examples:
        >>> import torch
        >>> from vital_exp.images.fourier import low_frequencies
        >>> rows = torch.fft.fftfreq(6, 1 / 6)[:, None].expand(6, 4)  # cycles per picture
        >>> low_frequencies(rows, (4, 4))[:, 0]
        tensor([ 0.,  1., -2., -1.])
    """
    height, width = size
    columns = spectrum[..., : width // 2 + 1]
    return torch.cat([columns[..., : (height + 1) // 2, :], columns[..., columns.shape[-2] - height // 2 :, :]], dim=-2)


def frequency_scale(size: tuple[int, int], decay: float = 1.0) -> Tensor:
    """Return sqrt(w h) / f0 * (f0 / max(f, f0)) ** decay for a half spectrum, (H, W // 2 + 1), f in cycles per pixel.

    f0 = 1 / max(w, h) is the lowest frequency. For decay 1 this is Lucid's scale, sqrt(w h) / max(f, f0); the scale of
    the lowest frequency is the same for every decay.

    Examples:
        >>> from vital_exp.images.fourier import frequency_scale
        >>> frequency_scale((4, 4))[0]  # frequencies 0, 1/4 and 1/2; 0 is scaled as the lowest one
        tensor([16., 16.,  8.])
    """
    height, width = size
    lowest = 1.0 / max(height, width)
    scale = (height * width) ** 0.5 / lowest * (lowest / frequencies(size).clamp(min=lowest)) ** decay
    single: Tensor = scale.float()
    return single
