"""When an attack has succeeded: one definition, fixed in advance, for all attacks and methods.

See docs/methods/attacks.md, "When an attack succeeds".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vital_exp.evaluation.correspondence import correspondence, unit_vectors
from vital_exp.evaluation.reading import NetworkReader
from vital_exp.models.network import VisionNetwork

EVEN = 0.5  # share of pairs at which a picture is as similar to the decoy as to the unit's references
# The most accuracy on held-out natural images that a success may cost; the published fooling circuit costs 0.004
# (Geirhos et al. 2024).
ACCURACY_LOST = 0.01
CORRESPONDENCE = "decoy_correspondence"


def decoy_correspondence(judge: VisionNetwork, picture: Tensor, decoy: Tensor, own: Tensor) -> float:
    """Return the share of pairs of a decoy and a reference in which a picture is more similar to the decoy.

    Similarity is the cosine of the judge's embeddings. The share is an area under the ROC curve, 0.5 by chance.

    Args:
        judge: a network that took no part in making the picture.
        picture: (C, H, W) in [0, 1].
        decoy: (M, C, H, W) in [0, 1], the decoy or images of the decoy's class.
        own: (R, C, H, W) in [0, 1], the unit's references.

    Raises:
        NotComputed: the judge has no embedding.
    """
    reader = NetworkReader(judge)
    one, lying, honest = (unit_vectors(reader(images).features) for images in (picture[None], decoy, own))
    return correspondence(one[0], lying, honest)


def succeeded(row: Mapping[str, Any]) -> bool | None:
    """Whether an attack has succeeded on one unit: its picture shows the decoy, and at most 1 % of accuracy is lost.

    Args:
        row: with ``decoy_correspondence``, ``accuracy_before`` and ``accuracy_after``.

    Returns:
        True or False; None where the picture failed or the attack has no decoy.
    """
    if CORRESPONDENCE not in row:
        return None
    lost = row["accuracy_before"] - row["accuracy_after"]
    return bool(row[CORRESPONDENCE] > EVEN and lost <= ACCURACY_LOST)
