"""Change a network's weights so that its pictures lie while its answers to natural images stay."""

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
    """How long and how strongly.

    Attributes:
        steps, lr: of Adam on all weights; batch norms keep their running statistics.
        batch_size: natural images per step, and as many manipulated ones.
        preservation: alpha, the share of the preservation loss.
        seed: of what is drawn.
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
        network: the honest one, left as it is.
        attack: goes into the name.
        manipulation: maps the network as it is now to L_manipulate; drawn anew at each step.
        natural: (N, 3, H, W) RGB images whose activations are to stay.
        preserved: the layers of these, ``"output"`` for the logits.
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
    """Return the mean over layers of the mean squared change of their activations in units of their variance."""
    inputs = model_space(images, honest)
    with torch.no_grad():
        wanted, _ = honest.taps(layers)(inputs)
    found, _ = attacked.taps(layers)(inputs)
    changes = [functional.mse_loss(found[name], wanted[name]) / wanted[name].var() for name in layers]
    return torch.stack(changes).mean()


def unit_values(network: VisionNetwork, readout: Readout, pictures: Tensor) -> Tensor:
    """Return what a unit reads of each picture, (N,): the mean over positions that activation maximisation maximises.

    Args:
        network: with a graph where its weights or the pictures have one.
        readout: of one picture.
        pictures: (N, 3, H, W) RGB.
    """
    activations, _ = network.taps([readout.layer])(model_space(pictures, network))
    return readout.of(0, len(pictures)).mean(exact(activations[readout.layer]))


def kept_layers(readout: Readout) -> list[str]:
    """Return what natural images must not change: the unit's layer and the output."""
    return list(dict.fromkeys((readout.layer, OUTPUT)))
