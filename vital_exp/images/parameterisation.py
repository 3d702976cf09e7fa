"""The base class of image parameterisations: pictures as functions of the parameters that are optimised."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from vital_exp.models.network import Preprocessing

# The C library (glibc) asks the system for each larger block anew, which takes longer than the arithmetic on the block.
LARGEST_BLOCK = 2**25  # bytes


def by_picture(function: Callable[..., Tensor], *values: Tensor) -> Tensor:
    """Return ``function(*values)`` of tensors (N, ...); on a CPU, large pictures are computed one by one."""
    first = values[0]
    if first.device.type != "cpu" or len(first) == 1 or first.numel() * first.element_size() <= LARGEST_BLOCK:
        return function(*values)
    return torch.cat([function(*one) for one in zip(*(value.split(1) for value in values), strict=True)])


def within_range(preprocessing: Preprocessing, pictures: Tensor, gradient: Tensor) -> Tensor:
    """Return the gradient (N, C, H, W), set to 0 where a pixel at a bound would leave the valid range by a descent."""
    low, high = preprocessing.valid_range(pictures)
    leaves = ((pictures <= low) & (gradient > 0)) | ((pictures >= high) & (gradient < 0))
    return gradient.masked_fill(leaves, 0)


class Parameterisation(nn.Module, ABC):
    """N pictures as a function of trainable parameters; the first axis of each parameter counts the pictures.

    A picture has as many channels as the network's mean has values: 3 for RGB, 1 for grey.

    Args:
        preprocessing: the network's, which converts between RGB and the network's normalised space.
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

        The part is at most as large as the gradient. It is small or 0 where a picture is at its bounds, so that no
        descent step changes the picture. The linear parts of a parameterisation (frequency scale, colour matrix) do not
        count: they only make steps longer or shorter, which an optimiser such as Adam evens out.

        Args:
            pictures: the network's input, without a graph.
            gradient: of the loss with respect to the pictures.
        """

    def project(self) -> None:
        """Change the parameters in place so that they show a valid picture; called after every step."""
        return
