"""No reference images: enough for methods that look at none."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NoReturn

from torch import Tensor

from vital_exp.errors import UsageError
from vital_exp.references.base import References
from vital_exp.targets.unit import Target


class NoReferences(References):
    """Stands in for references when no folder is named; whoever asks for an image is told to name one.

    Args:
        wanted: what kind of folder is needed.
    """

    def __init__(self, wanted: str) -> None:
        self.wanted = wanted

    def images(self, target: Target) -> Iterator[Tensor]:
        """Raise UsageError: a folder is needed."""
        self._refuse()

    def fingerprint(self, target: Target) -> str:
        """Raise UsageError: a folder is needed."""
        self._refuse()

    def class_indices(self) -> None:
        """Return None: no class is missing more than another."""

    def _refuse(self) -> NoReturn:
        raise UsageError("references.root", None, self.wanted)
