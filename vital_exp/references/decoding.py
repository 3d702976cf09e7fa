"""Decoding: image files of every kind become RGB tensors at the network's input size."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vital_exp.errors import UsageError

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

_ORIENTATION = 0x0112  # EXIF tag
# The transposition that undoes each EXIF orientation (EXIF 2.32, 4.6.4).
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BYTE, _WORD, _LONG = 255, 65535, 2**31 - 1  # largest grey value of 8, 16 and (signed) 32 bits
# A more elongated image is cut to its middle before it is resized: 1 x 10000 px would grow to gigabytes.
LONGEST_RATIO = 64


class CorruptImageError(ValueError):
    """A file is not a readable image; ``path`` names the file, ``reason`` says why in one line."""

    def __init__(self, path: Path, reason: str) -> None:
        self.path, self.reason = path, reason
        super().__init__(f"{printable(path)}: {reason}")


def printable(name: str | Path) -> str:
    """Return a file name as one line of valid UTF-8: characters that cannot be printed are escaped."""
    text = str(name).encode("utf-8", "backslashreplace").decode()
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def load_rgb(path: str | Path) -> Image.Image:
    """Return the image in a file, upright, as 8-bit RGB.

    The EXIF orientation is applied. Grey (1, 8, 16, 32 bit), palette, CMYK and all other modes are converted.
    Transparent images are laid on white. An animation yields its first frame.

    Raises:
        CorruptImageError: the file is missing, truncated, no image, or larger than Pillow's limit against
            decompression bombs.
    """
    path = Path(path)
    try:
        # Odd metadata does not change pixels: its warnings are ignored. The warning of a decompression bomb must be an
        # error, before Pillow allocates memory.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                image.load()
                if 0 in image.size:
                    raise ValueError("it has no pixels")
                return _to_rgb(_upright(image))
    except Exception as error:  # a broken file can make a decoder raise anything (struct.error, SyntaxError, ...)
        reason = str(error).replace(str(path), "the file") or type(error).__name__
        raise CorruptImageError(path, printable(reason)) from error


def _upright(image: Image.Image) -> Image.Image:
    """Return the image turned as its EXIF orientation says; unreadable EXIF counts as none."""
    try:
        turn = _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # broken metadata is no reason to lose sound pixels
        turn = None
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Return an image of any Pillow mode as RGB, on white where it is transparent."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _deep_grey(np.asarray(image)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        opaque = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(opaque, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _deep_grey(values: np.ndarray) -> Image.Image:
    """Return grey values (H, W), of 16 or 32 bits or floats in [0, 1] or [0, 255], as an 8-bit image.

    The values do not say which of two ranges they have: the smaller is assumed if all values fit.
    """
    grey = np.nan_to_num(values.astype(np.float32))
    whites = (1, _BYTE) if values.dtype.kind == "f" else (_WORD, _LONG)
    white = whites[0] if grey.max() <= whites[0] else whites[1]
    return Image.fromarray(np.rint(grey * (_BYTE / white)).clip(0, _BYTE).astype(np.uint8))


def fit(
    image: Image.Image, size: int | tuple[int, int], resize: int | None = None, interpolation: str = "bilinear"
) -> Tensor:
    """Return an RGB image at the network's input size: resized with antialiasing, then centre-cropped.

    Equal to torchvision's Resize(resize), CenterCrop(size), ToTensor on the same image.

    Args:
        image: in mode RGB.
        size: the side, or (height, width), in px.
        resize: the shorter side before the crop, in px; where the image is smaller than the crop, black is padded.
            None: the smallest image that covers the crop (for a square: shorter side = size).
        interpolation: one of INTERPOLATIONS.

    Returns:
        float32 (3, height, width), RGB in [0, 1].

    Raises:
        UsageError: unknown interpolation.
    """
    if interpolation not in INTERPOLATIONS:
        allowed = f"is unknown; one of {', '.join(INTERPOLATIONS)}"
        raise UsageError("references.interpolation", interpolation, allowed, INTERPOLATIONS)
    height, width = (size, size) if isinstance(size, int) else size
    image = _without_far_ends(image)
    scaled = image.resize(fitted_size(image.size, height, width, resize), INTERPOLATIONS[interpolation])
    pixels = np.asarray(_centre_crop(scaled, height, width))  # (H, W, 3)
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).contiguous().to(torch.float32).div(_BYTE)


def _without_far_ends(image: Image.Image) -> Image.Image:
    """Cut an image that is more elongated than LONGEST_RATIO to its middle; return any other image unchanged."""
    longest = LONGEST_RATIO * min(image.size)
    width, height = (min(side, longest) for side in image.size)
    return image if (width, height) == image.size else _centre_crop(image, height, width)


def fitted_size(old: tuple[int, int], height: int, width: int, resize: int | None) -> tuple[int, int]:
    """Return the (width, height) that an image is resized to before the crop, in px; torchvision's rounding.

    Args:
        old: (width, height) of the image.
        height, width: of the crop.
        resize: the shorter side; None: the smallest image that covers the crop.
    """
    old_width, old_height = old
    if resize is not None:
        height = width = resize
    if width * old_height >= height * old_width:  # the width needs the larger scale
        return width, max(1, width * old_height // old_width)
    return max(1, height * old_width // old_height), height


def _centre_crop(image: Image.Image, height: int, width: int) -> Image.Image:
    """Return the middle of an image, padded with black where it is smaller; torchvision's rounding."""
    left, top = margin(image.width - width), margin(image.height - height)
    return image.crop((left, top, left + width, top + height))


def margin(surplus: int) -> int:
    """Return the part of a crop's surplus that is cut off at the left or the top; a negative margin is padded."""
    return round(surplus / 2) if surplus >= 0 else -(-surplus // 2)
