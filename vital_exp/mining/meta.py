"""The description of an index (network, images, units, settings), and the differences between two descriptions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from vital_exp.mining.images import ImageFolder
from vital_exp.mining.patches import PatchSettings
from vital_exp.mining.units import Units
from vital_exp.models.identity import LAYER, PARTS, Identity, difference, identity_of

FORMAT = 7  # version of the index and of the saved state; raise it when their content changes
NETWORK = (*PARTS, "precision", "variant")
IMAGES = ("fingerprint",)
SETTINGS = ("format", "layers", "k", "pooling", "patch")
Meta = Mapping[str, object]


def describe(units: Units, folder: ImageFolder, k: int, patch: PatchSettings | None) -> dict[str, object]:
    """Return everything that an index depends on, and names for people, ready for JSON.

    Keys: format, key (a hash of everything that decides the content), network, weights, architecture, preprocessing,
    precision, activations (the fingerprints of the layers), variant, folder, images (their number), fingerprint (of the
    images), layers, k, pooling, patch (size, overlap, search; null: no patches), input (height and width in px),
    classes (their number; null: the network has none), maps (the shape of each layer's map).
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
    content = {key: meta[key] for key in (*NETWORK, *IMAGES, *SETTINGS)}  # a renamed folder or network is the same
    return {"key": hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24], **meta}


def describe_images(folder: ImageFolder) -> dict[str, object]:
    """Return the part of the description that depends on the images."""
    return {"folder": str(folder.root.resolve()), "images": len(folder.paths), "fingerprint": folder.fingerprint}


def network_difference(old: Meta, new: Identity) -> str | None:
    """Describe how the network of an index differs from the present network; None when it does not."""
    part = difference(old, new)
    if part is None:
        return None
    if part.startswith(LAYER):
        return f"another network ({new.name} computes something else at {part} now: other code or hooks)"
    return f"another network ({old['network']}, {part} {old[part]}; now {new.name}, {part} {getattr(new, part)})"


def images_difference(old: Meta, new: Meta) -> str | None:
    """Describe how the images of an index differ from the present images; None when they do not."""
    if old["fingerprint"] == new["fingerprint"]:
        return None
    if old["folder"] != new["folder"]:
        return f"another folder ({old['folder']}; now {new['folder']})"
    if old["images"] != new["images"]:
        return f"other images: {new['folder']} held {old['images']} then and holds {new['images']} now"
    return f"other images: files of {new['folder']} have changed since (names, sizes or times)"


def settings_difference(old: Meta, new: Meta) -> str | None:
    """Describe in which settings two indices differ; None when they do not."""
    differing = [key for key in SETTINGS if old.get(key) != new[key]]
    if not differing:
        return None
    return ", ".join(f"{key} ({_short(old.get(key))} there, {_short(new[key])} now)" for key in differing)


def _short(value: object) -> str:
    """Return a value for a message; layers as "layer3 0-63 and layer4 0-7"."""
    if not isinstance(value, list):
        return str(value)
    return " and ".join(" ".join(str(part) for part in layer.values() if part) for layer in value)
