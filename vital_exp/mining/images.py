"""The folder that is mined: its images in a fixed order, loaded in batches at the network's input size."""

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
    """All images of a folder, at any depth, in the order of their paths; an image is decoded when it is asked for.

    Args:
        root: the folder.
        preprocessing: the network's preprocessing: channels, input size, resizing, range.
        key: the configuration key that errors blame.
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
        """The SHA-256 over the paths, sizes and times of all files at the first call."""
        digest = hashlib.sha256(self.files.described.encode())
        for path in self.paths:
            try:
                status = (self.root / path).stat()
            except OSError as error:
                raise UsageError(self.key, printable(self.root / path), f"cannot be read ({error.strerror})") from None
            digest.update(os.fsencode(path) + f"\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
        return digest.hexdigest()

    def load(self, path: str) -> Tensor:
        """Return an image resized and cropped to the network's input: float32 (C, H, W) in [0, 1].

        The boxes of patches and windows count this image's pixels.

        Raises:
            CorruptImageError: the file cannot be read.
        """
        return self.files.load(self.root / path)

    def batches(
        self, numbers: Sequence[int], batch_size: int, workers: int = 0, pin_memory: bool = False
    ) -> Iterator[ImageBatch]:
        """Yield the images of these numbers in this order, decoded by ``workers`` processes (0: by this process)."""
        yield from DataLoader(
            _Decoded(self),
            batch_size=batch_size,
            sampler=numbers,
            num_workers=workers,
            collate_fn=_collate,
            pin_memory=pin_memory,
            worker_init_fn=ignore_signals,
            generator=torch.Generator(),  # otherwise the DataLoader would draw from the global generator
        )


@dataclass(frozen=True)
class ImageBatch:
    """A batch of images in order, and the errors of images that could not be read.

    Attributes:
        count: images asked for.
        numbers: (n,) int64, the numbers of the n images that were read.
        pixels: (n, C, H, W) at the network's input size, before normalisation, as :func:`stored` keeps them; None for
            n = 0.
        corrupt: for each other image its number and the error.
    """

    count: int
    numbers: Tensor
    pixels: Tensor | None
    corrupt: dict[int, str]

    def pin_memory(self) -> ImageBatch:
        """Return the batch with its pixels in pinned memory; the DataLoader calls this."""
        pixels = None if self.pixels is None else self.pixels.pin_memory()
        return ImageBatch(self.count, self.numbers, pixels, self.corrupt)

    def rgb(self, device: torch.device) -> Tensor:
        """Return the images (n, C, H, W) as float32 in [0, 1] on a device; n must be at least 1."""
        assert self.pixels is not None
        return in_unit(self.pixels.to(device, non_blocking=True))


class _Decoded(Dataset[tuple[int, "Tensor | str"]]):
    """Maps an image's number to (number, stored pixels (C, H, W)), or to (number, error) if it cannot be read."""

    def __init__(self, folder: ImageFolder) -> None:
        self.folder = folder

    def __getitem__(self, number: int) -> tuple[int, Tensor | str]:
        try:
            image = self.folder.load(self.folder.paths[number])
        except CorruptImageError as error:
            return number, error.reason
        # Bytes take a quarter of the shared memory of floats between processes, and are exact for images of 8 bits.
        return number, stored(image)


def _collate(samples: list[tuple[int, Tensor | str]]) -> ImageBatch:
    read = [(number, pixels) for number, pixels in samples if isinstance(pixels, Tensor)]
    corrupt = {number: reason for number, reason in samples if isinstance(reason, str)}
    pixels = torch.stack([pixels for _, pixels in read]) if read else None
    return ImageBatch(len(samples), torch.tensor([number for number, _ in read], dtype=torch.int64), pixels, corrupt)
