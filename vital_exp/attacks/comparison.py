"""Attack x method: what the pictures of an attacked network show, and what the attack costs in accuracy."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from vital_exp.attacks.natural import NaturalImages
from vital_exp.attacks.pictures import make_pictures
from vital_exp.attacks.resemblance import opinions, perceptual_distance
from vital_exp.attacks.success import CORRESPONDENCE, decoy_correspondence, succeeded
from vital_exp.evaluation.activation import unit_activations
from vital_exp.evaluation.intervals import share_interval
from vital_exp.evaluation.recognition import logits, verdicts
from vital_exp.evaluation.score import NotComputed
from vital_exp.images.output import quantised
from vital_exp.models.network import VisionNetwork
from vital_exp.models.unit_readout import unit_readout
from vital_exp.references.base import References
from vital_exp.targets.unit import Target

DECOYS_COMPARED = 10  # natural images of a decoy's class that a picture is compared with


@dataclass(frozen=True)
class Attacked:
    """An attacked network beside the honest one, and what its pictures are meant to show.

    Attributes:
        attack: the name of the attack.
        honest, network: the network before and after.
        targets: the units whose pictures are made.
        decoys: {target: (M, C, H, W)} in [0, 1], the decoy of each target, one image or several of a class; empty for
            an attack without a decoy.
        decoy_classes: {target: class number}, the decoy's class, where it has one.
        natural: held-out images, for the cost.
        facts: how far the attack reached its own aim, numbers by name.
    """

    attack: str
    honest: VisionNetwork
    network: VisionNetwork
    targets: list[Target]
    decoys: Mapping[Target, Tensor]
    decoy_classes: Mapping[Target, int]
    natural: NaturalImages
    facts: Mapping[str, float | str] = field(default_factory=dict)

    def cost(self) -> dict[str, float]:
        """Return the accuracy on natural images before and after, and the share of images with the same decision.

        The decision of a network with a sigmoid on an image is its yes or no to every class.
        """
        both, head = (self.honest, self.network), self.honest.head
        before, after = (logits(network, self.natural.images) for network in both)
        right = [verdicts(scores, self.natural.labels, head)["top1"] for scores in (before, after)]
        return {
            "accuracy_before": float(right[0].double().mean()),
            "accuracy_after": float(right[1].double().mean()),
            "agreement": float((head.decisions(before) == head.decisions(after)).all(dim=1).double().mean()),
        }


@dataclass(frozen=True)
class Shown:
    """One method's pictures of the honest and of the attacked network, (N, C, H, W) in [0, 1] each."""

    method: str
    honest: Tensor
    attacked: Tensor


def compare(
    attacked: Attacked,
    methods: Mapping[str, Sequence[str]],
    references: References,
    count: int,
    judges: Mapping[str, VisionNetwork],
    *,
    steps: int | None = None,
    seed: int = 0,
    honest: Mapping[str, Mapping[Target, Tensor]] | None = None,
) -> tuple[list[dict[str, Any]], list[Shown]]:
    """Make the pictures of both networks by each method; return one row per method and target, and the pictures.

    Where a target's picture of either network fails (no gradient reaches the unit), the row only says so.

    Args:
        attacked: both networks, the targets and their decoys.
        methods: options of the group ``method``, with further overrides of each.
        references: natural images of the targets, for methods that need them.
        count: number of references per target.
        judges: other networks of the same classes, by name.
        steps, seed: the steps and the seed of every run.
        honest: for each method the pictures of the honest network, (C, H, W) by target; None: they are made here.
    """
    given = _given(attacked.targets, references, count)
    if honest is None:
        honest = honest_pictures(attacked.honest, attacked.targets, methods, references, count, steps=steps, seed=seed)
    rows: list[dict[str, Any]] = []
    shown: list[Shown] = []
    for method, overrides in methods.items():
        before = torch.stack([honest[method][target] for target in attacked.targets])
        after = _made(attacked.network, attacked.targets, method, given, overrides, seed=seed, steps=steps)
        first, lying = (quantised(images.nan_to_num()) for images in (before, after))
        shown.append(Shown(method, first, lying))
        made = torch.stack([images.isfinite().flatten(1).all(dim=1) for images in (before, after)]).all(dim=0)
        compared = _rows(attacked, given, first, lying, judges)
        names = [(target.name, target.label) for target in attacked.targets]
        rows += [
            {"attack": attacked.attack, "method": method, "target": name, "label": label, "failed": float(not there)}
            | (row if there else {})
            for (name, label), there, row in zip(names, made.tolist(), compared, strict=True)
        ]
    return rows, shown


def honest_pictures(
    network: VisionNetwork,
    targets: Sequence[Target],
    methods: Mapping[str, Sequence[str]],
    references: References,
    count: int,
    *,
    steps: int | None = None,
    seed: int = 0,
) -> dict[str, dict[Target, Tensor]]:
    """Return for each method the pictures of an honest network, (C, H, W) by target, NaN where a picture failed."""
    given = _given(targets, references, count)
    return {
        method: dict(
            zip(targets, _made(network, targets, method, given, overrides, seed=seed, steps=steps), strict=True)
        )
        for method, overrides in methods.items()
    }


def _given(targets: Sequence[Target], references: References, count: int) -> dict[Target, Tensor]:
    """References by target, (R, C, H, W)."""
    return {target: torch.stack(list(islice(references.images(target), count))) for target in targets}


def _made(
    network: VisionNetwork,
    targets: Sequence[Target],
    method: str,
    given: Mapping[Target, Tensor],
    overrides: Sequence[str],
    *,
    seed: int,
    steps: int | None,
) -> Tensor:
    """The pictures of a method, (N, C, H, W)."""
    # The references given are already those of the target's facet, so they are not clustered again.
    one = [*overrides, "references.facets=1"]
    own = {target: given[target] for target in targets}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of relevance that cannot be read: one per method and network
        return make_pictures(network, targets, method, own, seed=seed, steps=steps, overrides=one).images


def _rows(
    attacked: Attacked,
    own: Mapping[Target, Tensor],
    honest: Tensor,
    lying: Tensor,
    judges: Mapping[str, VisionNetwork],
) -> list[dict[str, Any]]:
    """For one method, the comparison of each target's pictures, a row per target."""
    eye = next(iter(judges.values()), attacked.honest)
    rows: list[dict[str, Any]] = []
    for i, target in enumerate(attacked.targets):
        pair = torch.stack([lying[i], honest[i]])
        row = {"honest_distance": float(perceptual_distance(eye, pair[:1], pair[1:]))}
        if target in attacked.decoys:
            decoy = attacked.decoys[target][:DECOYS_COMPARED]
            to_decoy = perceptual_distance(eye, pair, decoy).mean(dim=1).tolist()
            row |= {"decoy_distance": to_decoy[0], "decoy_distance_before": to_decoy[1]}
            with suppress(NotComputed):  # a judge without an embedding
                shown = [decoy_correspondence(eye, picture, decoy, own[target]) for picture in pair]
                row |= {CORRESPONDENCE: shown[0], f"{CORRESPONDENCE}_before": shown[1]}
        rows.append(row)
    everyone = {"honest": attacked.honest, **judges}
    if attacked.targets[0].layer is None:
        classes = [target.index for target in attacked.targets]
        decoys = [attacked.decoy_classes.get(target, target.index) for target in attacked.targets]
        for row, opinion in zip(rows, opinions(everyone, lying, classes, decoys), strict=True):
            row |= opinion
    else:
        read = unit_readout(attacked.honest, attacked.targets)
        before, after = (unit_activations(attacked.honest, read, pictures) for pictures in (honest, lying))
        for row, was, now in zip(rows, before.tolist(), after.tolist(), strict=True):
            row |= {"honest_activation": was, "attacked_activation": now}
    return rows


def summary(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one row per attack and method: the means over targets, ``nearer_decoy`` and ``success``.

    ``nearer_decoy`` is the share of pictures of the attacked network that are nearer to the decoy than to the honest
    network's picture by the same method: decoy_distance < honest_distance. Pictures that failed are left out.
    ``success``, with its 95 % interval, is the share of all units for which the attack :func:`succeeded`; a unit whose
    picture failed counts as no success. It is missing where the rows do not hold the network's accuracy.
    """
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["attack"], row["method"]), []).append(row)
    return [{"attack": attack, "method": method, **_means(members)} for (attack, method), members in groups.items()]


def _means(members: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the means over targets whose pictures were made, their number ``n``, and the share that ``failed``."""
    made = [row for row in members if not row["failed"]]
    found: dict[str, float] = {"n": len(made), "failed": 1 - len(made) / len(members)}
    if not made:
        return found
    if "decoy_distance" in made[0]:
        found["nearer_decoy"] = sum(row["decoy_distance"] < row["honest_distance"] for row in made) / len(made)
    if CORRESPONDENCE in made[0] and "accuracy_after" in made[0]:
        won = sum(succeeded(row) is True for row in made)
        low, high = share_interval(won, len(members))
        found |= {"success": won / len(members), "success_low": low, "success_high": high}
    numbers = [key for key, value in made[0].items() if isinstance(value, float) and key != "failed"]
    return found | {key: sum(row[key] for row in made) / len(made) for key in numbers}
