"""By what networks are told apart: weights, structure, preprocessing, and what they compute.

Caches name their files by it, and folders of an index or a run record it. Rounding makes no other network.
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

FOLDER = "networks"  # of the cache
DIGITS = 16  # of hashes
PARTS = ("weights", "architecture", "preprocessing", "output")
LAYER = "layer "  # before a layer's name, where it is what differs


@dataclass(frozen=True)
class Identity:
    """One network.

    Attributes:
        name: what the user called it; takes no part.
        weights: hash of all weights and buffers.
        architecture: hash of its printed form.
        preprocessing: in words.
        output: the entry of what it returns that is read.
        precision: of its weights.
        activations: its fingerprint.
        variant: hash of the fingerprint; that of the first network in the registry which differs by rounding alone.
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
        """A hash of all that takes part."""
        parts = [getattr(self, part) for part in (*PARTS, "precision", "variant")]
        return _hash("\n".join(parts))

    def describe(self, layers: Sequence[str] | None = None) -> dict[str, object]:
        """Return what a folder records, ready for JSON; with ``layers`` of the activations these alone."""
        own = dict(vars(self))
        if layers is not None and all(layer in self.activations for layer in layers):
            own["activations"] = {layer: self.activations[layer] for layer in layers}
        return {"network": own.pop("name"), **own}


def begin_call(network: VisionNetwork, cache: Path | None = None) -> None:
    """Freeze a network and forget what is known of it: since the last call it may have been trained, edited or hooked.

    Args:
        network: on its device.
        cache: the cache, whose registry knows networks that round otherwise as the same; None: it is not asked.

    Raises:
        UsageError: a network on the meta device, which has no values.
    """
    check_values(network.module)
    network.eval().requires_grad_(False)
    network.identity, network.registry = None, None if cache is None else cache / FOLDER


def identity_of(network: VisionNetwork) -> Identity:
    """Return what a network is, found by hashing and one forward pass, once in a call."""
    if network.identity is None:
        network.identity = _found(network)
    identity: Identity = network.identity
    return identity


def difference(old: Mapping[str, Any], new: Identity) -> str | None:
    """Return in what a recorded network (:meth:`Identity.describe`) and one at hand differ, None where in nothing.

    One of :data:`PARTS`, or the first layer that computes something else as ``"layer <name>"``. Rounding is no
    difference.
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
    """Return the network of the registry that differs by rounding alone, or register this one."""
    for variant, activations in _variants(folder):
        if differing_layer(activations, found.activations, _precision(found)) is None:
            return Identity(**{**vars(found), "activations": activations, "variant": variant})
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(folder / f"{found.variant}.json") as file:
        json.dump(found.activations, file)
    return found


def _variants(folder: Path) -> Iterator[tuple[str, Fingerprint]]:
    """Yield name and fingerprint of the networks with these weights; damaged files are passed over."""
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
