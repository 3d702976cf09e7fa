"""What is optimised: an image parameterisation, whose parameters a step changes and whose value is a picture."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from vital_exp.models.network import Preprocessing


class Parameterisation(nn.Module, ABC):
    """A batch of pictures as a function of trainable parameters, the first axis of each parameter being the picture.

    Args:
        preprocessing: the network's, for going between RGB and its normalised space.
    """

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.preprocessing = preprocessing

    @abstractmethod
    def forward(self) -> Tensor:
        """Return the pictures, (N, 3, H, W) RGB; in [0, 1] after :meth:`project`."""

    @abstractmethod
    def network_input(self) -> Tensor:
        """Return the pictures in the network's normalised space, (N, 3, H, W), with a graph to the parameters."""

    def project(self) -> None:
        """Bring the parameters back to what shows a valid picture, in place; called after every step."""
        return
