"""The folder that is mined: its images in a fixed order, and batches of them as the network sees them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vital_exp.errors import UsageError
from vital_exp.image_folders import check_folder
from vital_exp.images.output import in_unit, stored
from vital_exp.mining.interruption import ignore_signals
from vital_exp.models.network import Preprocessing
from vital_exp.references.arrays import Loader
from vital_exp.references.decoding import CorruptImageError, printable
from vital_exp.references.files import PictureFiles
from vital_exp.references.folder import image_paths


class ImageFolder:
    """All images of a folder, at any depth, in the order of their paths; nothing is decoded until it is asked for.

    Args:
        root: the folder.
        preprocessing: how the network sees an image.
        key: the configuration key to blame.
        loader: a user's function that reads the files.

    Raises:
        UsageError: the folder is missing, unreadable or without images.
    """

    def __init__(
        self, root: str | Path, preprocessing: Preprocessing, key: str = "images", loader: Loader | None = None
    ) -> None:
        self.root = Path(root).expanduser()
        self.files = PictureFiles.of(preprocessing, loader)
        self.preprocessing = preprocessing
        self.key = key
        check_folder(self.root, key)
        if not self.paths:
            raise UsageError(key, printable(self.root), f"holds no {self.files.wanted}")

    @cached_property
    def paths(self) -> list[str]:
        """The path of every image, relative to the folder, with "/", sorted; an image's number is its place here."""
        try:
            return sorted(image_paths(self.root, ".", self.files.suffixes))
        except UsageError as error:
            raise UsageError(self.key, error.value, error.problem) from None

    @cached_property
    def fingerprint(self) -> str:
        """The SHA-256 over paths, sizes and times of all files, as they were when it was first asked for."""
        digest = hashlib.sha256(self.files.described.encode())
        for path in self.paths:
            try:
                status = (self.root / path).stat()
            except OSError as error:
                raise UsageError(self.key, printable(self.root / path), f"cannot be read ({error.strerror})") from None
            digest.update(os.fsencode(path) + f"\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
        return digest.hexdigest()

    def load(self, path: str) -> Tensor:
        """Return an image as the network sees it, resized and cropped: float32 (C, H, W) in [0, 1].

        Boxes of patches are in the pixels of this picture.

        Raises:
            CorruptImageError: it cannot be read.
        """
        return self.files.load(self.root / path)

    def batches(
        self, numbers: Sequence[int], batch_size: int, workers: int = 0, pin_memory: bool = False
    ) -> Iterator[ImageBatch]:
        """Yield the images of these numbers in this order, decoded by ``workers`` processes (0: in this one)."""
        yield from DataLoader(
            _Decoded(self),
            batch_size=batch_size,
            sampler=numbers,
            num_workers=workers,
            collate_fn=_collate,
            pin_memory=pin_memory,
            worker_init_fn=ignore_signals,
            generator=torch.Generator(),  # else it takes a number from the global one
        )


@dataclass(frozen=True)
class ImageBatch:
    """Some images in order: those that could be read, and why others could not.

    Attributes:
        count: images asked for.
        numbers: (n,) int64, the numbers of those that were read.
        pixels: (n, C, H, W) as the network sees them, before normalisation, as :func:`stored` keeps them; None for
            n = 0.
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
        """Return the images (n, C, H, W) as float32 in [0, 1] on a device; n must be at least 1."""
        assert self.pixels is not None
        return in_unit(self.pixels.to(device, non_blocking=True))


class _Decoded(Dataset[tuple[int, "Tensor | str"]]):
    """Number and pixels (C, H, W), stored, of an image, or number and reason where it cannot be read."""

    def __init__(self, folder: ImageFolder) -> None:
        self.folder = folder

    def __getitem__(self, number: int) -> tuple[int, Tensor | str]:
        try:
            image = self.folder.load(self.folder.paths[number])
        except CorruptImageError as error:
            return number, error.reason
        # Bytes: a quarter of the shared memory that floats would take between processes; exact, for images are 8 bit.
        return number, stored(image)


def _collate(samples: list[tuple[int, Tensor | str]]) -> ImageBatch:
    read = [(number, pixels) for number, pixels in samples if isinstance(pixels, Tensor)]
    corrupt = {number: reason for number, reason in samples if isinstance(reason, str)}
    pixels = torch.stack([pixels for _, pixels in read]) if read else None
    return ImageBatch(len(samples), torch.tensor([number for number, _ in read], dtype=torch.int64), pixels, corrupt)
