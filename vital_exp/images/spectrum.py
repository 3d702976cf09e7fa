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
TENSOR = "magnitude"  # the name of the tensor in a safetensors file
RESAMPLINGS = ("frequency", "bilinear")


class SpectrumWarning(UserWarning):
    """A spectrum is used in a changed form, for instance resampled."""


def magnitudes(images: Tensor, own: Preprocessing | None = None, colours: Tensor | None = None) -> Tensor:
    """Return |rfft2| of images in decorrelated channels, (N, C, H, W // 2 + 1); MACO uses the mean over images.

    The channels are standardised first, as for the published spectrum; this decides the magnitude at frequency 0. Only
    the proportions of the magnitudes matter to MACO.

    Args:
        images: (N, C, H, W) in [0, 1].
        own: has the mean and the standard deviation to standardise with; None: ImageNet's.
        colours: (C, C) from decorrelated to natural channels; None: :func:`colour_matrix`.
    """
    standardised = (own or Preprocessing(mean=IMAGENET_MEAN, std=IMAGENET_STD)).normalise(images)
    matrix = colour_matrix(images.shape[1]) if colours is None else colours
    magnitudes: Tensor = torch.fft.rfft2(mixed(standardised, torch.linalg.inv(matrix).to(images))).abs()
    return magnitudes


def load_magnitude(path: str, channels: int) -> Tensor:
    """Return a magnitude (C, H, W // 2 + 1), float32.

    Args:
        path: a .npy file; a .safetensors file with the tensor ``"magnitude"``, or with one tensor of any name; or
            ``"embedded"``, the magnitude of images that code draws. The embedded magnitude is of RGB; for another
            number of channels its first channel, the brightness, is repeated.
        channels: number of channels of the pictures.

    Raises:
        UsageError: no such file, not a magnitude, or another number of channels.
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
    """Return a magnitude, given or loaded by :func:`load_magnitude`, for pictures of a size: (C, H, W // 2 + 1).

    A file of the user's with a magnitude of another size causes a SpectrumWarning.
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
    """Return the (height, width) of the pictures of a magnitude (C, H, W // 2 + 1): square if possible, else W even."""
    height, half = magnitude.shape[-2:]
    return height, height if height // 2 + 1 == half else 2 * (half - 1)


def resampled(magnitude: Tensor, size: tuple[int, int], how: str) -> Tensor:
    """Return a magnitude (C, H, W // 2 + 1) for pictures of another size.

    ``"bilinear"`` resizes the magnitude like a picture, with antialiasing, as Horama does. ``"frequency"`` reads it at
    the new frequencies, in cycles per pixel. It interpolates magnitude times frequency, which is nearly constant for
    natural images; rows wrap around, and the magnitude goes on as 1/f below the lowest frequency. The zero frequency,
    the mean of the pictures, keeps its proportion to the contrast.
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
    """Return ``values`` (C, H, K) interpolated linearly at fractional rows, (C, len(places), K); rows wrap around."""
    lower = places.floor()
    share = (places - lower).float()[:, None]
    first, second = (row.long() % values.shape[1] for row in (lower, lower + 1))
    return (1 - share) * values[:, first] + share * values[:, second]
