"""What every source of networks hands over: the module, and what is known of its input and its classes."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from vital_exp.models.network import Preprocessing
from vital_exp.targets.class_names import ClassNames


class Built(NamedTuple):
    """A network as its source builds it.

    Attributes:
        module: takes normalised pictures.
        preprocessing: its own; None: ImageNet's.
        class_names: its own; None where it brings none.
    """

    module: nn.Module
    preprocessing: Preprocessing | None = None
    class_names: ClassNames | None = None
