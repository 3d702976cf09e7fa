"""SPADE: a copy of a network, pruned to the weights that a target's images need (Moakhar et al., ICML 2024).

The formulas, and what differs from the paper: docs/methods/spade.md.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms.v2 import functional as pictures_functional

from vital_exp.errors import UsageError
from vital_exp.models.channels import RGB
from vital_exp.models.network import VisionNetwork, model_space
from vital_exp.targets.unit import OUTPUT
from vital_exp.values import is_number, one_of, whole_number

METHODS = ("spade",)
KEY = "model.sparsity"
ALLOWED = "a number of at least 0 and below 1, or {layer: sparsity}"

# The published augmentation: crops with a share of the area and an aspect ratio in these ranges, resized; half of them
# mirrored; brightness times 1 +- BRIGHTNESS at most, hue turned by at most this share of the circle.
AREA, PROPORTIONS, BRIGHTNESS, HUE = (0.2, 1.0), (3 / 4, 4 / 3), 0.5, 0.3
# For feature visualisation the published code prunes layer4, the last two blocks of layer3 and the classifier of a
# ResNet-50: 17 of its 54 convolutions and linear layers, the last ones.
LAST_SHARE = 17 / 54
DAMPING = 0.01  # share of the diagonal's mean that is added to the diagonal; as published
IMAGES_PER_PASS = 16
ROUNDING = 1e-9  # added before rounding down, so that 0.7 of 10 weights are 7


@dataclass(frozen=True)
class Sparsification:
    """How a network is pruned.

    Attributes:
        sparsity: share of the weights that become 0 in the last third of the layers; or a mapping from beginnings of
            layers' names to shares, where the first beginning that fits a layer counts.
        images: number of augmented images on which the layers' inputs are measured.
        seed: of the augmentation.
    """

    sparsity: float | Mapping[str, float] = 0.95
    images: int = 256
    seed: int = 0

    @classmethod
    def of(cls, method: str, sparsity: object, images: int, seed: int = 0) -> Sparsification:
        """Return checked settings.

        Raises:
            UsageError: another method, a share outside [0, 1), no image.
        """
        one_of("model.sparsify", method, METHODS)
        whole_number("model.sparsify_images", images, 1)
        named = dict(sparsity) if isinstance(sparsity, Mapping) else {"": sparsity}
        shares = {str(name): float(share) for name, share in named.items() if is_number(share, 0, 1) and share < 1}
        if not shares or len(shares) < len(named):
            raise UsageError(KEY, sparsity, ALLOWED)
        return cls(shares if isinstance(sparsity, Mapping) else shares[""], images, seed)


@torch.no_grad()
def sparsified(
    network: VisionNetwork, images: Sequence[Tensor], settings: Sparsification, layer: str | None = None
) -> VisionNetwork:
    """Return a pruned copy of a network whose layers respond to some images nearly as before.

    Args:
        network: stays as it is.
        images: the target's images, (C, H, W) in [0, 1].
        settings: how much is pruned.
        layer: the target's layer; layers that run after it are not pruned. None: the network's output.

    Raises:
        UsageError: ``settings.sparsity`` names a layer that the network does not have, or no layer can be pruned.
    """
    kept = (network.preprocessing, network.class_names, network.recipe, network.output, network.head)
    pruned = VisionNetwork(copy.deepcopy(network.module), network.name, *kept)
    pruned.registry = network.registry
    layers = chosen(pruned, settings.sparsity, layer)
    moments = second_moments(pruned, {name: part for name, (part, _) in layers.items()}, augmented(images, settings))
    for name, (part, share) in layers.items():
        if name in moments:
            left = pruned_weights(part.weight.flatten(1), moments[name], share, _block(part))
            part.weight.copy_(left.view_as(part.weight))
    return pruned


def chosen(
    network: VisionNetwork, sparsity: float | Mapping[str, float], layer: str | None = None
) -> dict[str, tuple[nn.Conv2d | nn.Linear, float]]:
    """Return the layers that are pruned and their sparsity, in the order in which they run.

    Grouped convolutions, which have few weights, subclasses of nn.Conv2d and nn.Linear, and the first layer if it is a
    convolution stay dense.
    """
    order = list(network.trace.layers)
    before = order[: order.index(layer) + 1] if layer is not None and layer in order and layer != OUTPUT else order
    modules = dict(network.module.named_modules())
    candidates = {name: part for name in before if (part := modules.get(name)) is not None and _prunable(part)}
    names = list(candidates)[1:] if isinstance(next(iter(candidates.values()), None), nn.Conv2d) else list(candidates)
    if isinstance(sparsity, Mapping):
        if unknown := [key for key in sparsity if not any(_within(name, key) for name in modules)]:
            raise UsageError(KEY, unknown[0], "no such layer in the network; list=layers prints them", list(modules))
        shares = {name: next((s for key, s in sparsity.items() if _within(name, key)), 0.0) for name in names}
    else:
        last = names[-max(1, round(len(candidates) * LAST_SHARE)) :]
        shares = dict.fromkeys(last, sparsity)
    found = {name: (candidates[name], share) for name, share in shares.items() if share > 0}
    if not found and (not isinstance(sparsity, Mapping) and sparsity > 0):
        wanted = "needs a convolution or linear layer below the target that can be pruned, besides the first layer"
        raise UsageError("model.sparsify", "spade", wanted)
    return found


def _within(name: str, beginning: str) -> bool:
    return name == beginning or name.startswith(f"{beginning}.")


def _prunable(part: nn.Module) -> bool:
    return type(part) is nn.Linear or (type(part) is nn.Conv2d and part.groups == 1)


def _block(part: nn.Conv2d | nn.Linear) -> int:
    """Return how many columns of the weights share a threshold: those of a kernel, or one, as published."""
    return part.kernel_size[0] * part.kernel_size[1] if isinstance(part, nn.Conv2d) else 1


def second_moments(
    network: VisionNetwork, layers: Mapping[str, nn.Module], images: Iterator[Tensor]
) -> dict[str, Tensor]:
    """Return H = 2/n sum x x^T for each layer that runs, where x are the columns that its weights are multiplied with.

    Args:
        network: the network of the layers.
        layers: convolutions without groups and linear layers, by name.
        images: batches (B, C, H, W) in [0, 1] of n images in all.
    """
    found: dict[str, Tensor] = {}
    count = 0
    with ExitStack() as hooks:
        for name, part in layers.items():
            hooks.callback(part.register_forward_pre_hook(_adding_hook(name, found)).remove)
        for batch in images:
            count += len(batch)
            network.module(model_space(batch, network))
    return {name: 2 / count * total for name, total in found.items()}


def _adding_hook(name: str, found: dict[str, Tensor]) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    """Return a hook that adds the sum of x x^T over a layer's inputs x to ``found[name]``."""

    def hook(part: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        columns = columns_of(part, inputs[0].float())
        total = columns.mT @ columns
        found[name] = found[name] + total if name in found else total

    return hook


def columns_of(part: nn.Module, values: Tensor) -> Tensor:
    """Return the vectors that a layer's weights are multiplied with, one row (C k k,) for each picture and position."""
    if isinstance(part, nn.Linear):
        return values.flatten(0, -2)
    assert isinstance(part, nn.Conv2d)
    mode = "constant" if part.padding_mode == "zeros" else part.padding_mode
    padded = functional.pad(values, part._reversed_padding_repeated_twice, mode=mode)
    unfolded = functional.unfold(padded, part.kernel_size, part.dilation, 0, part.stride)  # (N, C k k, P)
    return unfolded.mT.flatten(0, 1)


def pruned_weights(weights: Tensor, moments: Tensor, sparsity: float, block: int) -> Tensor:
    """Return weights (rows, columns) of which a share is 0 and the others compensate: SparseGPT's pass.

    Column after column, weights are set to 0 and their error is spread over the later columns, so that ``weights @ x``
    changes least for the x that ``moments`` were measured on. In each block of columns the weights of smallest
    w^2 / d^2 are set to 0, where d^2 is the pivot of the inverse of H for the later columns.

    Args:
        weights: (rows, columns).
        moments: H, (columns, columns).
        sparsity: share of the weights of a block, rounded down, so that no block becomes 0 as a whole.
        block: number of columns that share a threshold.
    """
    left, matrix = weights.double().clone(), moments.double().clone()
    silent = matrix.diagonal() == 0
    matrix.diagonal()[silent] = 1
    left[:, silent] = 0
    matrix.diagonal().add_(DAMPING * matrix.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(matrix))
    factor = torch.linalg.cholesky(inverse, upper=True)
    pivots = factor.diagonal()
    for first in range(0, left.shape[1], block):
        here = slice(first, min(first + block, left.shape[1]))
        score = (left[:, here] / pivots[here]).square()
        gone = torch.zeros_like(score, dtype=torch.bool)
        gone.flatten()[score.flatten().argsort(stable=True)[: int(sparsity * score.numel() + ROUNDING)]] = True
        for offset, column in enumerate(range(here.start, here.stop)):
            error = torch.where(gone[:, offset], left[:, column], 0.0) / pivots[column]
            left[:, column:] -= error[:, None] * factor[column, column:]
            left[gone[:, offset], column] = 0
    return left.to(weights)


def augmented(images: Sequence[Tensor], settings: Sparsification) -> Iterator[Tensor]:
    """Yield batches (B, C, H, W) of the images in turn, randomly cropped, mirrored, and of other brightness and hue."""
    generator = torch.Generator().manual_seed(settings.seed)
    for first in range(0, settings.images, IMAGES_PER_PASS):
        numbers = range(first, min(first + IMAGES_PER_PASS, settings.images))
        yield torch.stack([_augmented(images[number % len(images)], generator) for number in numbers])


def _augmented(image: Tensor, generator: torch.Generator) -> Tensor:
    def between(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    height, width = image.shape[-2:]
    area, ratio = between(*AREA) * height * width, between(*PROPORTIONS)
    rows, columns = min(height, round((area / ratio) ** 0.5)), min(width, round((area * ratio) ** 0.5))
    top, left = int(between(0, height - rows + 1)), int(between(0, width - columns + 1))
    box = (top, left, max(1, rows), max(1, columns))
    made = pictures_functional.resized_crop(image, *box, [height, width], antialias=True).clamp(0, 1)
    if between(0, 1) < 0.5:
        made = made.flip(-1)
    made = (made * between(1 - BRIGHTNESS, 1 + BRIGHTNESS)).clamp(0, 1)
    turn = between(-HUE, HUE)
    result: Tensor = pictures_functional.adjust_hue(made, turn) if len(made) == RGB else made
    return result
