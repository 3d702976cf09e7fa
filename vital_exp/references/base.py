"""What every source of reference images offers: the images of a target, streamed, and a fingerprint of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from torch import Tensor

from vital_exp.targets.unit import Target


class References(Protocol):
    """Natural images that show what a target responds to."""

    def images(self, target: Target) -> Iterator[Tensor]:
        """Yield the target's reference images one by one, each (3, H, W) RGB in [0, 1] at the network's input size."""
        ...

    def fingerprint(self, target: Target) -> str:
        """Return a hexadecimal hash that changes when the target's reference images change; keys the disk cache."""
        ...

    def class_indices(self) -> list[int] | None:
        """Return the classes that have images, ascending; None when the images serve any target."""
        ...
