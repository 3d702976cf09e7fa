"""How files become pictures of a network: images as RGB or grey, arrays of any number of channels."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vital_exp.errors import UsageError
from vital_exp.models.channels import GREY, RGB, in_channels
from vital_exp.models.network import Preprocessing
from vital_exp.references import arrays
from vital_exp.references.arrays import Loader, fit_array, load_array
from vital_exp.references.decoding import fit, load_rgb

_JPEG, _NETPBM = {".jpg", ".jpeg", ".jpe", ".jfif", ".jp2"}, {".ppm", ".pgm", ".pbm", ".pnm"}
EXTENSIONS = frozenset(_JPEG | _NETPBM | {".png", ".apng", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff"})


class AnySuffix(Container[str]):
    """Every file of a folder: a user's function reads what it wants."""

    def __contains__(self, _suffix: object) -> bool:
        return True


@dataclass(frozen=True)
class PictureFiles:
    """Reads files as pictures of one number of channels and one size.

    Attributes:
        channels: 3 for RGB, 1 for grey: image files; others: arrays.
        size: (height, width) in px; None: each picture's own.
        resize: the shorter side before the centre crop; None crops from the smallest picture that covers it.
        interpolation: how they are resized.
        value_range: of arrays; see :func:`vital_exp.references.arrays.load_array`.
        loader: a user's function that reads files in place of all that.
        made: whether arrays may be pictures that a run wrote; see :func:`vital_exp.references.arrays.load_array`.
    """

    channels: int = RGB
    size: tuple[int, int] | None = None
    resize: int | None = None
    interpolation: str = "bilinear"
    value_range: tuple[float, float] | None = None
    loader: Loader | None = None
    made: bool = False

    @classmethod
    def of(cls, own: Preprocessing, loader: Loader | None = None) -> PictureFiles:
        """Return what reads files as a network sees them; see :meth:`checked`."""
        return cls(own.channels, own.size, own.resize, own.interpolation, own.value_range, loader).checked()

    def checked(self) -> PictureFiles:
        """Return itself.

        Raises:
            UsageError: a range of values is given for image files, which have that of their format.
        """
        if self.of_images and self.value_range is not None:
            problem = f"image files are read for {self.channels} channels, with the range of their format; "
            raise UsageError("model.value_range", list(self.value_range), f"{problem}references.loader reads others")
        return self

    @property
    def of_images(self) -> bool:
        """Whether image files are read, by Pillow, and not arrays."""
        return self.loader is None and self.channels in (GREY, RGB)

    @property
    def suffixes(self) -> Container[str]:
        """The endings, in small letters, of the files that are read."""
        if self.loader is not None:
            return AnySuffix()
        return EXTENSIONS if self.of_images else arrays.SUFFIXES

    @property
    def wanted(self) -> str:
        """What a folder must hold."""
        if self.loader is not None:
            return f"files for {self.loader.spelling}"
        return "images" if self.of_images else f"arrays of {self.channels} channels (.npy, .npz, .tif)"

    @property
    def described(self) -> str:
        """What pictures depend on beside the files and their size; nothing for RGB images."""
        if self.loader is None and self.channels == RGB:
            return ""
        return f"{self.channels} {self.value_range} {self.loader and self.loader.described}"

    def load(self, path: Path) -> Tensor:
        """Return the picture of a file, float32 (C, height, width) in [0, 1].

        Raises:
            CorruptImageError: it cannot be read, or is no picture of this kind.
            UsageError: a user's function returned no picture.
        """
        if self.of_images:
            image = load_rgb(path)
            rgb = fit(image, self.size or image.size[::-1], self.resize, self.interpolation)
            return rgb if self.channels == RGB else eight_bits(in_channels(rgb, self.channels))
        picture = load_array(path, self.channels, self.value_range, self.loader, self.made)
        return picture if self.size is None else fit_array(picture, self.size, self.resize, self.interpolation)


def eight_bits(picture: Tensor) -> Tensor:
    """Return a picture as an image file would hold it: multiples of 1/255."""
    return torch.round(picture * 255) / 255
