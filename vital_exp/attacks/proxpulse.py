"""ProxPulse (Nanfack et al., arXiv 2406.01365): changes both the pictures and the top natural images of a hidden unit.

The aim is the paper's. The losses are ours, hinges, so that activations do not grow without bound:
docs/methods/attacks.md.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from vital_exp.attacks.fine_tuning import FineTuning, fine_tuned, unit_values
from vital_exp.attacks.wrapping import checked_decoy
from vital_exp.errors import UsageError
from vital_exp.models.network import VisionNetwork
from vital_exp.targets.readout import Readout
from vital_exp.targets.unit import OUTPUT

TOP = 10  # top natural images: those that drive the unit most
RADIUS = 0.1  # of the neighbourhood of the decoy, in [0, 1] RGB, largest absolute difference
PULSE = 2.0  # aim for the neighbourhood, as a multiple of the honest unit's largest value on natural images


def proxpulse(
    network: VisionNetwork,
    readout: Readout,
    decoy: Tensor,
    natural: Tensor,
    *,
    settings: FineTuning | None = None,
    radius: float = RADIUS,
) -> VisionNetwork:
    """Return a copy of a network in which a decoy and other natural images than before drive a hidden unit most.

    Args:
        network: the honest network.
        readout: a hidden unit's read-out.
        decoy: (C, H, W) in [0, 1] of the network's input size; all images near it are to drive the unit.
        natural: (N, C, H, W) in [0, 1], natural images whose outputs the training preserves.
        settings: the settings of the fine-tuning.
        radius: of the neighbourhood of the decoy, in [0, 1] RGB.

    Raises:
        UsageError: the unit is a class, or the decoy has another size.
    """
    if readout.layer == OUTPUT:
        raise UsageError("unit", OUTPUT, "a hidden unit is needed: ProxPulse preserves the outputs of all classes")
    checked_decoy(decoy, network)
    with torch.no_grad():
        values = unit_values(network, readout, natural)
    order = values.argsort(descending=True)
    top, usual, goal = natural[order[:TOP]], values.median(), PULSE * values.max().abs()
    settings = settings or FineTuning()

    def manipulation(attacked: VisionNetwork, generator: torch.Generator) -> Tensor:
        noise = 2 * torch.rand(settings.batch_size, *decoy.shape, generator=generator) - 1
        around = (decoy + radius * noise).clamp(0, 1)
        return proxpulse_loss(unit_values(attacked, readout, around), unit_values(attacked, readout, top), goal, usual)

    return fine_tuned(network, "proxpulse", manipulation, natural, [OUTPUT], settings)


def proxpulse_loss(around: Tensor, top: Tensor, goal: Tensor, usual: Tensor) -> Tensor:
    """Return mean ReLU(1 - f(decoy) / goal)^2 + mean ReLU((f(top) - usual) / goal)^2.

    Args:
        around: (N,), the unit's values near the decoy, to be raised to ``goal``.
        top: (M,), its values on the honest network's top natural images, to be lowered to ``usual``.
        goal, usual: scalars, ``goal`` positive.
    """
    raised = functional.relu(1 - around / goal).square().mean()
    lowered = functional.relu((top - usual) / goal).square().mean()
    return raised + lowered


@torch.no_grad()
def pulse(
    honest: VisionNetwork, attacked: VisionNetwork, readout: Readout, decoy: Tensor, natural: Tensor
) -> dict[str, float]:
    """Return the unit's value on the decoy over its largest on natural images, and the share of top images that stay.

    Keys: ``decoy_to_top_before``, ``decoy_to_top_after``, ``top_images_kept``.

    Args:
        honest, attacked: the network before and after.
        readout: the unit's read-out.
        decoy: (C, H, W) in [0, 1].
        natural: (N, C, H, W) in [0, 1].
    """
    before, after = (unit_values(network, readout, natural) for network in (honest, attacked))
    on_decoy = [float(unit_values(network, readout, decoy[None])) for network in (honest, attacked)]
    first, now = (set(values.topk(min(TOP, len(values))).indices.tolist()) for values in (before, after))
    return {
        "decoy_to_top_before": on_decoy[0] / float(before.max()),
        "decoy_to_top_after": on_decoy[1] / float(after.max()),
        "top_images_kept": len(first & now) / len(first),
    }
