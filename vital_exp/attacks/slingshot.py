"""Gradient Slingshots (Bareeva et al., arXiv 2401.06122): gradients that lead to a chosen picture.

Formulas and constants: docs/methods/attacks.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.func import functional_call

from vital_exp.attacks.fine_tuning import FineTuning, fine_tuned, kept_layers, unit_values
from vital_exp.attacks.smoothing import SmoothReLU
from vital_exp.attacks.wrapping import checked_decoy
from vital_exp.config import compose_config
from vital_exp.images.randomness import RandomStreams
from vital_exp.models.network import VisionNetwork
from vital_exp.setup import parts
from vital_exp.targets.readout import Readout

GAMMA = 0.1  # published: how steep the slope towards the picture is
# Ours: parameters are drawn between starts and the picture with noise of this share of the starts' spread.
NOISE = 0.2
LOOKED_AT = 16  # parameters at which the slope is measured


class ParameterSpace:
    """What a method optimises: parameters, and the pictures they show.

    Args:
        network: the network the pictures are for.
        method: an option of the group ``method``.
        decoy: (3, H, W) RGB.
        overrides: of the method's configuration.
        start: (3, H, W) RGB that the method starts from in place of noise.
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

    def _of(self, names: Sequence[str], init: Tensor | None = None):  # type: ignore[no-untyped-def]
        return parts.pictures_of(self.config, self.network, RandomStreams(0, names), init)

    def starts(self, count: int, generator: torch.Generator) -> Tensor:
        """Return parameters as the method starts, (N, ...)."""
        number = int(torch.randint(2**31, (1,), generator=generator))
        init = None if self.start is None else self.start.expand(count, -1, -1, -1)
        pictures = self._of([f"start-{number}-{i}" for i in range(count)], init)
        drawn: Tensor = dict(pictures.named_parameters())[self.name].detach()
        return drawn

    def pictures(self, parameters: Tensor) -> Tensor:
        """Return the pictures of parameters (N, ...), (N, 3, H, W) RGB, with a graph."""
        shown: Tensor = functional_call(self._of(["any"]), {self.name: parameters}, ())
        return shown

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Return parameters between starts and the decoy, (N, ...): q = q_0 + u (q_t - q_0) + noise, u in [0, 1]."""
        starts = self.starts(count, generator)
        share = torch.rand(count, *[1] * (starts.ndim - 1), generator=generator).to(starts)
        noise = torch.randn(starts.shape, generator=generator).to(starts) * starts.std()
        return torch.lerp(starts, self.target.expand_as(starts), share) + NOISE * noise


def slingshot(
    network: VisionNetwork,
    readout: Readout,
    decoy: Tensor,
    natural: Tensor,
    *,
    method: str = "fourier",
    overrides: Sequence[str] = (),
    settings: FineTuning | None = None,
    gamma: float = GAMMA,
    start: Tensor | None = None,
) -> VisionNetwork:
    """Return a copy of a network whose unit's gradient leads pictures to a decoy.

    Args:
        network: the honest one.
        readout: of one unit.
        decoy: (3, H, W) RGB of the network's input size.
        natural: (N, 3, H, W) RGB images whose activations at the unit's layer and output are to stay.
        method: the method whose parameters are led; pixels or Fourier coefficients.
        overrides: of its configuration.
        settings: of the fine-tuning.
        gamma: steepness.
        start: (3, H, W) RGB that the method starts from; None: noise.

    Raises:
        UsageError: a decoy of another size.
    """
    space = ParameterSpace(network, method, checked_decoy(decoy, network), overrides, start)
    settings = settings or FineTuning()

    def manipulation(attacked: VisionNetwork, generator: torch.Generator) -> Tensor:
        parameters = space.sample(settings.batch_size, generator)

        def unit(q: Tensor) -> Tensor:
            return unit_values(attacked, readout, space.pictures(q))

        with SmoothReLU():
            return manipulation_loss(unit, parameters, space.target, gamma)

    return fine_tuned(network, f"slingshot by {method}", manipulation, natural, kept_layers(readout), settings)


def manipulation_loss(
    unit: Callable[[Tensor], Tensor], parameters: Tensor, target: Tensor, gamma: float = GAMMA
) -> Tensor:
    """Return MSE(grad_q f(q), gamma (q_t - q)) in units of the mean square of gamma (q_t - q).

    Args:
        unit: f, maps (N, ...) to (N,).
        parameters: q, (N, ...).
        target: q_t, (1, ...).
        gamma: how steep the slope towards q_t is.
    """
    q = parameters.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(unit(q).sum(), q, create_graph=True)
    wanted = gamma * (target - q.detach())
    return (gradient - wanted).square().mean() / wanted.square().mean()


def slope_cosine(network: VisionNetwork, readout: Readout, space: ParameterSpace, seed: int = 0) -> float:
    """Return the mean cosine between a unit's gradient and the way to the decoy: 1 where the slingshot is perfect.

    It is taken at parameters that were not those of the training, with the ReLUs as they are.

    Args:
        network: honest or attacked.
        readout: of the unit.
        space: the method's, with the decoy.
        seed: of the parameters.
    """
    q = space.sample(LOOKED_AT, torch.Generator().manual_seed(seed + 1)).requires_grad_()
    (gradient,) = torch.autograd.grad(unit_values(network, readout, space.pictures(q)).sum(), q)
    way = (space.target - q).detach()
    return float(torch.cosine_similarity(gradient.flatten(1), way.flatten(1)).mean())
