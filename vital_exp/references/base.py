"""The interface of every source of reference images: it streams the images of a target and fingerprints them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from vital_exp.targets.class_names import ClassNames
from vital_exp.targets.unit import Target

PER_TARGET = 50  # references, as in VITAL's paper; conf/references says the same


class References(Protocol):
    """Natural images that show what a target responds to; the last two members have defaults for sources to inherit."""

    def images(self, target: Target) -> Iterator[Tensor]:
        """Yield the target's reference images one by one, each (3, H, W) RGB in [0, 1] at the network's input size."""
        ...

    def fingerprint(self, target: Target) -> str:
        """Return a hexadecimal hash that changes when the target's reference images change; keys the disk cache."""
        ...

    def class_indices(self) -> list[int] | None:
        """Return the classes that have images, ascending; None when the images serve any target."""
        ...

    @property
    def class_names(self) -> ClassNames | None:
        """The class names that the source knows; None where the network's own names are used."""
        return None

    def largest_activation(self, target: Target) -> float | None:
        """Return a unit's largest activation among the mined images; None for references that are not mined.

        Raises:
            UsageError: the index holds other units, but not this one.
        """
        return None


@dataclass(frozen=True)
class Candidate:
    """An image that competes for the facets of a unit.

    Attributes:
        name: how the user recognises the image: its path, or its place in a tensor.
        load: returns the image, (3, H, W) RGB in [0, 1].
        shared: a key that is the same for every unit that this image competes for, so that the image is embedded once;
            None for an image of this unit alone.
        strength: the unit's read-out of the image, as a share of its read-out of the strongest image; 1 where unknown.
    """

    name: str | int
    load: Callable[[], Tensor]
    shared: str | int | None = None
    strength: float = 1.0


class Competing(References, Protocol):
    """References whose images can be clustered."""

    def candidates(self, target: Target) -> list[Candidate]:
        """Return the images that compete for a unit's facets, the strongest first where strengths are known."""
        ...

    def competition(self, target: Target) -> dict[str, object]:
        """Return the settings that decide which images compete, ready for JSON; no image is looked up."""
        ...
