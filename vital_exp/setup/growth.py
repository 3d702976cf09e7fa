"""Pictures that grow: smaller in the first steps, where a step costs less (docs/methods/images.md)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vital_exp.configuration import Configuration
from vital_exp.errors import UsageError
from vital_exp.images.fourier import Fourier
from vital_exp.images.output import scaled_size
from vital_exp.images.randomness import RandomStreams
from vital_exp.images.transforms import Compose
from vital_exp.models.network import VisionNetwork
from vital_exp.models.refusals import takes_size
from vital_exp.setup.checks import check_growing, pair

FROM = "image.grow_from"


@dataclass(frozen=True)
class Growth:
    """Smaller pictures at first.

    Attributes:
        share: side of the small pictures, as a share of the pictures' own side.
        until: the first step at which the network sees the pictures at their own size.
    """

    share: float
    until: int

    def size(self, whole: tuple[int, int]) -> tuple[int, int]:
        """Return the (height, width) of the small pictures in px, for that of the pictures."""
        return scaled_size(whole, self.share)


def growth_of(config: Configuration) -> Growth | None:
    """Return how the pictures grow; None where they have their own size from the first step on.

    Raises:
        UsageError: a share that is not allowed.
    """
    check_growing(config)
    share = config.image.get("grow_from")
    if share is None:
        return None
    until = min(max(1, round(config.image.grow_until * config.steps)), config.steps - 1)
    return Growth(float(share), until) if until else None  # a single step shows the whole picture


def check_growth(config: Configuration, network: VisionNetwork, transform: Compose, whole: tuple[int, int]) -> None:
    """Make sure that pictures, target, transforms and network exist at two sizes, before anything is computed.

    Args:
        config: the composed configuration.
        network: the network that sees the pictures.
        transform: the transforms between the pictures and the network.
        whole: (height, width) of the pictures in px.

    Raises:
        UsageError: the first of them that needs one size; a share that is not allowed.
    """
    if growth := growth_of(config):
        _check_kind(config, growth, whole)
        _check_sizes(config, network, transform, growth, whole)


def _check_kind(config: Configuration, growth: Growth, whole: tuple[int, int]) -> None:
    """Make sure that pictures and targets exist at two sizes."""
    if config.image.get("_target_") != f"{Fourier.__module__}.{Fourier.__qualname__}":
        raise UsageError(FROM, growth.share, "image=fourier alone: its coefficients are the same at any size")
    if config.target.kind == "neuron":
        raise UsageError(FROM, growth.share, "null: a neuron's position is one of the map at one size")
    if growth.size(whole) == whole:
        raise UsageError(FROM, growth.share, f"smaller: this share of {whole} px is the whole side")


def _check_sizes(
    config: Configuration, network: VisionNetwork, transform: Compose, growth: Growth, whole: tuple[int, int]
) -> None:
    """Make sure that the network takes small pictures and small references."""
    small, streams = growth.size(whole), RandomStreams(0, ["size"])
    seen, seen_whole = (tuple(transform(network.blank(size=size), streams, 0).shape[-2:]) for size in (small, whole))
    if seen == seen_whole:
        raise UsageError(FROM, growth.share, f"null: the transforms bring pictures of any size to {seen} px")
    references = growth.size(pair(config.references.size, "references.size", network.preprocessing.size))
    for height, width in dict.fromkeys((seen, references)):
        with torch.no_grad():
            if not takes_size(network, (height, width)):
                text = f"null: {network.name} does not take pictures of {height}x{width} px"
                raise UsageError(FROM, growth.share, text)
