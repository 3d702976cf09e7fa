"""The tree of a circuit: the channels of lower layers that are most relevant for a unit, over its references."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor

from vital_exp.errors import UsageError
from vital_exp.models.network import VisionNetwork, model_space
from vital_exp.models.unit_readout import unit_readout
from vital_exp.references.base import References
from vital_exp.references.faceted import main_facet
from vital_exp.relevance.maps import activations_and_relevance
from vital_exp.targets.unit import Target

IMAGES_PER_PASS = 8


@dataclass
class Node:
    """A unit of a circuit.

    Attributes:
        target: the unit.
        share: the channel's share of its layer's positive relevance for the unit above, in [0, 1]; 1 for the root.
        children: the most relevant channels of the layer below, in descending order of relevance.
    """

    target: Target
    share: float = 1.0
    children: list[Node] = field(default_factory=list)

    def levels(self) -> Iterator[list[Node]]:
        """Yield the nodes of each level, from this node down."""
        level = [self]
        while level:
            yield level
            level = [child for node in level for child in node.children]


def channel_relevance(
    network: VisionNetwork, target: Target, references: References, layer: str, method: str = "lrp"
) -> Tensor:
    """Return the relevance of each channel of a layer for a unit, (C,) float64: positions summed, references averaged.

    Args:
        network: the frozen network.
        target: a class or a channel.
        references: the target's references; if they are clustered, only those of the main facet are used.
        layer: a layer below the target.
        method: a relevance method with maps.

    Raises:
        UsageError: the layer is not below the target, or no relevance rule covers an operation.
    """
    unit = unit_readout(network, [target], key="target.unit")
    images, sums, count = references.images(main_facet(references, target)), [], 0
    while chunk := list(islice(images, IMAGES_PER_PASS)):
        pictures = model_space(torch.stack(chunk), network)
        read = unit.select([0] * len(chunk))
        _, maps, _ = activations_and_relevance(network, pictures, [layer], read, method)
        sums.append(maps[layer].flatten(2).sum(dim=(0, 2)).double().cpu())  # (C,)
        count += len(chunk)
    return torch.stack(sums).sum(dim=0) / count


def grow(
    network: VisionNetwork,
    root: Target,
    layers: Sequence[str],
    width: int,
    references_of: Callable[[list[Target]], References],
    method: str = "lrp",
) -> Node:
    """Return the tree below a unit, one level per layer.

    Args:
        network: the frozen network.
        root: a class or a channel.
        layers: the layers below the root, from the top down.
        width: largest number of channels below each unit.
        references_of: returns the references of the units of one level.
        method: the relevance method.

    Raises:
        UsageError: no positive relevance reaches a layer; see also :func:`channel_relevance`.
    """
    tree = Node(root)
    level = [tree]
    for layer in layers:
        targets = list(dict.fromkeys(node.target for node in level))
        references = references_of(targets)
        below = {target: channel_relevance(network, target, references, layer, method) for target in targets}
        for node in level:
            node.children = _most_relevant(below[node.target], layer, width)
        level = [child for node in level for child in node.children]
        if not level:
            problem = f"no positive relevance reaches {layer}: its references do not excite {targets[0].name}"
            raise UsageError("target.unit", root.name, problem)
    return tree


def _most_relevant(relevance: Tensor, layer: str, width: int) -> list[Node]:
    """Return up to ``width`` channels of largest positive relevance, in descending order."""
    positive = relevance.clamp(min=0)
    shares = positive / positive.sum().clamp(min=torch.finfo(positive.dtype).tiny)
    best = shares.topk(min(width, len(shares)))
    found = zip(best.values.tolist(), best.indices.tolist(), strict=True)
    return [Node(Target("channel", index, layer), share) for share, index in found if share > 0]
