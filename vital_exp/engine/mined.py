"""References of hidden units by mining: the images, or patches of them, that drive each unit most."""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import DictConfig

from vital_exp.errors import UsageError
from vital_exp.models.network import VisionNetwork
from vital_exp.references.base import References
from vital_exp.targets.unit import Target


def mined_references(config: DictConfig, network: VisionNetwork, targets: Sequence[Target]) -> References:
    """Return the mined references of hidden units.

    Raises:
        UsageError: class targets.
    """
    raise UsageError("references", "mined", "hidden units only: classes take references=folder")
