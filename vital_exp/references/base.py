"""What every source of reference images offers: the images of a target, streamed, and a fingerprint of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from vital_exp.targets.class_names import ClassNames
from vital_exp.targets.unit import Target


class References(Protocol):
    """Natural images that show what a target responds to; sources inherit what they do not have."""

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
        """The names that the source itself gives the classes; None: the network's."""
        return None

    def largest_activation(self, target: Target) -> float | None:
        """Return the largest activation of a unit by natural images, where they were mined; None where they were not.

        Raises:
            UsageError: others were mined, not the unit.
        """
        return None


@dataclass(frozen=True)
class Candidate:
    """An image that competes for the facets of a unit.

    Attributes:
        name: what the user knows it by: its path, or its place in a tensor.
        load: returns it, (3, H, W) RGB.
        shared: what it is called for every unit that may have it too; None for an image of this unit alone.
        strength: how far it drives the unit, as a share of what the strongest image does; 1 where that is not known.
    """

    name: str | int
    load: Callable[[], Tensor]
    shared: str | int | None = None
    strength: float = 1.0


class Competing(References, Protocol):
    """References whose images can be clustered."""

    def candidates(self, target: Target) -> list[Candidate]:
        """Return the images of a unit that compete for its facets, the strongest first where there is an order."""
        ...

    def competition(self, target: Target) -> dict[str, object]:
        """Return what decides which images compete, ready for JSON, without finding them."""
        ...
