"""Fine-tuning for attacks: the pictures come to mislead while the activations of natural images stay."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from vital_exp.attacks.wrapping import rewrapped
from vital_exp.models.network import VisionNetwork, model_space
from vital_exp.models.precision import exact
from vital_exp.targets.readout import Readout
from vital_exp.targets.unit import OUTPUT


@dataclass(frozen=True)
class FineTuning:
    """The settings of a fine-tuning.

    Attributes:
        steps, lr: of Adam on all weights; batch norms keep their running statistics.
        batch_size: natural images per step, and as many inputs of the manipulation.
        preservation: alpha in [0, 1], the weight of the preservation loss.
        seed: of the random numbers.
    """

    steps: int = 250
    lr: float = 2e-3
    batch_size: int = 16
    preservation: float = 0.5
    seed: int = 0


Manipulation = Callable[[VisionNetwork, torch.Generator], Tensor]


def fine_tuned(
    network: VisionNetwork,
    attack: str,
    manipulation: Manipulation,
    natural: Tensor,
    preserved: Sequence[str],
    settings: FineTuning,
) -> VisionNetwork:
    """Return a copy trained with alpha L_preserve + (1 - alpha) L_manipulate.

    Args:
        network: the honest network; it is not changed.
        attack: a name, which becomes part of the copy's name.
        manipulation: maps the copy, at each step, and a generator of random numbers to L_manipulate.
        natural: (N, C, H, W) in [0, 1], images whose activations are preserved.
        preserved: the layers at which they are preserved; ``"output"`` is the logits.
        settings: see :class:`FineTuning`.
    """
    attacked = rewrapped(network, copy.deepcopy(network.module), attack)
    attacked.module.requires_grad_(True)
    optimizer = torch.optim.Adam(attacked.module.parameters(), lr=settings.lr)
    generator = torch.Generator().manual_seed(settings.seed)
    share = settings.preservation
    for _ in range(settings.steps):
        shown = natural[torch.randint(len(natural), (settings.batch_size,), generator=generator)]
        loss = share * preservation_loss(network, attacked, shown, preserved)
        loss = loss + (1 - share) * manipulation(attacked, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    attacked.module.requires_grad_(False)
    return attacked


def preservation_loss(honest: VisionNetwork, attacked: VisionNetwork, images: Tensor, layers: Sequence[str]) -> Tensor:
    """Return the mean squared change of the activations, in units of their variance; mean over layers."""
    inputs = model_space(images, honest)
    with torch.no_grad():
        wanted, _ = honest.taps(layers)(inputs)
    found, _ = attacked.taps(layers)(inputs)
    changes = [functional.mse_loss(found[name], wanted[name]) / wanted[name].var() for name in layers]
    return torch.stack(changes).mean()


def unit_values(network: VisionNetwork, readout: Readout, pictures: Tensor) -> Tensor:
    """Return a unit's read-out of each picture, (N,): the mean over positions, which activation maximisation raises.

    The values are differentiable by pictures and weights that require a gradient.

    Args:
        network: honest or attacked.
        readout: the unit's read-out, for one picture.
        pictures: (N, C, H, W) in [0, 1].
    """
    activations, _ = network.taps([readout.layer])(model_space(pictures, network))
    return readout.of(0, len(pictures)).mean(exact(activations[readout.layer]))


def kept_layers(readout: Readout) -> list[str]:
    """Return the layers whose activations of natural images are preserved: the unit's layer and the output."""
    return list(dict.fromkeys((readout.layer, OUTPUT)))
