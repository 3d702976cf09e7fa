"""Readings of natural images, kept on disk, since all runs of a sweep compare with the same images."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vital_exp.errors import UsageError
from vital_exp.evaluation.reading import PictureReader, Reading
from vital_exp.references.base import References
from vital_exp.targets.unit import Target
from vital_exp.whole_files import whole_path

FORMAT = "readings, 2"  # part of the files' names; to be changed with what the files hold
LAYER = "layer."  # before the names of layers in a file


@dataclass(frozen=True)
class KeptReading:
    """One view's reading of the natural images of some units.

    Attributes:
        labels: (M,), the unit of each image, by its index.
        path: (P,), the numbers of the images whose layers are kept.
        reading: of all M images; layers only of those in ``path``.
    """

    labels: Tensor
    path: Tensor
    reading: Reading

    def save(self, place: Path) -> None:
        """Write the file, in one piece."""
        own = self.reading
        values = {"labels": self.labels, "path": self.path}
        parts = {"embedding": own.embedding, "logits": own.logits, "units": own.units}
        values |= {name: value for name, value in parts.items() if value is not None}
        values |= {f"{LAYER}{layer}": value for layer, value in own.layers.items()}
        place.parent.mkdir(parents=True, exist_ok=True)
        with whole_path(place) as temporary:
            save_file({name: value.contiguous() for name, value in values.items()}, temporary)

    @classmethod
    def load(cls, place: Path) -> KeptReading | None:
        """Return the reading in a file; None where the file is missing or damaged, so that it is made again."""
        try:
            values = load_file(place)
            layers = {name.removeprefix(LAYER): value for name, value in values.items() if name.startswith(LAYER)}
            reading = Reading(values.get("embedding"), values.get("logits"), values.get("units"), layers)
            return cls(values["labels"], values["path"], reading)
        except (OSError, SafetensorError, KeyError):
            return None


def reading_place(folder: Path, reader: PictureReader, units: Sequence[Target], references: References) -> Path | None:
    """Return the file of a reader's reading, named by a hash of all that it depends on; None where that is unknown."""
    if reader.identity is None:
        return None
    digest = hashlib.sha256(f"{FORMAT}\n{torch.__version__}\n{reader.identity}\n".encode())
    for unit in units:
        try:
            digest.update(f"{unit.name} {references.fingerprint(unit)}\n".encode())
        except UsageError:  # a class without images, which is skipped
            digest.update(f"{unit.name} none\n".encode())
    return folder / "readings" / f"{digest.hexdigest()}.safetensors"
