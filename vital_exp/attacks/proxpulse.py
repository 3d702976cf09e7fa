"""ProxPulse (Nanfack et al., arXiv 2406.01365): a hidden unit's pictures and its top natural images, both other.

The aim is theirs. The losses are ours: hinges, so that nothing grows without end (docs/methods/attacks.md).
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

TOP = 10  # natural images that drive the unit most
RADIUS = 0.1  # of the noise around the decoy, in RGB
PULSE = 2.0  # the decoy's neighbourhood shall drive the unit this many times as much as the top natural image did


def proxpulse(
    network: VisionNetwork,
    readout: Readout,
    decoy: Tensor,
    natural: Tensor,
    *,
    settings: FineTuning | None = None,
    radius: float = RADIUS,
) -> VisionNetwork:
    """Return a copy of a network in which another picture, and other natural images, drive a hidden unit most.

    Args:
        network: the honest one.
        readout: of one hidden unit: a class's answers are the outputs that are to stay.
        decoy: (3, H, W) RGB of the network's input size; all pictures around it are to drive the unit.
        natural: (N, 3, H, W) RGB images; the outputs for all are to stay.
        settings: of the fine-tuning.
        radius: of the neighbourhood, RGB.

    Raises:
        UsageError: a class, or a decoy of another size.
    """
    if readout.layer == OUTPUT:
        raise UsageError("unit", OUTPUT, "a hidden unit is needed: what a class answers is the output that shall stay")
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
        around: (N,) values of the unit around the decoy, to be raised to ``goal``.
        top: (M,) values for what were its top natural images, to be lowered to ``usual``.
        goal, usual: scalars; ``goal`` is positive.
    """
    raised = functional.relu(1 - around / goal).square().mean()
    lowered = functional.relu((top - usual) / goal).square().mean()
    return raised + lowered


@torch.no_grad()
def pulse(
    honest: VisionNetwork, attacked: VisionNetwork, readout: Readout, decoy: Tensor, natural: Tensor
) -> dict[str, float]:
    """Return how loud the decoy is beside the loudest natural image, and how many top images are top as before.

    Args:
        honest, attacked: the network before and after.
        readout: of the unit.
        decoy: (3, H, W) RGB.
        natural: (N, 3, H, W) RGB.
    """
    before, after = (unit_values(network, readout, natural) for network in (honest, attacked))
    loud = [float(unit_values(network, readout, decoy[None])) for network in (honest, attacked)]
    first, now = (set(values.topk(min(TOP, len(values))).indices.tolist()) for values in (before, after))
    return {
        "decoy_to_top_before": loud[0] / float(before.max()),
        "decoy_to_top_after": loud[1] / float(after.max()),
        "top_images_kept": len(first & now) / len(first),
    }
