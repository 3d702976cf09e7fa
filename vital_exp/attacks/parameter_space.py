"""A method's parameters, their pictures, and the parameters that an attacker samples between start and decoy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.func import functional_call

from vital_exp.config import compose_config
from vital_exp.images.parameterisation import Parameterisation
from vital_exp.images.randomness import RandomStreams
from vital_exp.models.network import VisionNetwork
from vital_exp.setup import parts

NOISE = 0.2  # standard deviation of the noise on sampled parameters, as a share of the starts' (ours)
LOOKED_AT = 16  # sampled parameters at which a gradient is compared with the way to the decoy


class ParameterSpace:
    """The parameters that a method optimises, and the pictures that they parameterise.

    Args:
        network: the network that the pictures are made for.
        method: an option of the group ``method``.
        decoy: (C, H, W) in [0, 1].
        overrides: of the method's configuration.
        start: (C, H, W) in [0, 1], the image that the method starts from; None: noise.
    """

    def __init__(
        self,
        network: VisionNetwork,
        method: str,
        decoy: Tensor,
        overrides: Sequence[str] = (),
        start: Tensor | None = None,
    ) -> None:
        self.network, self.start = network, start
        self.config = compose_config(["model=python", f"method={method}", *overrides])
        target = self._of(["decoy"], decoy[None])
        ((self.name, parameter),) = target.named_parameters()
        self.target = parameter.detach()  # q_t, (1, ...)

    def _of(self, names: Sequence[str], init: Tensor | None = None) -> Parameterisation:
        return parts.pictures_of(self.config, self.network, RandomStreams(0, names), init)

    def starts(self, count: int, generator: torch.Generator) -> Tensor:
        """Return the parameters of the method's starts, (N, ...)."""
        number = int(torch.randint(2**31, (1,), generator=generator))
        init = None if self.start is None else self.start.expand(count, -1, -1, -1)
        pictures = self._of([f"start-{number}-{i}" for i in range(count)], init)
        drawn: Tensor = dict(pictures.named_parameters())[self.name].detach()
        return drawn

    def pictures(self, parameters: Tensor) -> Tensor:
        """Return the pictures of parameters (N, ...), (N, C, H, W) in [0, 1], differentiable."""
        shown: Tensor = functional_call(self._of(["any"]), {self.name: parameters}, ())
        return shown

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Return parameters between starts and the decoy, (N, ...): q = q_0 + u (q_t - q_0) + noise, u in [0, 1]."""
        starts = self.starts(count, generator)
        share = torch.rand(count, *[1] * (starts.ndim - 1), generator=generator).to(starts)
        noise = torch.randn(starts.shape, generator=generator).to(starts) * starts.std()
        return torch.lerp(starts, self.target.expand_as(starts), share) + NOISE * noise
