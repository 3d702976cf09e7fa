"""Pictures as plain pixels in the network's normalised space, as VITAL publishes them (arXiv 2503.22399)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vital_exp.images.parameterisation import Parameterisation, within_range
from vital_exp.images.randomness import RandomStreams
from vital_exp.models.network import Preprocessing


class Pixels(Parameterisation):
    """One parameter per pixel and channel; starts from N(0, I) in normalised space and is clamped to RGB in [0, 1].

    Args:
        preprocessing: the network's.
        size: (height, width) of the pictures.
        streams: the random streams of the pictures, for the start.
        init: pictures to start from instead of noise, (N, C, H, W) normalised; not clamped.

    Examples:
        >>> from vital_exp.images.pixels import Pixels
        >>> from vital_exp.images.randomness import RandomStreams
        >>> from vital_exp.models.network import Preprocessing
        >>> same = Preprocessing(mean=(0.0,) * 3, std=(1.0,) * 3, size=(8, 8))
        >>> image = Pixels(preprocessing=same, streams=RandomStreams(0, ["class-0"]), size=(8, 8))
        >>> image.project()
        >>> image().shape, float(image().detach().min()) >= 0
        (torch.Size([1, 3, 8, 8]), True)
    """

    def __init__(
        self,
        preprocessing: Preprocessing,
        size: tuple[int, int],
        streams: RandomStreams,
        init: Tensor | None = None,
    ) -> None:
        super().__init__(preprocessing)
        start = streams.normal((self.channels, *size), "start") if init is None else init.clone()
        self.pixels = nn.Parameter(start)  # (N, C, H, W)

    def forward(self) -> Tensor:
        """Return the pictures, (N, C, H, W) RGB or grey; values may lie outside [0, 1] before :meth:`project`."""
        return self.preprocessing.denormalise(self.pixels)

    def network_input(self) -> Tensor:
        """Return the parameters themselves, (N, C, H, W): they are in the network's normalised space."""
        return self.pixels

    def followed(self, pictures: Tensor, gradient: Tensor) -> Tensor:
        """Return the projected gradient: 0 where a pixel at a bound would leave the valid range by a descent step."""
        return within_range(self.preprocessing, pictures, gradient)

    @torch.no_grad()
    def project(self) -> None:
        """Clamp every channel to the normalised values of RGB 0 and 1."""
        self.pixels.clamp_(*self.preprocessing.valid_range(self.pixels))
