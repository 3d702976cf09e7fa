"""What an index is of: network, images, units and settings, and how two of them differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from vital_exp.mining.images import ImageFolder
from vital_exp.mining.patches import PatchSettings
from vital_exp.mining.units import Units
from vital_exp.models.identity import LAYER, PARTS, Identity, difference, identity_of

FORMAT = 7  # of the index and of the state; raise it when what they hold changes
NETWORK = (*PARTS, "precision", "variant")
IMAGES = ("fingerprint",)
SETTINGS = ("format", "layers", "k", "pooling", "patch")
Meta = Mapping[str, Any]


def describe(units: Units, folder: ImageFolder, k: int, patch: PatchSettings | None) -> dict[str, Any]:
    """Return all that an index depends on, and names for people, ready for JSON.

    Keys: format, key (a hash of what decides the content), network, weights, architecture, preprocessing, precision,
    activations (the fingerprints of the layers), variant, folder, images, fingerprint, layers, k, pooling, patch (size,
    overlap, search; null: no patches), input (height and width in px), classes (of the network; null: none), maps (the
    shape of each layer's).
    """
    meta = {
        "format": FORMAT,
        **identity_of(units.network).describe(units.layers),
        **describe_images(folder),
        "layers": units.describe(),
        "k": k,
        "pooling": units.pooling,
        "patch": {**vars(patch), "size": patch.side(*folder.preprocessing.size)} if patch else None,
        "input": list(folder.preprocessing.size),
        "classes": None if (names := units.network.class_names) is None else len(names),
        "maps": {layer: list(shape) for layer, shape in units.shapes.items()},
    }
    content = {key: meta[key] for key in (*NETWORK, *IMAGES, *SETTINGS)}  # names of things take no part
    return {"key": hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24], **meta}


def describe_images(folder: ImageFolder) -> dict[str, Any]:
    """Return the part that the images decide."""
    return {"folder": str(folder.root.resolve()), "images": len(folder.paths), "fingerprint": folder.fingerprint}


def network_difference(old: Meta, new: Identity) -> str | None:
    """Say how the network of an index and the one at hand differ; None when they do not."""
    what = difference(old, new)
    if what is None:
        return None
    if what.startswith(LAYER):
        return f"another network ({new.name} computes something else at {what} now: other code or hooks)"
    return f"another network ({old['network']}, {what} {old[what]}; now {new.name}, {what} {getattr(new, what)})"


def images_difference(old: Meta, new: Meta) -> str | None:
    """Say how the images of an index and those at hand differ; None when they do not."""
    if old["fingerprint"] == new["fingerprint"]:
        return None
    if old["folder"] != new["folder"]:
        return f"another folder ({old['folder']}; now {new['folder']})"
    if old["images"] != new["images"]:
        return f"other images: {new['folder']} held {old['images']} then and holds {new['images']} now"
    return f"other images: files of {new['folder']} have changed since (names, sizes or times)"


def settings_difference(old: Meta, new: Meta) -> str | None:
    """Say in which settings two indices differ; None when they do not."""
    differing = [key for key in SETTINGS if old.get(key) != new[key]]
    if not differing:
        return None
    return ", ".join(f"{key} ({_short(old.get(key))} there, {_short(new[key])} now)" for key in differing)


def _short(value: object) -> str:
    """Return a value for a message; layers as "layer3 0-63 and layer4 0-7"."""
    if not isinstance(value, list):
        return str(value)
    return " and ".join(" ".join(str(part) for part in one.values() if part) for one in value)
