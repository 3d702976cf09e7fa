"""Reference images from a folder: which subfolder belongs to which class, and which images a target gets."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import warnings
from collections.abc import Container, Iterator
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from torch import Tensor

from vital_exp.errors import UsageError, nearest
from vital_exp.image_folders import check_folder
from vital_exp.models.channels import RGB
from vital_exp.references.arrays import Loader
from vital_exp.references.base import PER_TARGET, Candidate, Competing
from vital_exp.references.decoding import INTERPOLATIONS, CorruptImageError, printable
from vital_exp.references.files import EXTENSIONS, PictureFiles
from vital_exp.references.listed import CLASS_ORDER
from vital_exp.targets.class_names import ClassNames, as_integer
from vital_exp.targets.unit import Target

# A larger share of broken files says that something is wrong with the folder, not with a file.
CORRUPT_LIMIT = 0.1
_LISTED = 5  # names shown in a message


class ReferenceWarning(UserWarning):
    """There are fewer references than the user asked for, or some that the user named are left out."""


class FolderReferences(Competing):
    """Images of an ImageFolder tree: root/<class folder>/**/<image>, or of a root that holds images alone.

    Class folders map to classes by name or synonym, WordNet id or index; if none does, by alphabetical order, provided
    there are as many folders as classes. Folders of one class are merged; hidden files and folders are skipped. A
    root with images and no folder of images serves every target. Targets in hidden layers draw on all images of the
    tree and need no classes: folders are mapped to classes, and errors of the mapping raised, only when a class is
    first asked for.

    Args:
        root: the folder.
        class_names: the classes of the network.
        count: images per target.
        seed: chooses the images; the choice for a target does not depend on other targets, and all variations of a
            target have the same images.
        size: side or (height, width) of the images that are returned, in px.
        resize: the shorter side before the crop, in px; None: the smallest image that covers the crop.
        interpolation: how images are resized, one of decoding.INTERPOLATIONS.
        candidates: images that compete for the facets of a target.
        channels, value_range, loader: see :class:`vital_exp.references.files.PictureFiles`.
        called: the name of the folder in messages, such as the list or dataset that it was made from.

    Raises:
        UsageError: the root is missing, unreadable or without images, or an option is out of range.
    """

    def __init__(
        self,
        root: str | Path,
        class_names: ClassNames,
        count: int = PER_TARGET,
        seed: int = 0,
        size: int | tuple[int, int] = 224,
        resize: int | None = 256,
        interpolation: str = "bilinear",
        candidates: int = 200,
        channels: int = RGB,
        value_range: tuple[float, float] | None = None,
        loader: Loader | None = None,
        called: str | None = None,
    ) -> None:
        self.root = Path(root).expanduser()
        self._called = called or printable(self.root)
        self.count, self.seed, self.competing = count, seed, candidates
        self.size = size if isinstance(size, int) else (int(size[0]), int(size[1]))
        self.resize, self.interpolation = resize, interpolation
        self._network_names = class_names
        self._listed: dict[int | None, list[str]] = {}
        self._told_few: set[str] = set()
        self._check_options()
        sides = (self.size, self.size) if isinstance(self.size, int) else self.size
        self.files = PictureFiles(channels, sides, resize, interpolation, value_range, loader).checked()
        self._folders = _subfolders(self.root)
        if self._first(".") is None:
            raise UsageError("references.root", self._called, f"holds no {self.files.wanted}")

    def images(self, target: Target) -> Iterator[Tensor]:
        """Yield the target's references one by one, each float32 (C, H, W) in [0, 1]; one is in memory at a time.

        After the last image a ReferenceWarning names corrupt images that were skipped, and says if there were fewer
        images than asked for.

        Raises:
            UsageError: the class has no images, or more than a tenth of the images examined are corrupt.
        """
        return self._stream(target, self._ordered(target))

    def fingerprint(self, target: Target) -> str:
        """Return the SHA-256 over the paths, sizes and times of the target's files, and over the options.

        Nothing is decoded. Files that may stand in for corrupt files are included. Warns of fewer images than asked
        for, since :meth:`images` is never called when the statistics of an earlier run are used.

        Raises:
            UsageError: the class has no images.
        """
        paths = self._ordered(target)
        self._tell_few(target, len(paths))
        return self._hash(paths[: math.ceil(self.count / (1 - CORRUPT_LIMIT)) + 1], self.count)

    def _hash(self, paths: list[str], count: int) -> str:
        options = (count, self.size, self.resize, self.interpolation, self.seed)
        digest = hashlib.sha256(f"{options!r}{self.files.described}".encode())
        for path in paths:
            digest.update(os.fsencode(path) + _state(self.root / path))
        return digest.hexdigest()

    def available(self, target: Target) -> int:
        """Return how many images a target has, however many are asked for.

        Raises:
            UsageError: the class has no images.
        """
        return len(self._ordered(target))

    def candidates(self, target: Target) -> list[Candidate]:
        """Return the images that compete for a target's facets: the first ``candidates`` images in the target's order.

        Raises:
            UsageError: the class has no images.
        """
        return [Candidate(path, partial(self._load, path), path) for path in self._ordered(target)[: self.competing]]

    def competition(self, target: Target) -> dict[str, object]:
        """Return a hash of the competing files."""
        return {"references": self._hash(self._ordered(target)[: self.competing], self.competing)}

    def _load(self, path: str) -> Tensor:
        return self.files.load(self.root / path)

    def _first(self, folder: str) -> str | None:
        """Return the first readable file below a folder; None where there is none."""
        return next(image_paths(self.root, folder, self.files.suffixes), None)

    def class_indices(self) -> list[int] | None:
        """Return the classes that have images, ascending; None when the images serve any target.

        Raises:
            UsageError: no folder could be mapped to a class.
        """
        if not self._image_folders:
            return None
        return sorted(index for index, folders in self._mapping.items() if set(folders) & set(self._image_folders))

    def class_folders(self, index: int) -> list[str]:
        """Return the folders of a class, relative to the root; ``["."]`` when the root holds images alone.

        Raises:
            UsageError: no folder could be mapped to a class.
        """
        return self._mapping.get(index, []) if self._image_folders else ["."]

    @property
    def class_names(self) -> ClassNames:
        """The network's class names or, where these are mere numbers, the names of the class folders."""
        if self._network_names.is_numbered and self._image_folders and self._is_alphabetical:
            return ClassNames([printable(folder) for folder in self._in_order])
        return self._network_names

    def _check_options(self) -> None:
        size = (self.size,) if isinstance(self.size, int) else self.size
        limits = {"count": (self.count,), "size": size, "resize": () if self.resize is None else (self.resize,)}
        for key, numbers in limits.items():
            if any(number < 1 for number in numbers):
                raise UsageError(f"references.{key}", getattr(self, key), "must be at least 1")
        if self.interpolation not in INTERPOLATIONS:
            problem = f"is unknown; one of {', '.join(INTERPOLATIONS)}"
            raise UsageError("references.interpolation", self.interpolation, problem, INTERPOLATIONS)

    # The images of a target. Paths are relative to the root, with "/", in a fixed order.

    def _ordered(self, target: Target) -> list[str]:
        """Return all images of a target, shuffled by the seed and the target's name."""
        by_class = target.kind == "class"
        paths = self._paths(target.index if by_class and self._image_folders else None)
        if not paths:
            raise UsageError("references.root", self._called, self._no_images(target))
        stream = f"class {target.index}" if by_class else replace(target, variation=1).name
        entropy = hashlib.sha256(f"{self.seed} {stream}".encode()).digest()
        order = np.random.default_rng(int.from_bytes(entropy, "big")).permutation(len(paths))
        return [paths[position] for position in order]

    def _paths(self, index: int | None) -> list[str]:
        """Return the images of a class, or of the whole tree for None; each folder is listed once."""
        if index not in self._listed:
            folders = ["."] if index is None else self._mapping.get(index, [])
            self._listed[index] = sorted(
                path for folder in folders for path in image_paths(self.root, folder, self.files.suffixes)
            )
        return self._listed[index]

    def _no_images(self, target: Target) -> str:
        label = target.label or self.class_names.label(target.index)
        present = [self.class_names.label(index) for index in self.class_indices() or ()]
        listed = nearest(label, present) or present[:_LISTED]
        more = f" and {len(present) - len(listed)} more" if len(present) > len(listed) else ""
        return f'holds no images of class {target.index} "{label}"; it has {", ".join(map(printable, listed))}{more}'

    # From folders to classes.

    @cached_property
    def _image_folders(self) -> list[str]:
        """The folders at the top of the tree that hold an image at any depth."""
        return [folder for folder in self._folders if self._first(folder) is not None]

    @cached_property
    def _recognised(self) -> dict[str, tuple[int, ...]]:
        """The classes that each folder's name can mean: one, none or, for an ambiguous name, several."""
        names = self._network_names
        return {folder: names.lookup(folder) or names.lookup(_wordnet_prefix(folder)) for folder in self._folders}

    @property
    def _is_alphabetical(self) -> bool:
        return not any(self._recognised.values()) and len(self._in_order) == len(self._network_names)

    @cached_property
    def _in_order(self) -> list[str]:
        """The class folders in the order of the dataset's labels if it names them, else in alphabetical order."""
        path = self.root / CLASS_ORDER
        return [str(name) for name in json.loads(path.read_text("utf-8"))] if path.is_file() else self._folders

    @cached_property
    def _mapping(self) -> dict[int, list[str]]:
        """The folders of each class; classes without a folder are absent."""
        if self._is_alphabetical:
            self._warn_of_alphabet()
            return {index: [folder] for index, folder in enumerate(self._in_order) if folder in self._folders}
        mapping: dict[int, list[str]] = {}
        for folder, classes in self._recognised.items():
            if len(classes) == 1:
                mapping.setdefault(classes[0], []).append(folder)
        strangers = [folder for folder in self._image_folders if len(self._recognised[folder]) != 1]
        if not mapping or self._counts_otherwise(strangers):
            raise UsageError("references.root", self._called, self._no_mapping(strangers))
        if strangers:
            _warn(f"references.root={self._called}: no class is known by {self._described(strangers)}")
        return mapping

    def _counts_otherwise(self, strangers: list[str]) -> bool:
        """Whether all folders are numbers and some are not class indices: counted from 1, all would be off by one."""
        return bool(strangers) and all(as_integer(folder) is not None for folder in self._image_folders)

    def _no_mapping(self, strangers: list[str]) -> str:
        classes = len(self._network_names)
        ways = f"name, WordNet id or index from 0 to {classes - 1}"
        if len(strangers) == len(self._image_folders):
            ways += f", nor by alphabetical order ({len(self._folders)} folders, {classes} classes)"
        if self._network_names.is_numbered:
            ways += (
                f"; model.class_names=[...] gives the network's {'class its name' if classes == 1 else 'classes names'}"
            )
        return f"no class of this network is known by {self._described(strangers)}: not by {ways}"

    def _described(self, folders: list[str]) -> str:
        """Return some folder names for a message, with the classes that an ambiguous name can mean."""
        more = f" and {len(folders) - _LISTED} more" if len(folders) > _LISTED else ""
        return ", ".join(map(self._describe, folders[:_LISTED])) + more

    def _describe(self, folder: str) -> str:
        choices = " or ".join(map(str, self._recognised[folder]))
        return f'"{printable(folder)}"' + (f" (class {choices}?)" if choices else "")

    def _warn_of_alphabet(self) -> None:
        if not self._network_names.is_numbered:
            order = "the dataset's" if self._in_order != self._folders else "alphabetical"
            pair = f'"{printable(self._in_order[0])}" is class 0 "{self._network_names.label(0)}"'
            _warn(f"references.root={self._called}: folders taken as classes in {order} order: {pair}, ...")

    # Reading the images.

    def _stream(self, target: Target, paths: list[str]) -> Iterator[Tensor]:
        used, corrupt = 0, []
        for path in paths:
            if used == self.count:
                break
            try:
                image = self._load(path)
            except CorruptImageError as error:
                corrupt.append(error)
                self._limit(target, corrupt, len(paths))
                continue
            used += 1
            yield image
        if corrupt:
            _warn(f"{target.name}: {len(corrupt)} corrupt among the references: {self._named(corrupt)}")
        self._tell_few(target, used)

    def _tell_few(self, target: Target, used: int) -> None:
        """Warn, once per target, when there are fewer images than asked for."""
        if used < self.count and target.name not in self._told_few:
            self._told_few.add(target.name)
            warn_of_few(target, used, self.count)

    def _limit(self, target: Target, corrupt: list[CorruptImageError], total: int) -> None:
        """Raise as soon as it is certain that more than a tenth of the images to be examined are corrupt."""
        examined = min(total, self.count + len(corrupt))
        if len(corrupt) > CORRUPT_LIMIT * examined:
            share = f"{len(corrupt)} of the {examined} images for {target.name} are corrupt, more than a tenth"
            raise UsageError("references.root", self._called, f"{share}: {self._named(corrupt)}")

    def _named(self, corrupt: list[CorruptImageError]) -> str:
        shown = (f"{printable(error.path.relative_to(self.root))} ({error.reason})" for error in corrupt[:_LISTED])
        more = f" and {len(corrupt) - _LISTED} more" if len(corrupt) > _LISTED else ""
        return ", ".join(shown) + more


def warn_of_few(target: Target, used: int, count: int) -> None:
    """Warn with ReferenceWarning that a target has fewer references than asked for."""
    _warn(f"{target.name}: {used} references, fewer than references.count={count}")


def _warn(message: str) -> None:
    warnings.warn(message, ReferenceWarning, stacklevel=3)


def _wordnet_prefix(folder: str) -> str:
    """Return the WordNet id of a folder such as "n02099601-golden_retriever" (Stanford Dogs), else its name."""
    match = re.match(r"(n[0-9]{8})[ _-]", folder)
    return match[1] if match else folder


def _state(path: Path) -> bytes:
    """Return a file's size and time of change, for hashes."""
    try:
        status = path.stat()
    except OSError as error:
        raise UsageError("references.root", printable(path), f"cannot be read ({error.strerror})") from error
    return f"\0{status.st_size}\0{status.st_mtime_ns}\0".encode()


def _subfolders(root: Path) -> list[str]:
    """Return the names of the folders in ``root``, sorted, without hidden folders.

    Raises:
        UsageError: ``root`` is missing, no folder, or unreadable.
    """
    check_folder(root, "references.root")
    return [entry.name for entry in _entries(root) if entry.is_dir()]


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return the entries of a folder, sorted by name, without hidden entries (such as macOS's "._photo.jpg")."""
    try:
        with os.scandir(folder) as entries:
            return sorted((e for e in entries if not e.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise UsageError("references.root", printable(folder), f"cannot be read ({error.strerror})") from error


def image_paths(
    root: Path, folder: str, suffixes: Container[str] | None = EXTENSIONS, above: tuple[str, ...] = ()
) -> Iterator[str]:
    """Yield the paths of a folder's images at any depth, relative to ``root``, with "/", in a fixed order.

    Only files with one of ``suffixes`` (lower case) are yielded; None: all files. ``above`` are the folders on the way
    down, so that a symbolic link to one of them ends the descent.
    """
    here = os.path.realpath(root / folder)
    if here in above:
        return
    for entry in _entries(root / folder):
        path = entry.name if folder == "." else f"{folder}/{entry.name}"
        if entry.is_dir():
            yield from image_paths(root, path, suffixes, (*above, here))
        elif entry.is_file() and (suffixes is None or os.path.splitext(entry.name)[1].lower() in suffixes):
            yield path
