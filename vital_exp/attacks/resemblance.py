"""How much a picture resembles the decoy and the honest picture: a perceptual distance, and what judges recognise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vital_exp.evaluation.recognition import logits, verdicts
from vital_exp.images.output import resized
from vital_exp.models.layers import alignment
from vital_exp.models.network import Recipe, VisionNetwork, model_space
from vital_exp.models.precision import exact


@torch.no_grad()
def perceptual_distance(network: VisionNetwork, pictures: Tensor, others: Tensor) -> Tensor:
    """Return the distance of each picture from each of the others, (N, M) float32 in [0, 4].

    LPIPS without its learned weights (Zhang et al. 2018, equation 1, w = 1): the activations at each position are
    normalised to unit length over channels; squared differences are averaged over positions, then over layers.

    Args:
        network: its aligned layers are compared.
        pictures, others: (N, C, H, W) and (M, C, H, W) in [0, 1].
    """
    first, second = (_unit_features(network, images) for images in (pictures, others))
    distances = [2 - 2 * torch.einsum("ncp,mcp->nm", a, b) / a.shape[-1] for a, b in zip(first, second, strict=True)]
    return torch.stack(distances).mean(dim=0).clamp(min=0)


def _unit_features(network: VisionNetwork, images: Tensor) -> list[Tensor]:
    """Activations of each aligned layer, (N, C, P), unit vectors over channels."""
    taps = network.taps(list(alignment(network, Recipe()).layers))
    activations, _ = taps(model_space(resized(images, network.preprocessing.size), network))
    return [torch.nn.functional.normalize(exact(a).flatten(2), dim=1).float().cpu() for a in activations.values()]


def opinions(
    judges: Mapping[str, VisionNetwork], pictures: Tensor, own: Sequence[int], decoy: Sequence[int]
) -> list[dict[str, float]]:
    """Return one row per picture: whether and how probably each judge sees the unit's own class, and the decoy's.

    Columns: ``own_top1[judge]``, ``decoy_top1[judge]`` (1 or 0), ``own_probability[judge]``,
    ``decoy_probability[judge]``.

    Args:
        judges: networks by name, the honest one among them, each with a softmax or a sigmoid as its head.
        pictures: (N, C, H, W) in [0, 1].
        own, decoy: class numbers, one per picture.
    """
    rows: list[dict[str, float]] = [{} for _ in pictures]
    for name, judge in judges.items():
        scores = logits(judge, pictures)
        for kind, labels in (("own", own), ("decoy", decoy)):
            found = verdicts(scores, torch.tensor(labels), judge.head)
            for i, row in enumerate(rows):
                row[f"{kind}_top1[{name}]"] = float(found["top1"][i])
                row[f"{kind}_probability[{name}]"] = float(found["probability"][i])
    return rows
