"""Reads files as images: image files as RGB or grey, array files with any number of channels."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from vital_exp.errors import UsageError
from vital_exp.images.output import quantised
from vital_exp.models.channels import GREY, RGB, in_channels
from vital_exp.models.network import Preprocessing
from vital_exp.references import arrays
from vital_exp.references.arrays import Loader, fit_array, load_array
from vital_exp.references.decoding import fit, load_rgb

_JPEG, _NETPBM = {".jpg", ".jpeg", ".jpe", ".jfif", ".jp2"}, {".ppm", ".pgm", ".pbm", ".pnm"}
EXTENSIONS = frozenset(_JPEG | _NETPBM | {".png", ".apng", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff"})


@dataclass(frozen=True)
class PictureFiles:
    """Reads files as images, all with the same number of channels and, if ``size`` is given, the same size.

    Attributes:
        channels: with 3 (RGB) and 1 (grey) image files are read, with any other number array files.
        size: (height, width) in px; None: each image keeps its own size.
        resize: the shorter side before the centre crop, in px; None: the smallest image that covers the crop.
        interpolation: how images are resized, one of decoding.INTERPOLATIONS.
        value_range: (low, high) for arrays, see :func:`vital_exp.references.arrays.load_array`.
        loader: a user's function that reads the files in place of Pillow and numpy.
        made: whether arrays may be pictures that a run wrote, see :func:`vital_exp.references.arrays.load_array`.
    """

    channels: int = RGB
    size: tuple[int, int] | None = None
    resize: int | None = None
    interpolation: str = "bilinear"
    value_range: tuple[float, float] | None = None
    loader: Loader | None = None
    made: bool = False

    @classmethod
    def of(cls, preprocessing: Preprocessing, loader: Loader | None = None) -> PictureFiles:
        """Return a reader that prepares files as a network's preprocessing does; raises as :meth:`checked` does."""
        geometry = (preprocessing.size, preprocessing.resize, preprocessing.interpolation)
        return cls(preprocessing.channels, *geometry, preprocessing.value_range, loader).checked()

    def checked(self) -> PictureFiles:
        """Return this reader, after checking it.

        Raises:
            UsageError: a value range is given for image files; their format fixes it.
        """
        if self.of_images and self.value_range is not None:
            colours = "RGB" if self.channels == RGB else "grey"
            problem = f"the network takes {colours} images, whose format fixes the range; references.loader reads other"
            raise UsageError("model.value_range", list(self.value_range), f"{problem} files")
        return self

    @property
    def of_images(self) -> bool:
        """Whether image files are read (by Pillow), not arrays."""
        return self.loader is None and self.channels in (GREY, RGB)

    @property
    def suffixes(self) -> Container[str] | None:
        """The suffixes of the files that are read, in lower case; None with a user's function, which reads any file."""
        if self.loader is not None:
            return None
        return EXTENSIONS if self.of_images else arrays.SUFFIXES

    @property
    def wanted(self) -> str:
        """The files that a folder must hold, for messages."""
        if self.loader is not None:
            return f"files for {self.loader.spelling}"
        return "images" if self.of_images else f"arrays of {self.channels} channels (.npy, .npz, .tif)"

    @property
    def described(self) -> str:
        """The settings that pixel values depend on besides the files and the size, for hashes; empty for RGB images."""
        if self.loader is None and self.channels == RGB:
            return ""
        return f"{self.channels} {self.value_range} {self.loader and self.loader.described}"

    def load(self, path: Path) -> Tensor:
        """Return the image of a file, float32 (C, height, width) in [0, 1].

        Raises:
            CorruptImageError: the file cannot be read, or is not an image of this kind.
            UsageError: the user's function returned no valid image.
        """
        if self.of_images:
            image = load_rgb(path)
            rgb = fit(image, self.size or image.size[::-1], self.resize, self.interpolation)
            return rgb if self.channels == RGB else quantised(in_channels(rgb, self.channels))
        picture = load_array(path, self.channels, self.value_range, self.loader, self.made)
        return picture if self.size is None else fit_array(picture, self.size, self.resize, self.interpolation)
