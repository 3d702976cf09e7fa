"""How well units tell labels apart: INVERT's AUC (Bykov et al. 2023), CoSy's mean deviation (Kopf et al. 2024)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vital_exp.errors import UsageError
from vital_exp.evaluation.ranking import auc_of_ranks
from vital_exp.mining.images import ImageFolder
from vital_exp.mining.units import Units
from vital_exp.references.decoding import printable
from vital_exp.targets.class_names import ClassNames

KEY = "naming.labels"
Array = NDArray[np.float64]


@dataclass(frozen=True)
class LabelScores:
    """How well each unit tells images with a label from images without, for each label.

    Attributes:
        labels: the L labels.
        auc: (U, L), the share of pairs (an image with the label, an image without) in which the first drives the unit
            more; 0.5 by chance.
        mad: (U, L), (mean with the label - mean without) / standard deviation without.
    """

    labels: list[str]
    auc: Array
    mad: Array

    def best(self, unit: int) -> tuple[str, float, float]:
        """Return the label for which a unit has the largest AUC, with its AUC and MAD."""
        place = int(self.auc[unit].argmax())
        return self.labels[place], float(self.auc[unit, place]), float(self.mad[unit, place])


def label_scores(values: Tensor, owners: Sequence[str], labels: Sequence[str]) -> LabelScores:
    """Score units against labels.

    Args:
        values: (N, U), each unit's activation for each image.
        owners: the label of each image.
        labels: the labels that are scored.
    """
    from scipy.stats import rankdata

    activations = values.double().numpy()
    ranks, names = rankdata(activations, axis=0), np.array(owners)
    aucs, deviations = [], []
    for label in labels:
        inside = names == label
        aucs.append(auc_of_ranks(ranks, inside))
        control = activations[~inside]
        spread = np.maximum(control.std(axis=0, ddof=1), np.finfo(np.float64).tiny)
        deviations.append((activations[inside].mean(axis=0) - control.mean(axis=0)) / spread)
    return LabelScores(list(labels), np.stack(aucs, axis=1), np.stack(deviations, axis=1))


def folder_labels(folder: ImageFolder, class_names: ClassNames | None) -> list[str]:
    """Return the label of each image, by its folder at the top; see :func:`label_of`.

    Raises:
        UsageError: an image is in no class folder, or there are fewer than two labels.
    """
    tops = [path.split("/")[0] if "/" in path else "" for path in folder.paths]
    names = {top: label_of(top, class_names) for top in dict.fromkeys(tops)}
    if "" in names or len(set(names.values())) < 2:
        problem = f"{printable(folder.root)} has no labels: images in a folder for each class are needed, at least 2"
        raise UsageError(KEY, True, problem)
    return [names[top] for top in tops]


def label_of(top: str, class_names: ClassNames | None) -> str:
    """Return the label of a folder: the class that its name means (by name, WordNet id or index), else its name."""
    for known in (class_names, ClassNames.imagenet() if re.fullmatch(r"n\d{8}", top) else None):
        found = known.lookup(top) if known else ()
        if known and len(found) == 1:
            return known.label(found[0])
    return printable(top)


def chosen_labels(asked: bool | Sequence[str], owners: Sequence[str]) -> list[str]:
    """Return the labels that are scored: all, or those asked for.

    Raises:
        UsageError: no image has one of the labels asked for.
    """
    there = list(dict.fromkeys(owners))
    if isinstance(asked, bool):
        return there
    for label in asked:
        if label not in there:
            raise UsageError(KEY, label, f"no image has this label; there are {', '.join(there)}", there)
    return list(asked)


@torch.no_grad()
def unit_values(
    units: Units, folder: ImageFolder, batch_size: int, workers: int = 0
) -> tuple[dict[str, Tensor], list[int]]:
    """Return each layer's unit values (N, U) on the CPU for the N readable images, and the numbers of these images."""
    parts: dict[str, list[Tensor]] = {layer: [] for layer in units.layers}
    numbers: list[int] = []
    for batch in folder.batches(range(len(folder.paths)), batch_size, workers):
        if batch.pixels is not None:
            for layer, values in units.values(batch.rgb(units.network.device)).items():
                parts[layer].append(values.cpu())
            numbers += batch.numbers.tolist()
    return {layer: torch.cat(found) for layer, found in parts.items()}, numbers
