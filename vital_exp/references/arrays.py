"""Images with any number of channels, read from .npy, .npz or multi-band .tif files or by a user's function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vital_exp.errors import UsageError
from vital_exp.models.factories import find_factory
from vital_exp.references.decoding import CorruptImageError, fitted_size, margin, printable

SUFFIXES = frozenset({".npy", ".npz", ".tif", ".tiff"})
TIF = (".tif", ".tiff")
# Resampling may carry values so far outside [0, 1]; values further outside must have another range.
OVERSHOOT = 0.1
# Runs write pictures in [0, 1]. Where the network's value range is wider than this, an array whose values all lie in
# [0, 1] must be such a picture.
WIDE = 10.0


@dataclass(frozen=True)
class Loader:
    """A user's function that maps the path of a file to an array (C, H, W), with a string that identifies it."""

    spelling: str
    function: Callable[[str], object]
    key: str

    @classmethod
    def named(cls, spelling: str, key: str) -> Loader:
        """Return the loader for ``file.py:function`` or ``package.module:function``.

        Raises:
            UsageError: there is no such function.
        """
        return cls(str(spelling), find_factory(str(spelling), key), key)

    @property
    def described(self) -> str:
        """A string that changes if another function is named or the function's file changes."""
        code = getattr(self.function, "__code__", None)  # a callable written in C has no code object
        place = Path(code.co_filename if code else self.spelling.rpartition(":")[0]).expanduser()
        stamp = place.stat().st_mtime_ns if place.is_file() else ""
        return f"{self.spelling} {stamp}"

    def __call__(self, path: Path) -> np.ndarray:
        """Return the array of a file.

        Raises:
            CorruptImageError: the function raised an error.
            UsageError: the function returned no array.
        """
        try:
            array = self.function(str(path))
        except Exception as error:  # the function is the user's and may raise anything
            raise CorruptImageError(path, f"{self.spelling} raised {type(error).__name__}: {error}") from error
        if isinstance(array, Tensor):
            array = array.detach().cpu().numpy()
        if not isinstance(array, np.ndarray):
            problem = f"returned {type(array).__name__} for {printable(path.name)}: an array (channels, H, W) is needed"
            raise UsageError(self.key, self.spelling, problem)
        return array


def load_array(
    path: Path,
    channels: int,
    values: tuple[float, float] | None,
    loader: Loader | None = None,
    made: bool = False,
) -> Tensor:
    """Return the image of a file, float32 (C, H, W) in [0, 1].

    Args:
        path: a .npy, .npz or .tif file, or any file that ``loader`` reads.
        channels: the number of channels that the array must have.
        values: (low, high), mapped to 0 and 1; values outside are clipped. None: floats must be in [0, 1], and integers
            are scaled from the range of their type.
        loader: a user's function that reads the file.
        made: whether the file may be a picture that a run wrote. Then an array whose floats all lie in [0, 1] is not
            scaled, provided that the range ``values`` is wider than WIDE.

    Raises:
        CorruptImageError: the file cannot be read, or has a wrong shape, type or range, or NaN or infinite values.
        UsageError: the function returned no valid image, or tifffile is not installed and the file is a .tif.
    """
    array = _read(path) if loader is None else loader(path)
    if made and values and values[1] - values[0] > WIDE and _lies_in_unit(array):
        values = None
    try:
        return _picture(array, channels, values, path.suffix.lower() in TIF)
    except ValueError as error:
        if loader is not None:
            problem = f"returned no valid picture for {printable(path.name)}: the array {error}"
            raise UsageError(loader.key, loader.spelling, problem) from None
        raise CorruptImageError(path, str(error)) from None


def _lies_in_unit(array: np.ndarray) -> bool:
    return array.dtype.kind == "f" and array.size > 0 and bool(((array >= 0) & (array <= 1)).all())


def _read(path: Path) -> np.ndarray:
    if path.suffix.lower() in TIF and find_spec("tifffile") is None:
        raise UsageError("images", printable(path), 'tifffile is needed: pip install "vital-exp[arrays]"')
    if path.suffix.lower() not in SUFFIXES:
        raise CorruptImageError(path, f"pictures of this network are arrays: {', '.join(sorted(SUFFIXES))}")
    try:
        if path.suffix.lower() in TIF:
            import tifffile

            return np.asarray(tifffile.imread(path))
        content = np.load(path, allow_pickle=False)
        if isinstance(content, np.ndarray):
            return content
        with content:
            if len(content.files) != 1:
                raise ValueError(f"holds {', '.join(content.files) or 'no array'}: one array is needed")
            return np.asarray(content[content.files[0]])
    except Exception as error:  # a broken file can make a reader raise anything
        reason = str(error).split("\n")[0] or type(error).__name__
        raise CorruptImageError(path, printable(reason)) from error


def _picture(array: np.ndarray, channels: int, values: tuple[float, float] | None, interleaved: bool) -> Tensor:
    """Return an array as float32 (C, H, W) in [0, 1]; the ValueError it raises says what is wrong with the array."""
    if array.ndim == 2 and channels == 1:
        array = array[None]
    if interleaved and array.ndim == 3 and array.shape[0] != channels == array.shape[2]:
        array = np.moveaxis(array, 2, 0)
    shape = "x".join(map(str, array.shape))
    if array.ndim != 3 or array.shape[0] != channels or 0 in array.shape:
        turned = "; channels come first" if array.ndim == 3 and array.shape[2] == channels else ""
        raise ValueError(f"has the shape {shape}: {channels} x height x width is needed{turned}")
    if array.dtype.kind not in "fiu":
        raise ValueError(f"holds {array.dtype}: real numbers are needed")
    low, high = values or _range_of(array)
    numbers = array.astype(np.float64)  # float32 would round a narrow range far from 0 coarsely
    if not np.isfinite(numbers).all():
        raise ValueError("holds NaN or infinite values")
    scaled = ((numbers - low) / (high - low)).astype(np.float32)
    if values is None and (scaled.min() < -OVERSHOOT or scaled.max() > 1 + OVERSHOOT):
        extent = f"values from {numbers.min():.4g} to {numbers.max():.4g}"
        raise ValueError(f"holds {extent}; model.value_range=[low, high] says which values become 0 and 1")
    return torch.from_numpy(np.ascontiguousarray(scaled)).clamp(0, 1)


def _range_of(array: np.ndarray) -> tuple[float, float]:
    """Return the values (low, high) that are mapped to 0 and 1 by default."""
    if array.dtype.kind == "f":
        return 0.0, 1.0
    if array.dtype.itemsize > 2:
        raise ValueError(f"holds {array.dtype}: model.value_range=[low, high] says which values become 0 and 1")
    return float(np.iinfo(array.dtype).min), float(np.iinfo(array.dtype).max)


def fit_array(picture: Tensor, size: Sequence[int], resize: int | None, interpolation: str) -> Tensor:
    """Return an image (C, H, W) in [0, 1] at (height, width): resized with antialiasing, then centre-cropped.

    The geometry is that of :func:`vital_exp.references.decoding.fit`; pixels outside the image are 0.
    """
    height, width = size
    new_width, new_height = fitted_size((picture.shape[2], picture.shape[1]), height, width, resize)
    if (new_height, new_width) != tuple(picture.shape[1:]):
        smooth = {} if interpolation == "nearest" else {"antialias": True, "align_corners": False}
        shape = (new_height, new_width)
        picture = functional.interpolate(picture[None], shape, mode=interpolation, **smooth)[0]
    top, left = margin(new_height - height), margin(new_width - width)
    sides = (-left, left + width - new_width, -top, top + height - new_height)  # below 0 cuts off
    return functional.pad(picture, sides).clamp(0, 1).contiguous()
