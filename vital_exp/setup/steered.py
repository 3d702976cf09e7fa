"""The concept that ``steer=folder#number:...`` names, from a folder of vital-mine."""

from __future__ import annotations

from vital_exp.concepts.concepts import Concepts
from vital_exp.errors import UsageError
from vital_exp.mining.meta import network_difference
from vital_exp.models.identity import identity_of
from vital_exp.models.network import VisionNetwork
from vital_exp.objectives.steering import CONCEPT_FORM, KEY, Axis


def concept_of(asked: str, network: VisionNetwork) -> Axis | None:
    """Return the concept of ``folder#3:+2sd``; None for another form, which names a channel.

    Raises:
        UsageError: no concepts in the folder, concepts of another network, or no concept of this number.
    """
    found = CONCEPT_FORM.fullmatch(asked)
    if found is None:
        return None
    concepts, number = Concepts.open(found["place"], KEY), int(found["number"])
    if text := network_difference(concepts.meta, identity_of(network)):
        raise UsageError(KEY, asked, f"the concepts are of {text}")
    if number >= len(concepts):
        raise UsageError(KEY, asked, f"there are {len(concepts)} concepts, 0 to {len(concepts) - 1}")
    factors = concepts.factors
    return Axis(concepts.layer, factors.components[number], factors.directions[number], factors.mean)
