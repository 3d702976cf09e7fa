"""Pictures as Fourier coefficients in a decorrelated colour space (Lucid; Olah et al. 2017; METHODS 3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vital_exp.images.parameterisation import Parameterisation
from vital_exp.images.randomness import RandomStreams
from vital_exp.models.network import Preprocessing

# The square root of the colour covariance of ImageNet's images, from Lucid (METHODS 3).
COLOUR_CORRELATION = ((0.26, 0.09, 0.02), (0.27, 0.00, -0.05), (0.27, -0.09, 0.03))
START_STD = 0.01  # of the coefficients, Lucid
SPATIAL_DIVISOR = 4.0  # Lucid: brings the start to a mild contrast
# RGB is kept this far from 0 and 1 when a picture is turned into coefficients: the logit of 0 is infinite.
LOGIT_MARGIN = 1e-3


class Fourier(Parameterisation):
    """Scaled half spectra, inverse transform, colours correlated as in natural images, then a sigmoid.

    Args:
        preprocessing: the network's.
        size: (height, width) of the pictures.
        streams: the random streams of the pictures, for the start.
        init: pictures to start from, (N, 3, H, W) normalised; clamped to RGB in [0.001, 0.999].
        decay: exponent of the frequency in the scale of its coefficient; 1 is Lucid's.
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
    ) -> None:
        super().__init__(preprocessing)
        self.size = size
        self.register_buffer("frequency_scale", frequency_scale(size, decay), persistent=False)
        self.register_buffer("colours", colour_matrix(), persistent=False)
        if init is None:
            start = START_STD * streams.normal((3, *self.frequency_scale.shape, 2), "start")
        else:
            self.to(init)
            start = self._coefficients(preprocessing.denormalise(init))
        self.coefficients = nn.Parameter(start)  # (N, 3, H, W // 2 + 1, 2), real and imaginary parts

    def forward(self) -> Tensor:
        """Return the pictures, (N, 3, H, W) RGB in (0, 1)."""
        spectrum = torch.view_as_complex(self.coefficients) * self.frequency_scale
        decorrelated = torch.fft.irfft2(spectrum, s=self.size) / SPATIAL_DIVISOR
        return torch.einsum("nchw,dc->ndhw", decorrelated, self.colours).sigmoid()

    def network_input(self) -> Tensor:
        """Return the pictures in the network's space, (N, 3, H, W)."""
        return self.preprocessing.normalise(self())

    def _coefficients(self, rgb: Tensor) -> Tensor:
        """Invert :meth:`forward`."""
        logits = rgb.clamp(LOGIT_MARGIN, 1 - LOGIT_MARGIN).logit()
        decorrelated = torch.einsum("nchw,dc->ndhw", logits, torch.linalg.inv(self.colours))
        spectrum = torch.fft.rfft2(decorrelated * SPATIAL_DIVISOR) / self.frequency_scale
        return torch.view_as_real(spectrum).contiguous()


def frequency_scale(size: tuple[int, int], decay: float = 1.0) -> Tensor:
    """Return sqrt(w h) / max(f, 1 / max(w, h)) ** decay for the half spectrum, (H, W // 2 + 1), f in cycles per pixel.

    For decay 1 this is Lucid's; another decay keeps the scale of the lowest frequency and changes the slope.
    """
    height, width = size
    lowest = 1.0 / max(height, width)
    frequencies = torch.hypot(
        torch.fft.fftfreq(height, dtype=torch.float64)[:, None], torch.fft.rfftfreq(width, dtype=torch.float64)[None]
    ).clamp(min=lowest)
    scale = (height * width) ** 0.5 / lowest * (lowest / frequencies) ** decay
    return scale.float()


def colour_matrix() -> Tensor:
    """Return the (3, 3) matrix from decorrelated to natural colours, divided by its largest column norm."""
    matrix = torch.tensor(COLOUR_CORRELATION, dtype=torch.float64)
    return (matrix / matrix.norm(dim=0).max()).float()
