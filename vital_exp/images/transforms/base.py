"""What a transform is, and how several follow each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from vital_exp.images.randomness import RandomStreams
from vital_exp.values import sides

# Published amounts in pixels are for pictures of this side; other sizes take the same share of their side.
PUBLISHED_SIDE = 224
OUTSIDE = ("grey", "reflect", "edge")  # what comes from beyond a picture's border


class Transform(Protocol):
    """Maps normalised pictures (N, C, H, W) to transformed ones, which may have another size.

    The same step of the same target draws the same numbers, whatever else is in the batch. What comes from beyond a
    picture's border is ``"grey"``, the value 0, which in the network's normalised space is the mean colour of natural
    images; ``"reflect"``, the picture mirrored at its border; or ``"edge"``, its border's own colour.
    """

    def __call__(self, pictures: Tensor, streams: RandomStreams, step: int) -> Tensor:
        """Return the transformed pictures."""
        ...


class Resizing:
    """A transform that decides the pictures' size.

    Args:
        size: side or (height, width) of what comes out; None for the network's input size, which :class:`Compose` is
            told, or the pictures' own where there is no network.
        key: of the size in mistakes.
    """

    def __init__(self, size: object, key: str) -> None:
        self.size = None if size is None else sides(key, size)

    def size_of(self, pictures: Tensor) -> tuple[int, int]:
        """Return the (height, width) these pictures get."""
        return self.size or (pictures.shape[-2], pictures.shape[-1])


class TakesViews:
    """A transform that takes N pictures with the streams of several views of each; others get the pictures repeated."""


class Compose:
    """Applies transforms in the order of their names' appearance in the configuration.

    Args:
        transforms: by name. Two of the same kind draw different numbers.
        input_size: (height, width) of the network's input, for those that leave the size open.
    """

    def __init__(self, transforms: Mapping[str, Transform], input_size: tuple[int, int] | None = None) -> None:
        self.transforms = dict(transforms)
        for transform in self.transforms.values():
            if isinstance(transform, Resizing) and transform.size is None:
                transform.size = input_size

    def __call__(self, pictures: Tensor, streams: RandomStreams, step: int) -> Tensor:
        """Return the pictures after every transform.

        Args:
            pictures: (N, C, H, W).
            streams: of the N pictures, or of several views of each, view by view.
            step: of the optimisation.
        """
        seen: Counter[type] = Counter()
        for transform in self.transforms.values():
            earlier = seen[type(transform)]
            seen[type(transform)] += 1
            if not isinstance(transform, TakesViews):
                pictures = _repeated(pictures, streams)
            pictures = transform(pictures, streams.branched(f"again {earlier}") if earlier else streams, step)
        return _repeated(pictures, streams)


def _repeated(pictures: Tensor, streams: RandomStreams) -> Tensor:
    """Return one picture for each of the streams, from pictures (N, C, H, W) of which each has as many views."""
    views = len(streams.names) // len(pictures)
    return pictures if views == 1 else pictures.repeat(views, 1, 1, 1)


def scaled_pixels(pixels: int, pictures: Tensor) -> int:
    """Return an amount published for pictures of 224 px at the size of these, rounded down."""
    return pixels * min(pictures.shape[-2:]) // PUBLISHED_SIDE
