"""Pictures that grow: smaller in the first steps, where a step costs less (docs/methods/images.md)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vital_exp.configuration import Configuration
from vital_exp.errors import UsageError
from vital_exp.images.fourier import Fourier
from vital_exp.images.randomness import RandomStreams
from vital_exp.images.transforms import Compose
from vital_exp.models.network import VisionNetwork
from vital_exp.models.refusals import takes_size
from vital_exp.values import number

FROM, UNTIL = "image.grow_from", "image.grow_until"


@dataclass(frozen=True)
class Growth:
    """Smaller pictures at first.

    Attributes:
        share: side of the small pictures as a share of the pictures' own side.
        until: the first step at which the network sees the pictures at their own size.
    """

    share: float
    until: int

    def size(self, whole: tuple[int, int]) -> tuple[int, int]:
        """Return the (height, width) of the small pictures, for that of the pictures."""
        height, width = (max(1, round(side * self.share)) for side in whole)
        return height, width


def growth_of(
    config: Configuration, network: VisionNetwork, transform: Compose, whole: tuple[int, int]
) -> Growth | None:
    """Return how the pictures grow; None where they have their own size from the first step on.

    Args:
        config: composed.
        network: sees the small pictures.
        transform: between the pictures and the network.
        whole: (height, width) of the pictures.

    Raises:
        UsageError: a share that is not allowed; pictures that are no Fourier coefficients; a target, transform or
            network that needs pictures of one size.
    """
    share, until = config.image.get("grow_from"), config.image.get("grow_until")
    if share is None:
        return None
    number(FROM, share, 0)
    number(UNTIL, until, 0, 1)
    if not 0 < share < 1:
        raise UsageError(FROM, share, "above 0 and below 1, a share of the pictures' side; null for none")
    growth = Growth(float(share), min(max(1, round(until * config.steps)), config.steps - 1))
    if growth.until < 1:
        return None  # a single step shows the whole picture
    _check(config, network, transform, growth.size(whole), whole)
    return growth


def _check(
    config: Configuration, network: VisionNetwork, transform: Compose, small: tuple[int, int], whole: tuple[int, int]
) -> None:
    if config.image.get("_target_") != f"{Fourier.__module__}.{Fourier.__qualname__}":
        raise UsageError(FROM, config.image.grow_from, "image=fourier alone: its coefficients are the same at any size")
    if config.target.kind == "neuron":
        raise UsageError(FROM, config.image.grow_from, "null: a neuron's position is one of the map at one size")
    seen = [
        tuple(transform(network.blank(size=size), RandomStreams(0, ["size"]), 0).shape[-2:]) for size in (small, whole)
    ]
    if seen[0] == seen[1]:
        raise UsageError(
            FROM, config.image.grow_from, f"null: the transforms bring pictures of any size to {seen[0]} px"
        )
    with torch.no_grad():
        if not takes_size(network, seen[0]):
            text = f"null: {network.name} does not take pictures of {seen[0][0]}x{seen[0][1]} px"
            raise UsageError(FROM, config.image.grow_from, text)
