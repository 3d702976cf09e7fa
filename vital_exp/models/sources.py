"""The result of every source of networks: the module, its preprocessing, class names and head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from vital_exp.models.network import Preprocessing
from vital_exp.targets.class_names import ClassNames

IMAGENET_CLASSES = 1000
# The share of equal names by which a list is known as ImageNet's: some lists spell a few otherwise ("crane bird").
MOSTLY = 0.9


class Built(NamedTuple):
    """A network as its source builds it.

    Attributes:
        module: takes normalised pictures.
        preprocessing: the network's own; None: ImageNet's.
        class_names: the network's own; None where it brings none.
        head: a name of :mod:`vital_exp.models.heads`; None where the source does not know it.
    """

    module: nn.Module
    preprocessing: Preprocessing | None = None
    class_names: ClassNames | None = None
    head: str | None = None


def recognised(labels: Sequence[str], wordnet_ids: Sequence[str] | None = None) -> ClassNames:
    """Return the class names of a file; ImageNet's 1000 are recognised and get their synonyms and WordNet ids."""
    if len(labels) == IMAGENET_CLASSES:
        known = ClassNames.imagenet()
        first = [label.split(",")[0].strip().lower() for label in labels]
        same = sum(known.label(i).lower() == one for i, one in enumerate(first))
        if same >= MOSTLY * IMAGENET_CLASSES:
            return known
    return ClassNames(labels, wordnet_ids)
