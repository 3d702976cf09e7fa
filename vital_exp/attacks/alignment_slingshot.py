"""Slingshots aimed at VITAL itself: going down its alignment loss leads to a chosen decoy.

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

GRID = 16  # cells per side: gradients are compared as means over cells, which a viewer sees, not by pixel (ours)
REFERENCES_PER_STEP = 12  # references drawn at each step; their statistics change with the network (ours)


@dataclass(frozen=True)
class AlignmentLoss:
    """VITAL's loss of a picture, differentiable twice: by the picture, then by the network's weights.

    Attributes:
        layer_weights: the weight of each layer, ``"input"`` and ``"target layer"`` among them.
        target_layer: the layer of a hidden unit; None for classes.
        standardise: what squared differences are divided by, see the objective's ``standardise``.
        trim: share of each channel's values that is left out at either end, see the objective's ``trim``.
    """

    layer_weights: Mapping[str, float]
    target_layer: str | None
    standardise: str
    trim: float = 0.0

    @classmethod
    def of(cls, network: VisionNetwork, target: Target, method: str) -> AlignmentLoss:
        """Return the alignment loss that a method lowers for a unit.

        Raises:
            UsageError: the method does not align distributions by sorting.
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
        """Return for each layer the features (N, C, P) of normalised pictures (N, C, H, W), sorted over positions."""
        read = {layer: str(self.target_layer) if layer == TARGET_LAYER else layer for layer in self.layer_weights}
        activations, _ = network.taps(list(dict.fromkeys(read.values())))(pictures)
        return {layer: exact(activations[name]).flatten(2).sort(dim=-1).values for layer, name in read.items()}

    def __call__(self, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Tensor:
        """Return the losses (N,) of sorted features (N, C, P) against the references' mean (C, P) of each layer."""
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

    The attacker knows the references. Their statistics are computed again at each step, with a gradient, so the
    training changes them too.

    Args:
        network: the honest network.
        target: a class or a hidden unit.
        decoy: (C, H, W) in [0, 1] of the network's input size.
        references: (R, C, H, W) in [0, 1], the unit's reference images.
        natural: (N, C, H, W) in [0, 1], natural images whose outputs the training preserves.
        method: the method under attack: it gives the start, the parameterisation and the alignment.
        settings: the settings of the fine-tuning.
        start: (C, H, W) in [0, 1], the image that the method starts from; None: noise.

    Raises:
        UsageError: the method does not align distributions by sorting, or the decoy has another size.
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
    """Return for each picture the cosine between the negative gradient of VITAL's loss and the way to the decoy, (N,).

    Both are averaged over the cells of a 16 x 16 grid. The length of the gradient does not count, as it does not for
    Adam, which makes the pictures.

    Args:
        network: honest or attacked.
        loss: the unit's alignment loss.
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
    """Return the mean of :func:`slope_to_decoy` over pictures that the fine-tuning did not use."""
    loss = AlignmentLoss.of(network, target, method)
    space = ParameterSpace(network, method, decoy, start=start)
    pictures = space.pictures(space.sample(LOOKED_AT, torch.Generator().manual_seed(seed + 1))).detach()
    return float(slope_to_decoy(network, loss, pictures, decoy, references).mean().detach())
