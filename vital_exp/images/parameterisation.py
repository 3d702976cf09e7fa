"""What is optimised: an image parameterisation, whose parameters a step changes and whose value is a picture."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from vital_exp.models.network import Preprocessing

# glibc takes larger blocks from the system each time anew, which costs more than the arithmetic on them.
LARGEST_BLOCK = 2**25  # bytes


def by_picture(function: Callable[..., Tensor], *values: Tensor) -> Tensor:
    """Return ``function(*values)`` of tensors (N, ...); on a CPU, of large pictures, computed one after the other."""
    first = values[0]
    if first.device.type != "cpu" or len(first) == 1 or first.numel() * first.element_size() <= LARGEST_BLOCK:
        return function(*values)
    return torch.cat([function(*one) for one in zip(*(value.split(1) for value in values), strict=True)])


def within_range(preprocessing: Preprocessing, pictures: Tensor, gradient: Tensor) -> Tensor:
    """Return a gradient (N, C, H, W), but 0 where a pixel is at a bound and a step down would leave the valid range."""
    low, high = preprocessing.valid_range(pictures)
    leaves = ((pictures <= low) & (gradient > 0)) | ((pictures >= high) & (gradient < 0))
    return gradient.masked_fill(leaves, 0)


class Parameterisation(nn.Module, ABC):
    """A batch of pictures as a function of trainable parameters, the first axis of each parameter being the picture.

    A picture has as many channels as the network's mean has values: 3 for RGB, 1 for grey.

    Args:
        preprocessing: the network's, for going between RGB and its normalised space.
    """

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.preprocessing = preprocessing
        self.channels = preprocessing.channels

    @abstractmethod
    def forward(self) -> Tensor:
        """Return the pictures, (N, C, H, W) RGB or grey; in [0, 1] after :meth:`project`."""

    @abstractmethod
    def network_input(self) -> Tensor:
        """Return the pictures in the network's normalised space, (N, C, H, W), with a graph to the parameters."""

    @abstractmethod
    def followed(self, pictures: Tensor, gradient: Tensor) -> Tensor:
        """Return the part of a gradient that the pictures can follow, (N, C, H, W), in the gradient's units.

        It is at most the gradient, and small or 0 where the picture is at its bounds and no step down changes it. What
        is linear in a parameterisation, frequencies and colours, makes steps shorter or longer, which an optimiser such
        as Adam evens out, but forbids none.

        Args:
            pictures: the network's input, without a graph.
            gradient: of the loss in it.
        """

    def project(self) -> None:
        """Bring the parameters back to what shows a valid picture, in place; called after every step."""
        return
