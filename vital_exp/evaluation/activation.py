"""How strongly pictures drive the units they were made for."""

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
    """Return one row per hidden unit: its activation by its picture, and that as a share of its largest natural one.

    The share, ``activation_ratio``, is there when the references are mined and the largest natural activation is
    positive.
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
    """Return activations as shares of each unit's largest natural one; NaN where that is not positive.

    Args:
        activations: (N, K), of K units by N pictures.
        largest: (K,) of natural images.
    """
    return torch.where(largest > 0, activations / largest, torch.nan)


def own_first(found: Tensor, own: Tensor) -> Tensor:
    """Return whether each picture drives its own unit furthest, (N,): 1, 0, or one in k where k units share the lead.

    They share it where their activation is bounded, by a ReLU6 or at 0: who leads is then a guess among them.

    Args:
        found: (N, K) of :func:`shares`; units that are NaN do not compete, and have NaN themselves.
        own: (N,) the number of each picture's unit.
    """
    mine = found.gather(1, own[:, None])  # (N, 1)
    ahead = (found > mine).any(dim=1)
    level = (found == mine).sum(dim=1)
    first = torch.where(ahead, 0.0, 1 / level.clamp(min=1).to(found))
    return torch.where(mine[:, 0].isnan(), torch.nan, first)


@torch.no_grad()
def unit_activations(network: VisionNetwork, readout: Readout, pictures: Tensor) -> Tensor:
    """Return what each picture's own target reads of it, (N,) float32 on the CPU.

    A class's logit; a channel's spatial maximum; a neuron's activation at its position.

    Args:
        network: the network the pictures were made for.
        readout: one target per picture.
        pictures: (N, 3, H, W) RGB in [0, 1]; class units see them at the network's input size.
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
