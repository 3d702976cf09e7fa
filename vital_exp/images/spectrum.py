"""The mean Fourier magnitude of natural images, which MACO keeps fixed: measured, read from a file, resampled."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file
from torch import Tensor
from torch.nn import functional

from vital_exp.errors import UsageError
from vital_exp.images.colours import colour_matrix, mixed
from vital_exp.images.fourier import frequencies
from vital_exp.models.network import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from vital_exp.values import one_of

EMBEDDED = "embedded"
EMBEDDED_FILE = Path(__file__).with_name("embedded_spectrum.safetensors")
TENSOR = "magnitude"  # its name in a safetensors file
RESAMPLINGS = ("frequency", "bilinear")


class SpectrumWarning(UserWarning):
    """A spectrum is not used quite as it is."""


def magnitudes(images: Tensor, own: Preprocessing | None = None, colours: Tensor | None = None) -> Tensor:
    """Return |rfft2| of images in decorrelated channels, (N, C, H, W // 2 + 1), not normalised; MACO wants its mean.

    Channels are standardised first, which decides the zero frequency: the published spectrum is of that kind. Only
    proportions matter.

    Args:
        images: (N, C, H, W) in [0, 1].
        own: whose mean and standard deviation; None: ImageNet's.
        colours: (C, C) from decorrelated to natural channels; None: :func:`colour_matrix`.
    """
    standardised = (own or Preprocessing(mean=IMAGENET_MEAN, std=IMAGENET_STD)).normalise(images)
    matrix = colour_matrix(images.shape[1]) if colours is None else colours
    magnitudes: Tensor = torch.fft.rfft2(mixed(standardised, torch.linalg.inv(matrix).to(images))).abs()
    return magnitudes


def load_magnitude(path: str, channels: int) -> Tensor:
    """Return a magnitude (C, H, W // 2 + 1), float32.

    Args:
        path: a .npy file, a .safetensors file with the tensor ``"magnitude"`` (or only one), or ``"embedded"``: that
            of the drawn images, whose first channel, the brightness, stands for each channel that is not RGB.
        channels: as many as the pictures have.

    Raises:
        UsageError: no such file, not a magnitude, or one of another number of channels.
    """
    if path == EMBEDDED:
        magnitude = load_file(EMBEDDED_FILE)[TENSOR].float()
        return magnitude if channels == len(magnitude) else magnitude[:1].expand(channels, -1, -1)
    magnitude = _read(path)
    if magnitude.ndim != 3 or min(magnitude.shape) < 2 - (magnitude.shape[0] == 1) or magnitude.is_complex():
        shape = "x".join(map(str, magnitude.shape))
        raise UsageError("image.magnitude", path, f"real numbers (channels, H, W // 2 + 1) are needed, it has {shape}")
    magnitude = magnitude.float()
    if len(magnitude) != channels:
        problem = f"it has {len(magnitude)} channels, and the network's pictures {channels}"
        raise UsageError("image.magnitude", path, problem)
    if not magnitude.isfinite().all() or magnitude.min() < 0 or magnitude.max() == 0:
        raise UsageError("image.magnitude", path, "magnitudes are finite, at least 0, and not all 0")
    return magnitude


def _read(path: str) -> Tensor:
    place = Path(str(path)).expanduser()
    if not place.is_file() or place.suffix not in (".npy", ".safetensors"):
        raise UsageError("image.magnitude", path, f"references, {EMBEDDED}, or a .npy or .safetensors file that exists")
    try:
        if place.suffix == ".npy":
            return torch.from_numpy(np.load(place, allow_pickle=False))
        tensors: Mapping[str, Tensor] = load(place.read_bytes())
    except (ValueError, TypeError, OSError, EOFError, SafetensorError) as error:
        raise UsageError("image.magnitude", path, f"not a readable file of numbers ({error})") from error
    if TENSOR not in tensors and len(tensors) != 1:
        raise UsageError("image.magnitude", path, f"no tensor {TENSOR} in it: {', '.join(tensors)}", tensors)
    return tensors[TENSOR] if TENSOR in tensors else next(iter(tensors.values()))


def magnitude_for(magnitude: str | Tensor, channels: int, size: tuple[int, int], resample: str = "frequency") -> Tensor:
    """Return a magnitude (C, H, W // 2 + 1), or that of a file as :func:`load_magnitude`, for pictures of a size.

    Warns with SpectrumWarning where a file of the user's is of another size.
    """
    one_of("image.resample", resample, RESAMPLINGS)
    if isinstance(magnitude, Tensor):
        return resampled(magnitude, size, resample)
    loaded = load_magnitude(magnitude, channels)
    own = picture_size(loaded)
    if own != size and magnitude != EMBEDDED:
        message = (
            f"image.magnitude={magnitude} is of {own[0]}x{own[1]} px: resampled ({resample}) for {size[0]}x{size[1]} px"
        )
        warnings.warn(message, SpectrumWarning, stacklevel=2)
    return resampled(loaded, size, resample)


def picture_size(magnitude: Tensor) -> tuple[int, int]:
    """Return the (height, width) of a magnitude's pictures, (C, H, W // 2 + 1): square if it can be, else even."""
    height, half = magnitude.shape[-2:]
    return height, height if height // 2 + 1 == half else 2 * (half - 1)


def resampled(magnitude: Tensor, size: tuple[int, int], how: str) -> Tensor:
    """Return a magnitude (C, H, W // 2 + 1) for pictures of another size.

    ``"bilinear"`` resizes it as if it were a picture, with antialiasing, as Horama does. ``"frequency"`` reads it at
    the new frequencies, in cycles per pixel: rows wrap around, magnitude times frequency is what is interpolated
    (nearly constant for natural images), below the lowest frequency it goes on as 1/f, and the zero frequency, the
    pictures' mean, keeps its proportion to the contrast.
    """
    own = picture_size(magnitude)
    if own == size:
        return magnitude
    if how == "bilinear":
        shape = (size[0], size[1] // 2 + 1)
        return functional.interpolate(magnitude[None], shape, mode="bilinear", align_corners=False, antialias=True)[0]
    flat = magnitude * _positive_frequencies(own)
    flat[:, 0, 0] = torch.stack([flat[:, 0, 1], flat[:, 1, 0], flat[:, -1, 0]]).mean(dim=0)
    rows = torch.fft.fftfreq(size[0], dtype=torch.float64) * own[0]
    columns = (torch.fft.rfftfreq(size[1], dtype=torch.float64) * own[1]).clamp(max=magnitude.shape[-1] - 1)
    read = _between_rows(_between_rows(flat, rows).transpose(1, 2), columns).transpose(1, 2)
    new = (read / _positive_frequencies(size)).contiguous()
    new[:, 0, 0] = magnitude[:, 0, 0] * (size[0] * size[1] / (own[0] * own[1])) ** 0.5
    return new


def _positive_frequencies(size: tuple[int, int]) -> Tensor:
    return frequencies(size).clamp(min=1 / max(size)).float()


def _between_rows(values: Tensor, places: Tensor) -> Tensor:
    """Return rows of (C, H, K) at places between them, linear and around the end: (C, len(places), K)."""
    lower = places.floor()
    share = (places - lower).float()[:, None]
    first, second = (row.long() % values.shape[1] for row in (lower, lower + 1))
    return (1 - share) * values[:, first] + share * values[:, second]
