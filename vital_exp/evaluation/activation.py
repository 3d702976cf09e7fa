"""How strongly pictures drive their units."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vital_exp.evaluation.recognition import PICTURES_PER_PASS
from vital_exp.images.output import resized
from vital_exp.models.network import VisionNetwork, model_space
from vital_exp.models.precision import exact
from vital_exp.references.base import References
from vital_exp.targets.readout import Readout
from vital_exp.targets.unit import OUTPUT, Target


def activation_rows(
    targets: Sequence[Target], activations: Sequence[float], references: References
) -> list[dict[str, float | int | str]]:
    """Return one row per hidden unit: ``activation``, that of its picture, and ``activation_ratio``.

    The ratio is the activation as a share of the unit's largest activation on natural images. It is missing where the
    references were not mined or the largest activation is not positive.
    """
    rows: list[dict[str, float | int | str]] = []
    for target, activation in zip(targets, activations, strict=True):
        row: dict[str, float | int | str] = {"target": target.name, "activation": activation}
        natural = references.largest_activation(target)
        if natural is not None and natural > 0:
            row["activation_ratio"] = activation / natural
        rows.append(row)
    return rows


def shares(activations: Tensor, largest: Tensor) -> Tensor:
    """Return activations as shares of each unit's largest activation on natural images, (N, K).

    Args:
        activations: (N, K), of N pictures in K units.
        largest: (K,), each unit's largest activation on natural images; NaN is returned where it is not positive.
    """
    return torch.where(largest > 0, activations / largest, torch.nan)


def own_first(found: Tensor, own: Tensor) -> Tensor:
    """Return whether each picture drives its own unit most, of all units, (N,): 1 or 0; 1 / k in a tie of k units.

    Ties come from bounded activations: 0, or the bound of a ReLU6. 1 / k is the expectation of a guess.

    Args:
        found: (N, K), the result of :func:`shares`. A unit with NaN does not compete, and its own pictures get NaN.
        own: (N,), the number of each picture's unit.
    """
    mine = found.gather(1, own[:, None])  # (N, 1)
    ahead = (found > mine).any(dim=1)
    level = (found == mine).sum(dim=1)
    first = torch.where(ahead, 0.0, 1 / level.clamp(min=1).to(found))
    return torch.where(mine[:, 0].isnan(), torch.nan, first)


@torch.no_grad()
def unit_activations(network: VisionNetwork, readout: Readout, pictures: Tensor) -> Tensor:
    """Return the activation of each picture in its own target, (N,) float32 on the CPU.

    That is a class's logit, a channel's largest activation over positions, or a neuron's activation at its position.

    Args:
        network: the network that the pictures were made for.
        readout: the targets' read-out, one target per picture.
        pictures: (N, C, H, W) in [0, 1]; for classes they are resized to the network's input size.
    """
    taps = network.taps([readout.layer])
    values = []
    for start in range(0, len(pictures), PICTURES_PER_PASS):
        part = slice(start, start + PICTURES_PER_PASS)
        read = readout.select(range(len(pictures))[part])
        shown = pictures[part]
        if readout.layer == OUTPUT:
            shown = resized(shown, network.preprocessing.size)
        activations, _ = taps(model_space(shown, network))
        values.append(read.value(exact(activations[readout.layer])).float().cpu())
    return torch.cat(values)
