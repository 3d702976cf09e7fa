"""The identity of a network: its weights, architecture, preprocessing and activations.

Caches name their files by it, and the folders of an index or a run record it. Two networks whose activations differ by
rounding alone have one identity.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vital_exp.models.fingerprint import Fingerprint, differing_layer, fingerprint
from vital_exp.models.network import VisionNetwork
from vital_exp.models.preparation import check_values
from vital_exp.whole_files import whole_file

FOLDER = "networks"  # in the cache
DIGITS = 16  # of hashes
PARTS = ("weights", "architecture", "preprocessing", "output")
LAYER = "layer "  # begins a difference in a layer's activations


@dataclass(frozen=True)
class Identity:
    """What tells one network from another.

    Attributes:
        name: what the user called the network; it does not count.
        weights: hash of all weights and buffers.
        architecture: hash of the printed module.
        preprocessing: the printed preprocessing.
        output: the key of the tensor that is read as the network's output.
        precision: of the weights.
        activations: the network's fingerprint; where the registry knows a network that differs by rounding alone, the
            registered fingerprint.
        variant: hash of ``activations``.
    """

    name: str
    weights: str
    architecture: str
    preprocessing: str
    output: str
    precision: str
    activations: Fingerprint
    variant: str

    @property
    def key(self) -> str:
        """A hash of everything except the name."""
        parts = [getattr(self, part) for part in (*PARTS, "precision", "variant")]
        return _hash("\n".join(parts))

    def describe(self, layers: Sequence[str] | None = None) -> dict[str, object]:
        """Return the record for a folder, ready for JSON; with ``layers``, the activations of these layers alone."""
        own = dict(vars(self))
        if layers is not None and all(layer in self.activations for layer in layers):
            own["activations"] = {layer: self.activations[layer] for layer in layers}
        return {"network": own.pop("name"), **own}


def begin_call(network: VisionNetwork, cache: Path | None = None) -> None:
    """Freeze a network and forget its identity: since the last call it may have been trained, edited or hooked.

    Args:
        network: on its device.
        cache: the cache, with the registry of known networks; None: no registry is used.

    Raises:
        UsageError: the network is on the meta device and has no values.
    """
    check_values(network.module)
    network.eval().requires_grad_(False)
    network.identity, network.registry = None, None if cache is None else cache / FOLDER


def identity_of(network: VisionNetwork) -> Identity:
    """Return a network's identity, found by hashing and one forward pass, once in a call."""
    if network.identity is None:
        network.identity = _found(network)
    identity: Identity = network.identity
    return identity


def difference(old: Mapping[str, Any], new: Identity) -> str | None:
    """Return the first difference between a recorded network (:meth:`Identity.describe`) and a new one, or None.

    It is one of :data:`PARTS`, or ``"layer <name>"`` for the first layer whose activations differ by more than
    rounding.
    """
    for key in PARTS:
        if old[key] != getattr(new, key):
            return key
    layers: Fingerprint = old["activations"]
    now = {layer: new.activations[layer] for layer in layers if layer in new.activations}
    layer = differing_layer(layers, now, _precision(new))
    return None if layer is None else f"{LAYER}{layer}"


def _found(network: VisionNetwork) -> Identity:
    architecture, output = _hash(str(network.module)), str(network.output.key)
    own = (
        network.name,
        network.weights_hash(),
        architecture,
        repr(network.preprocessing),
        output,
        str(network.precision),
    )
    activations = fingerprint(network)
    found = Identity(*own, activations, _hash(json.dumps(activations)))
    return found if network.registry is None else _registered(found, network.registry / _hash("\n".join(own[1:])))


def _registered(found: Identity, folder: Path) -> Identity:
    """Return the identity with the fingerprint of a registered network that differs by rounding; else register it."""
    for variant, activations in _variants(folder):
        if differing_layer(activations, found.activations, _precision(found)) is None:
            return Identity(**{**vars(found), "activations": activations, "variant": variant})
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(folder / f"{found.variant}.json") as file:
        json.dump(found.activations, file)
    return found


def _variants(folder: Path) -> Iterator[tuple[str, Fingerprint]]:
    """Yield variant and fingerprint of the registered networks in a folder; damaged files are skipped."""
    for path in sorted(folder.glob("*.json")):
        try:
            text = path.read_text(encoding="utf-8")
            activations = json.loads(text)
        except (OSError, ValueError):
            continue
        if _hash(json.dumps(activations)) == path.stem:
            yield path.stem, activations


def _precision(identity: Identity) -> torch.dtype:
    precision: torch.dtype = getattr(torch, identity.precision.removeprefix("torch."))
    return precision


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]
