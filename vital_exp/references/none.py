"""A stand-in for reference images, for methods that need none."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NoReturn

from torch import Tensor

from vital_exp.errors import UsageError
from vital_exp.references.base import References
from vital_exp.targets.unit import Target


class NoReferences(References):
    """Stands in for references when no folder is named; asking for an image raises an error that asks for a folder.

    Args:
        wanted: the text of the error: which folder is needed.
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
        """Return None: no class is ruled out."""

    def _refuse(self) -> NoReturn:
        raise UsageError("references.root", None, self.wanted)
