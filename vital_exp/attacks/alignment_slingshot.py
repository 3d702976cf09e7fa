"""Slingshots aimed at VITAL itself: the slope of the alignment of distributions leads to a chosen picture.

The aim is that of Gradient Slingshots (Bareeva et al., arXiv 2401.06122), the losses are ours: docs/methods/attacks.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from vital_exp.attacks.fine_tuning import FineTuning, fine_tuned
from vital_exp.attacks.parameter_space import LOOKED_AT, ParameterSpace
from vital_exp.attacks.wrapping import checked_decoy
from vital_exp.config import compose_config
from vital_exp.errors import UsageError
from vital_exp.models.layers import alignment, unit_alignment
from vital_exp.models.network import Recipe, VisionNetwork, model_space
from vital_exp.models.precision import exact
from vital_exp.objectives.alignment_terms import PRECISIONS, left_out, standardisation
from vital_exp.references.statistics import TARGET_LAYER
from vital_exp.targets.unit import INPUT, OUTPUT, Target

GRID = 16  # cells of a side: the slope is compared in what a viewer sees, not in single pixels (ours)
REFERENCES_PER_STEP = 12  # of the unit's, whose statistics are taken anew while the network changes (ours)


@dataclass(frozen=True)
class AlignmentLoss:
    """VITAL's loss of a picture, with a graph to the second order: in the picture and in the network's weights.

    Attributes:
        layer_weights: by layer, ``"input"`` and ``"target layer"`` among them.
        target_layer: of a hidden unit; None for classes.
        standardise: what squared differences are divided by, see the objective's ``standardise``.
        trim: share of each channel's values that is left out at either end, see the objective's ``trim``.
    """

    layer_weights: Mapping[str, float]
    target_layer: str | None
    standardise: str
    trim: float = 0.0

    @classmethod
    def of(cls, network: VisionNetwork, target: Target, method: str) -> AlignmentLoss:
        """Return what a method aligns for a unit.

        Raises:
            UsageError: a method that aligns no distributions by sorting.
        """
        config = compose_config(["model=python", f"method={method}"])
        keys = config.objective.get("alignment")
        if keys is None or not str(keys["_target_"]).endswith(".SortMatching"):
            raise UsageError("methods", method, "aim=alignment needs a first method that aligns, [vital_fourier]")
        if target.layer is None:
            layers = dict(alignment(network, Recipe()).layers)
        else:
            layers = dict(unit_alignment(network, Recipe(), target.layer).layers)
            if keys.stem_weight is not None and layers:
                layers[next(iter(layers))] = float(keys.stem_weight)
            layers |= {TARGET_LAYER: float(keys.target_weight)}
        layers = {INPUT: float(keys.pixel_weight), **layers}
        weights = {layer: weight for layer, weight in layers.items() if weight}
        trim = float(left_out(keys.trim, network, of_classes=target.layer is None))
        return cls(weights, target.layer, standardisation(str(keys.standardise), network), trim)

    def sorted_features(self, network: VisionNetwork, pictures: Tensor) -> dict[str, Tensor]:
        """Return by layer the features of normalised pictures (N, C, H, W), sorted over positions, (N, C, P)."""
        read = {layer: str(self.target_layer) if layer == TARGET_LAYER else layer for layer in self.layer_weights}
        activations, _ = network.taps(list(dict.fromkeys(read.values())))(pictures)
        return {layer: exact(activations[name]).flatten(2).sort(dim=-1).values for layer, name in read.items()}

    def __call__(self, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Tensor:
        """Return the (N,) losses of sorted features (N, C, P) against the references' mean ones, (C, P) by layer."""
        total = torch.zeros(())
        for layer, weight in self.layer_weights.items():
            mean = wanted[layer]
            squares = (found[layer] - mean).square()  # (N, C, P)
            if self.standardise != "none":
                squares = squares * PRECISIONS[self.standardise](mean[None])[..., None]  # (1, C, 1)
            ends = 0 if layer in (INPUT, TARGET_LAYER) else int(self.trim * squares.shape[-1])
            total = total + weight * squares[..., ends : squares.shape[-1] - ends].mean(dim=(1, 2))
        return total


def alignment_slingshot(
    network: VisionNetwork,
    target: Target,
    decoy: Tensor,
    references: Tensor,
    natural: Tensor,
    *,
    method: str = "vital_fourier",
    settings: FineTuning | None = None,
    start: Tensor | None = None,
) -> VisionNetwork:
    """Return a copy of a network in which going down VITAL's loss leads to a decoy.

    The attacker knows the references: their statistics are taken anew at each step, and the weights learn through
    them too.

    Args:
        network: the honest one.
        target: a class or a hidden unit.
        decoy: (C, H, W) in [0, 1] of the network's input size.
        references: (R, C, H, W), the unit's own.
        natural: (N, C, H, W) natural images for which the outputs are to stay.
        method: the method aimed at: where its pictures start, what it optimises, what it aligns.
        settings: of the fine-tuning.
        start: (C, H, W) that the method starts from in place of noise.

    Raises:
        UsageError: a method without alignment, or a decoy of another size.
    """
    loss = AlignmentLoss.of(network, target, method)
    space = ParameterSpace(network, method, checked_decoy(decoy, network), start=start)
    settings = settings or FineTuning()

    def manipulation(attacked: VisionNetwork, generator: torch.Generator) -> Tensor:
        chosen = torch.randint(len(references), (REFERENCES_PER_STEP,), generator=generator)
        pictures = space.pictures(space.sample(settings.batch_size, generator)).detach()
        return 1 - slope_to_decoy(attacked, loss, pictures, decoy, references[chosen]).mean()

    return fine_tuned(network, f"slingshot at {method}'s alignment", manipulation, natural, [OUTPUT], settings)


def slope_to_decoy(
    network: VisionNetwork, loss: AlignmentLoss, pictures: Tensor, decoy: Tensor, references: Tensor
) -> Tensor:
    """Return for each picture the cosine between the way down VITAL's loss and the way to the decoy, (N,).

    Both are means over the cells of a grid of 16 by 16. The cosine knows no size: Adam, which makes the pictures, does
    not either.

    Args:
        network: honest or attacked.
        loss: of the unit.
        pictures: (N, C, H, W) in [0, 1].
        decoy: (C, H, W) in [0, 1].
        references: (R, C, H, W) in [0, 1].
    """
    shown = model_space(references, network)
    wanted = {layer: values.mean(dim=0) for layer, values in loss.sorted_features(network, shown).items()}
    seen = model_space(pictures, network).requires_grad_()
    values = loss(loss.sorted_features(network, seen), wanted)
    (gradient,) = torch.autograd.grad(values.sum(), seen, create_graph=torch.is_grad_enabled())
    way = model_space(decoy[None], network) - seen.detach()
    down, towards = (functional.adaptive_avg_pool2d(part, GRID).flatten(1) for part in (-gradient, way))
    return torch.cosine_similarity(down, towards)


def alignment_slope_cosine(
    network: VisionNetwork,
    target: Target,
    decoy: Tensor,
    references: Tensor,
    *,
    method: str = "vital_fourier",
    start: Tensor | None = None,
    seed: int = 0,
) -> float:
    """Return the mean of :func:`slope_to_decoy` at pictures that were not those of the training."""
    loss = AlignmentLoss.of(network, target, method)
    space = ParameterSpace(network, method, decoy, start=start)
    pictures = space.pictures(space.sample(LOOKED_AT, torch.Generator().manual_seed(seed + 1))).detach()
    return float(slope_to_decoy(network, loss, pictures, decoy, references).mean().detach())
