"""What every source of networks hands over: the module, and what is known of its input and its classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from vital_exp.models.network import Preprocessing
from vital_exp.targets.class_names import ClassNames

IMAGENET_CLASSES = 1000
# Lists of ImageNet's classes spell some of them otherwise ("crane bird").
MOSTLY = 0.9


class Built(NamedTuple):
    """A network as its source builds it.

    Attributes:
        module: takes normalised pictures.
        preprocessing: its own; None: ImageNet's.
        class_names: its own; None where it brings none.
        head: what its outputs mean, where it says so (:mod:`vital_exp.models.heads`).
    """

    module: nn.Module
    preprocessing: Preprocessing | None = None
    class_names: ClassNames | None = None
    head: str | None = None


def recognised(labels: Sequence[str], wordnet_ids: Sequence[str] | None = None) -> ClassNames:
    """Return a file's names of classes; those of ImageNet's 1000 with their synonyms and WordNet ids."""
    if len(labels) == IMAGENET_CLASSES:
        known = ClassNames.imagenet()
        first = [label.split(",")[0].strip().lower() for label in labels]
        same = sum(known.label(i).lower() == one for i, one in enumerate(first))
        if same >= MOSTLY * IMAGENET_CLASSES:
            return known
    return ClassNames(labels, wordnet_ids)
