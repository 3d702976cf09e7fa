"""MACO's spectrum of a folder: the mean Fourier magnitude of the images in decorrelated colours (arXiv 2306.06805)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from vital_exp.errors import UsageError
from vital_exp.images.output import in_unit, resized
from vital_exp.images.spectrum import TENSOR, magnitudes
from vital_exp.mining.images import ImageFolder
from vital_exp.models.channels import RGB
from vital_exp.models.network import Preprocessing
from vital_exp.progress_bars import hidden
from vital_exp.references.arrays import Loader
from vital_exp.references.decoding import printable
from vital_exp.whole_files import whole_path

NAME = "spectrum.safetensors"
IMAGES_AT_ONCE = 8
# Images of a folder of references that are read, evenly over its paths: enough for a mean, and read in seconds.
REFERENCES_READ = 1000


def magnitude_spectrum(
    images: Iterable[Tensor], size: int, preprocessing: Preprocessing | None = None, colours: Tensor | None = None
) -> Tensor:
    """Return the mean over images of :func:`vital_exp.images.spectrum.magnitudes`, (C, size, size // 2 + 1) float32.

    Args:
        images: (C, H, W) in [0, 1] each, resized to (size, size) if need be; one is in memory at a time, and the sum
            is in double precision.
        size: side in px.
        preprocessing, colours: see :func:`vital_exp.images.spectrum.magnitudes`.

    Raises:
        ValueError: no images.
    """
    total, count = torch.zeros((), dtype=torch.float64), 0
    for image in images:
        square = resized(image[None].cpu().float(), (size, size))
        total = total + magnitudes(square, preprocessing, colours)[0].double()
        count += 1
    if count == 0:
        raise ValueError("no images")
    return (total / count).float()


@dataclass
class FolderSpectrum:
    """The spectrum of a folder's images.

    Each image is resized to ``size`` px along its shorter side and centre-cropped. Enlarging a smaller image adds no
    high frequencies, so choose a size that the images have.

    Attributes:
        folder: the images, loaded at the spectrum's size.
        preprocessing: the network's preprocessing, where its pictures are not RGB; None for RGB.
        colours: (C, C) from decorrelated to natural channels; None: ImageNet's colours, or independent channels.
        step: every ``step``-th image of the folder is read.
        corrupt: the files that could not be read, after :meth:`write`: error by path.
    """

    folder: ImageFolder
    preprocessing: Preprocessing | None = None
    colours: Tensor | None = None
    step: int = 1
    corrupt: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        root: str | Path,
        size: int,
        key: str,
        preprocessing: Preprocessing | None = None,
        colours: Tensor | None = None,
        loader: Loader | None = None,
    ) -> FolderSpectrum:
        """Return the spectrum of a folder at ``size`` px, not yet computed; errors of the folder blame ``key``."""
        other = None if preprocessing is None or preprocessing.channels == RGB else preprocessing
        at_size = replace(other or Preprocessing(), size=(size, size), resize=None)
        return cls(ImageFolder(root, at_size, key, loader), other, colours)

    def write(self, out: Path, workers: int = 0, progress: bool = False) -> Path:
        """Write ``out/spectrum.safetensors`` with the tensor ``"magnitude"`` and return its path.

        Raises:
            UsageError: no image can be read.
        """
        root = printable(self.folder.root.resolve())
        try:
            magnitude = magnitude_spectrum(
                self._streamed(workers, progress), self.folder.preprocessing.size[0], self.preprocessing, self.colours
            )
        except ValueError:
            name, reason = next(iter(self.corrupt.items()))
            problem = f"none of its {len(self.corrupt)} images can be read ({printable(name)}: {reason})"
            raise UsageError(self.folder.key, root, problem) from None
        out.mkdir(parents=True, exist_ok=True)
        count = len(self._numbers) - len(self.corrupt)
        with whole_path(out / NAME) as temporary:
            save_file({TENSOR: magnitude}, temporary, {"folder": root, "images": str(count)})
        return out / NAME

    @property
    def _numbers(self) -> range:
        return range(0, len(self.folder.paths), self.step)

    def _streamed(self, workers: int, progress: bool) -> Iterator[Tensor]:
        """Yield the readable images and advance a progress bar; errors of the others go into ``corrupt``."""
        with tqdm(total=len(self._numbers), desc="spectrum", unit="image", disable=hidden(progress)) as bar:
            for batch in self.folder.batches(self._numbers, IMAGES_AT_ONCE, workers):
                self.corrupt.update({self.folder.paths[number]: reason for number, reason in batch.corrupt.items()})
                if batch.pixels is not None:
                    yield from in_unit(batch.pixels)
                bar.update(batch.count)


@lru_cache(maxsize=8)  # called again for every batch of pictures
def references_magnitude(
    root: str, size: int, preprocessing: Preprocessing, colours: Tensor | None, loader: Loader | None, cache_dir: Path
) -> Tensor:
    """Return the mean magnitude (C, size, size // 2 + 1) of a folder of references, cached on disk.

    All targets share it. The mean is over about 1,000 images, evenly over the folder, or over all if there are fewer.

    Args:
        root: the folder.
        size: side in px.
        preprocessing: the network's preprocessing.
        colours: (C, C) from decorrelated to natural channels; None: ImageNet's colours, or independent channels.
        loader: a user's function that reads the files.
        cache_dir: the cache.

    Raises:
        UsageError: no folder, or no image in it can be read.
    """
    spectrum = FolderSpectrum.of(root, size, "references.root", preprocessing, colours, loader)
    settings = "" if spectrum.preprocessing is None else f" {preprocessing.mean} {preprocessing.std}"
    settings += "" if colours is None else f" {colours.tolist()}"
    name = sha256(f"{spectrum.folder.fingerprint} {size} {REFERENCES_READ}{settings}".encode()).hexdigest()
    path = cache_dir / "spectra" / name / NAME
    if not path.is_file():
        spectrum.step = max(1, len(spectrum.folder.paths) // REFERENCES_READ)
        spectrum.write(path.parent)
    return load_file(path)[TENSOR]
