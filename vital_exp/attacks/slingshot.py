"""Gradient Slingshots (Bareeva et al., arXiv 2401.06122): gradients of the activation that lead to a decoy.

Formulas and constants: docs/methods/attacks.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vital_exp.attacks.fine_tuning import FineTuning, fine_tuned, kept_layers, unit_values
from vital_exp.attacks.parameter_space import LOOKED_AT, ParameterSpace
from vital_exp.attacks.smoothing import SmoothReLU
from vital_exp.attacks.wrapping import checked_decoy
from vital_exp.models.network import VisionNetwork
from vital_exp.targets.readout import Readout

GAMMA = 0.1  # published: the wanted gradient, as a multiple of the way to the decoy


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
        network: the honest network.
        readout: one unit's read-out.
        decoy: (C, H, W) in [0, 1] of the network's input size.
        natural: (N, C, H, W) in [0, 1], images whose activations at the unit's layer and the output are preserved.
        method: the method whose parameters (pixels, Fourier coefficients) the gradient leads to the decoy.
        overrides: of the method's configuration.
        settings: the settings of the fine-tuning.
        gamma: see :func:`manipulation_loss`.
        start: (C, H, W) in [0, 1], the image that the method starts from; None: noise.

    Raises:
        UsageError: the decoy has another size.
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
        unit: f, maps parameters (N, ...) to the unit's values (N,).
        parameters: q, (N, ...).
        target: q_t, (1, ...), the parameters of the decoy.
        gamma: the wanted gradient, as a multiple of q_t - q.
    """
    q = parameters.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(unit(q).sum(), q, create_graph=True)
    wanted = gamma * (target - q.detach())
    return (gradient - wanted).square().mean() / wanted.square().mean()


def slope_cosine(network: VisionNetwork, readout: Readout, space: ParameterSpace, seed: int = 0) -> float:
    """Return the mean cosine between a unit's gradient and the way to the decoy: 1 for a perfect slingshot.

    It is measured at parameters that the training did not use, with the network's ReLUs, not smooth ones.

    Args:
        network: honest or attacked.
        readout: the unit's read-out.
        space: the parameters of the method under attack, and the decoy's.
        seed: of the sampled parameters.
    """
    q = space.sample(LOOKED_AT, torch.Generator().manual_seed(seed + 1)).requires_grad_()
    (gradient,) = torch.autograd.grad(unit_values(network, readout, space.pictures(q)).sum(), q)
    way = (space.target - q).detach()
    return float(torch.cosine_similarity(gradient.flatten(1), way.flatten(1)).mean())
