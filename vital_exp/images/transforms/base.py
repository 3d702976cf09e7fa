"""The interface of a transform, and the composition of several."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from vital_exp.images.randomness import RandomStreams
from vital_exp.values import sides

# The side in px of the pictures that published amounts are for; other sizes use the same share of their side.
PUBLISHED_SIDE = 224
OUTSIDE = ("grey", "reflect", "edge")  # the values beyond a picture's border


class Transform(Protocol):
    """Maps normalised pictures (N, C, H, W) to transformed pictures, whose size may differ.

    A step of a target always draws the same numbers, whatever other targets are in the batch. The values beyond a
    picture's border are ``"grey"``: 0, the mean colour of natural images in the network's normalised space;
    ``"reflect"``: the picture mirrored at its border; or ``"edge"``: the nearest pixel of the border.
    """

    def __call__(self, pictures: Tensor, streams: RandomStreams, step: int) -> Tensor:
        """Return the transformed pictures."""
        ...


class Resizing:
    """A transform that decides the pictures' size.

    Args:
        size: side or (height, width) of the result. None: the network's input size, which :class:`Compose` fills in;
            the pictures' own size where there is no network.
        key: the configuration key of the size, for messages.
    """

    def __init__(self, size: object, key: str) -> None:
        self.size = None if size is None else sides(key, size)

    def size_of(self, pictures: Tensor) -> tuple[int, int]:
        """Return the (height, width) that these pictures are resized to."""
        return self.size or (pictures.shape[-2], pictures.shape[-1])


class TakesViews:
    """A transform that makes several views of each picture itself; for other transforms the pictures are repeated."""


class Compose:
    """Applies transforms in the order of the configuration.

    Args:
        transforms: by name. Two transforms of the same class draw different numbers.
        input_size: (height, width) of the network's input, for transforms whose size is None.
    """

    def __init__(self, transforms: Mapping[str, Transform], input_size: tuple[int, int] | None = None) -> None:
        self.transforms = dict(transforms)
        for transform in self.transforms.values():
            if isinstance(transform, Resizing) and transform.size is None:
                transform.size = input_size

    def __call__(self, pictures: Tensor, streams: RandomStreams, step: int) -> Tensor:
        """Return the pictures after all transforms, one for each stream.

        Args:
            pictures: (N, C, H, W).
            streams: of the N pictures, or of several views of each, view by view.
            step: of the optimisation, from 0.
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
    """Return one picture for each stream: pictures (N, C, H, W), repeated view by view."""
    views = len(streams.names) // len(pictures)
    return pictures if views == 1 else pictures.repeat(views, 1, 1, 1)


def scaled_pixels(pixels: int, pictures: Tensor) -> int:
    """Return an amount in pixels, published for pictures of 224 px, scaled to the size of these and rounded down."""
    return pixels * min(pictures.shape[-2:]) // PUBLISHED_SIDE
