"""The images that are mined: where they come from, in which order, and how batches of them reach the network."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vital_exp.errors import UsageError
from vital_exp.images.output import to_uint8
from vital_exp.models.network import Preprocessing
from vital_exp.references.decoding import CorruptImageError, fit, load_rgb, printable
from vital_exp.references.drawn import CLASS_NAMES, REVISION, draw
from vital_exp.references.folder import image_paths

KEY = "images"


class ImageSource(Protocol):
    """Images in a fixed order, each known by its path."""

    @property
    def name(self) -> str:
        """Where the images are, for people."""
        ...

    @property
    def paths(self) -> Sequence[str]:
        """The path of every image, relative and with "/"; an image's number is its place here."""
        ...

    def fingerprint(self) -> str:
        """Return a hexadecimal hash that changes when the images do."""
        ...

    def load(self, path: str) -> Image.Image:
        """Return an image as 8-bit RGB; raises CorruptImageError."""
        ...


class FolderImages:
    """All images of a folder, at any depth, in the order of their paths; nothing is decoded until it is asked for.

    Raises:
        UsageError: the folder is missing, unreadable or without images.
    """

    def __init__(self, root: str | Path, key: str = KEY) -> None:
        self.root = Path(root).expanduser()
        self.key = key
        if not self.root.is_dir():
            problem = "is no folder" if self.root.exists() else "does not exist"
            raise UsageError(key, printable(self.root), f"{problem}; give a folder of images")
        if not self.paths:
            raise UsageError(key, printable(self.root), "holds no images")

    @property
    def name(self) -> str:
        """The folder's absolute path."""
        return str(self.root.resolve())

    @cached_property
    def paths(self) -> list[str]:
        """The path of every image, relative to the folder, sorted."""
        try:
            return sorted(image_paths(self.root, "."))
        except UsageError as error:
            raise UsageError(self.key, error.value, error.problem) from None

    def fingerprint(self) -> str:
        """Return the SHA-256 over paths, sizes and times of all files."""
        digest = hashlib.sha256()
        for path in self.paths:
            try:
                status = (self.root / path).stat()
            except OSError as error:
                raise UsageError(self.key, printable(self.root / path), f"cannot be read ({error.strerror})") from None
            digest.update(os.fsencode(path) + f"\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
        return digest.hexdigest()

    def load(self, path: str) -> Image.Image:
        """Return an image of the folder."""
        return load_rgb(self.root / path)


@dataclass(frozen=True)
class DrawnImages:
    """The embedded image set: ``per_class`` coloured shapes of each class, drawn by code."""

    per_class: int = 100
    seed: int = 0

    @property
    def name(self) -> str:
        """What the set is."""
        return f"drawn images ({self.per_class} per class, seed {self.seed})"

    @cached_property
    def paths(self) -> list[str]:
        """The images' names, <class>/<number>; there are no files."""
        return [f"{name}/{number:05d}" for name in sorted(CLASS_NAMES) for number in range(self.per_class)]

    def fingerprint(self) -> str:
        """Return a hash of what the set depends on."""
        return hashlib.sha256(f"drawn-{REVISION}/{self.per_class}/{self.seed}".encode()).hexdigest()

    def load(self, path: str) -> Image.Image:
        """Draw an image."""
        name, _, number = path.partition("/")
        drawn = draw(CLASS_NAMES.index(name), int(number), self.seed)
        return Image.fromarray(to_uint8(drawn).permute(1, 2, 0).numpy())


def as_source(images: str | Path | ImageSource, key: str = KEY) -> ImageSource:
    """Return a folder as the source of its images; a source passes through.

    Raises:
        UsageError: no such folder, or no images in it.
    """
    return FolderImages(images, key) if isinstance(images, (str, Path)) else images


def network_view(image: Image.Image, preprocessing: Preprocessing) -> Tensor:
    """Return an image as the network sees it, resized and cropped: float32 (3, H, W) RGB in [0, 1].

    Boxes of patches are in the pixels of this picture.
    """
    return fit(image, preprocessing.size, preprocessing.resize, preprocessing.interpolation)


@dataclass(frozen=True)
class ImageBatch:
    """Some images in order: those that could be read, and why others could not.

    Attributes:
        count: images asked for.
        numbers: (n,) int64, the numbers of those that were read.
        pixels: (n, 3, H, W) uint8 as the network sees them, before normalisation; None for n = 0.
        corrupt: number and reason of the others.
    """

    count: int
    numbers: Tensor
    pixels: Tensor | None
    corrupt: dict[int, str]

    def pin_memory(self) -> ImageBatch:
        """Put the pixels where a GPU can fetch them; DataLoader calls this."""
        pixels = None if self.pixels is None else self.pixels.pin_memory()
        return ImageBatch(self.count, self.numbers, pixels, self.corrupt)

    def rgb(self, device: torch.device) -> Tensor:
        """Return the images (n, 3, H, W) as float32 RGB in [0, 1] on a device; n must be at least 1."""
        assert self.pixels is not None
        return self.pixels.to(device, non_blocking=True).float() / 255


class _Decoded(Dataset[tuple[int, "Tensor | str"]]):
    """Number and pixels (3, H, W) uint8 of an image, or number and reason where it cannot be read."""

    def __init__(self, source: ImageSource, preprocessing: Preprocessing) -> None:
        self.source, self.preprocessing = source, preprocessing

    def __getitem__(self, number: int) -> tuple[int, Tensor | str]:
        try:
            image = self.source.load(self.source.paths[number])
        except CorruptImageError as error:
            return number, error.reason
        # Bytes: a quarter of the shared memory that floats would take between processes; exact, for files are 8 bit.
        return number, to_uint8(network_view(image, self.preprocessing))


def _collate(samples: list[tuple[int, Tensor | str]]) -> ImageBatch:
    read = [(number, pixels) for number, pixels in samples if isinstance(pixels, Tensor)]
    corrupt = {number: reason for number, reason in samples if isinstance(reason, str)}
    pixels = torch.stack([pixels for _, pixels in read]) if read else None
    return ImageBatch(len(samples), torch.tensor([number for number, _ in read], dtype=torch.int64), pixels, corrupt)


def batches(
    source: ImageSource,
    preprocessing: Preprocessing,
    numbers: Sequence[int],
    batch_size: int,
    workers: int = 0,
    pin_memory: bool = False,
) -> Iterator[ImageBatch]:
    """Yield the images of these numbers in this order, decoded by ``workers`` processes (0: in this one)."""
    loader = DataLoader(
        _Decoded(source, preprocessing),
        batch_size=batch_size,
        sampler=numbers,
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=pin_memory,
        generator=torch.Generator(),  # else it takes a number from the global one
    )
    yield from loader
