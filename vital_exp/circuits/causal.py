"""How far a circuit explains its unit: faithfulness, completeness, and each edge by ablation and by relevance.

Formulas: docs/methods/causal_circuits.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from vital_exp.circuits.ablation import Ablation, channel_means
from vital_exp.circuits.tree import Node, channel_relevance
from vital_exp.models.network import VisionNetwork
from vital_exp.models.unit_readout import unit_readout
from vital_exp.references.base import References
from vital_exp.references.faceted import main_facet
from vital_exp.targets.unit import Target

RANDOM_ORDERS = 3
COMPARED = 16  # number of channels per unit, spread over the ranks of relevance, in the rank correlation
ReferencesOf = Callable[[list[Target]], References]


def causal(
    network: VisionNetwork,
    tree: Node,
    references_of: ReferencesOf,
    others: Tensor,
    method: str,
    count: int,
    seed: int = 0,
) -> dict[str, object]:
    """Return the ablation results of a circuit as values for JSON: ``layers`` with curves, ``edges`` and ``ranks``.

    Args:
        network: the frozen network.
        tree: the result of :func:`vital_exp.circuits.tree.grow`.
        references_of: returns the references of the units of one level.
        others: (N, C, H, W) in [0, 1], images of any content: channel means are taken over them, and the layers'
            effects and curves are measured on them as well as on the references.
        method: the relevance method.
        count: largest number of references per unit on which ablations are measured.
        seed: seed of the random orders of channels.
    """
    levels = list(tree.levels())
    own = references_of([tree.target])
    images = {"references": first_images(own, tree.target, count), "others": others}
    found: dict[str, Any] = {"target": tree.target.name, "images": {name: len(part) for name, part in images.items()}}
    found["layers"] = []
    for level in levels[1:]:
        layer = str(level[0].target.layer)
        relevance = channel_relevance(network, tree.target, own, layer, method)
        shown = list(dict.fromkeys(node.target.index for node in level))
        found["layers"].append(_of_layer(network, tree.target, layer, relevance, shown, images, seed))
    edges = [_edges(network, level, references_of, others, method, count) for level in levels[:-1]]
    found["edges"] = [edge for of_level, _ in edges for edge in of_level]
    found["ranks"] = [rank for _, of_level in edges for rank in of_level]
    return found


def first_images(references: References, target: Target, count: int) -> Tensor:
    """Return up to ``count`` references of a unit, (N, C, H, W); of its main facet if references are clustered."""
    return torch.stack(list(islice(references.images(main_facet(references, target)), count)))


def counts_of(channels: int) -> list[int]:
    """Return the powers of two below the number of channels, then the number itself."""
    return [2**power for power in range(channels.bit_length()) if 2**power < channels] + [channels]


def _of_layer(
    network: VisionNetwork,
    target: Target,
    layer: str,
    relevance: Tensor,
    shown: list[int],
    images: dict[str, Tensor],
    seed: int,
) -> dict[str, object]:
    """Return the curves of one layer, and the effect of the channels that the circuit shows."""
    read = unit_readout(network, [target], key="target.unit")
    means = channel_means(network, layer, images["others"])
    counts = counts_of(len(means))
    found: dict[str, object] = {"layer": layer, "channels": len(means), "counts": counts, "shown": shown}
    numbers = torch.Generator().manual_seed(seed)
    strength = channel_means(network, layer, images["references"])
    orders = {"relevance": [relevance.argsort(descending=True)], "activation": [strength.argsort(descending=True)]}
    orders["random"] = [torch.randperm(len(means), generator=numbers) for _ in range(RANDOM_ORDERS)]
    for name, part in images.items():
        ablation = Ablation(network, read, layer, means, part)
        ends = ablation.ends
        kept, left = ablation.keeping(shown), ablation.without(shown)
        faithful, complete = ablation.shares([kept, left], ends)
        effect = {"whole": ends[0], "none": ends[1], "kept": kept, "removed": left}
        curves = {order: _curves(ablation, ends, given, counts) for order, given in orders.items()}
        found[name] = {**effect, "faithfulness": faithful, "completeness": complete, "curves": curves}
    return found


def _curves(
    ablation: Ablation, ends: tuple[float, float], orders: Sequence[Tensor], counts: Sequence[int]
) -> dict[str, list[float | None]]:
    """Return faithfulness and completeness for each number of first channels; m is the mean over the orders."""
    kept = [sum(ablation.keeping(order[:count]) for order in orders) / len(orders) for count in counts]
    left = [sum(ablation.without(order[:count]) for order in orders) / len(orders) for count in counts]
    return {"faithfulness": ablation.shares(kept, ends), "completeness": ablation.shares(left, ends)}


def _edges(
    network: VisionNetwork, level: Sequence[Node], references_of: ReferencesOf, others: Tensor, method: str, count: int
) -> tuple[list[dict[str, object]], list[dict[str, Any]]]:
    """Return each edge below a level by relevance and by ablation, and for each unit their rank correlation."""
    parents = {node.target: node for node in level if node.children}
    references = references_of(list(dict.fromkeys(node.target for node in level)))
    edges, ranks = [], []
    for target, node in parents.items():
        layer = str(node.children[0].target.layer)
        relevance = channel_relevance(network, target, references, layer, method)
        means = channel_means(network, layer, others)
        read = unit_readout(network, [target], key="target.unit")
        ablation = Ablation(network, read, layer, means, first_images(references, target, count))
        whole, none = ablation.ends
        shown = [child.target.index for child in node.children]
        effect = {channel: whole - ablation.without([channel]) for channel in {*shown, *spread(relevance)}}
        for child in node.children:
            removed = whole - effect[child.target.index]
            (left,) = ablation.shares([removed], (whole, none))
            words = {"unit": target.name, "channel": child.target.name, "share": child.share}
            edges.append(
                words | {"effect": effect[child.target.index], "effect_share": None if left is None else 1 - left}
            )
        ranks.append({"unit": target.name, "layer": layer, **_correlation(relevance, effect)})
    return edges, ranks


def spread(relevance: Tensor) -> list[int]:
    """Return up to ``COMPARED`` channels at evenly spaced ranks of relevance, from the highest to the lowest."""
    order = relevance.argsort(descending=True)
    places = torch.linspace(0, len(order) - 1, min(COMPARED, len(order))).round().long()
    chosen: list[int] = order[places].tolist()
    return chosen


def _correlation(relevance: Tensor, effect: dict[int, float]) -> dict[str, float | int | None]:
    """Return Spearman's rank correlation of relevance and effect over channels; None if either is constant."""
    from scipy.stats import spearmanr

    channels = list(effect)
    pairs = relevance[channels].numpy(), [effect[channel] for channel in channels]
    constant = any(len(set(map(float, side))) < 2 for side in pairs)
    return {"correlation": None if constant else float(spearmanr(*pairs).statistic), "n": len(channels)}
