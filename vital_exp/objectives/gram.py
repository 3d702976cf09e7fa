"""The references' mean Gram matrices: constants of the optimisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor

from vital_exp.models.network import model_space
from vital_exp.objectives.distances import gram_matrix
from vital_exp.objectives.terms import Problem
from vital_exp.references.statistics import IMAGES_PER_PASS, features_of
from vital_exp.relevance.weights import spatial_masks
from vital_exp.targets.unit import Target


def mean_grams(problem: Problem, layers: Sequence[str]) -> dict[str, Tensor]:
    """Return the mean Gram matrix of each target's references, by layer: (N, C, C) float32, on the network's device.

    For hidden units the features are multiplied by their relevance masks, as for the quantiles.
    """
    references, device = problem.statistics.references, problem.network.device
    # Targets with the same references share a matrix: most variations of a unit, and the copies that pad a batch.
    keys = [(replace(target, variation=1), references.fingerprint(target)) for target in problem.targets]
    found: dict[tuple[Target, str], dict[str, Tensor]] = {}
    for number, key in enumerate(keys):
        if key not in found:
            found[key] = _of_target(problem, layers, number)
    return {layer: torch.stack([found[key][layer] for key in keys]).to(device) for layer in layers}


@torch.no_grad()
def _of_target(problem: Problem, layers: Sequence[str], number: int) -> dict[str, Tensor]:
    """Return the mean Gram matrix of one target's references by layer, (C, C) float32, on the CPU."""
    statistics = problem.statistics
    images = statistics.references.images(problem.targets[number])
    sums: dict[str, Tensor] = {}
    count = 0
    while chunk := list(islice(images, IMAGES_PER_PASS)):
        pictures = model_space(torch.stack(chunk), problem.network)
        relevance = problem.relevance
        read = relevance.readout.of(number, len(chunk), strongest=True) if relevance else None
        features, maps, _ = features_of(problem.network, layers, pictures, relevance, read)
        for layer, values in features.items():
            masked = values * spatial_masks(maps[layer]).to(values) if layer in maps else values
            total = gram_matrix(masked).sum(dim=0).cpu().double()  # (C, C)
            sums[layer] = sums[layer] + total if layer in sums else total
        count += len(chunk)
    return {layer: (total / count).float() for layer, total in sums.items()}
