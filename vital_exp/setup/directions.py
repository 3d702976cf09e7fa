"""The directions of a run's targets: from a file, of concepts, of an autoencoder's features, or of texts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor

from vital_exp.concepts.concepts import Concepts
from vital_exp.concepts.mine import ConceptMining, ConceptSettings, check_classifier, class_folder
from vital_exp.config import plain
from vital_exp.configuration import Configuration
from vital_exp.errors import UsageError
from vital_exp.mining import index as indices
from vital_exp.mining.images import ImageFolder
from vital_exp.mining.index import Index
from vital_exp.mining.meta import network_difference
from vital_exp.models.identity import identity_of
from vital_exp.models.network import VisionNetwork
from vital_exp.models.open_clip import ClipNetwork
from vital_exp.setup.mined import image_folder, settle_index
from vital_exp.setup.parts import loader_of
from vital_exp.targets.autoencoder import SparseAutoencoder
from vital_exp.targets.autoencoder_files import load_autoencoder
from vital_exp.targets.directions import load_directions
from vital_exp.targets.unit import OUTPUT


def settle_files(config: Configuration) -> Configuration:
    """Return the configuration with open keys filled in from files.

    A file of concepts has the layer, and an index of the patches that drive the concepts. An index has the folder of
    its images.

    Raises:
        UsageError: no such file.
    """
    return settle_index(_settle_concepts(config))


def _settle_concepts(config: Configuration) -> Configuration:
    place = config.target.concepts
    if config.target.kind != "concept" or place is None:
        return config
    concepts, path = Concepts.open(place), Path(place).expanduser()
    if config.target.layer is None:
        config = config.with_keys(target__layer=concepts.layer)
    index = (path if path.is_dir() else path.parent) / indices.NAME
    keys = config.references
    if keys.source == "mined" and not keys.root and not keys.index and index.is_file():
        count = min(keys.count, Index.open(index).meta["k"])  # the index has k patches of each concept
        named = {"references__index": str(index), "references__root": concepts.meta["folder"]}
        config = config.with_keys(**named, references__count=count)
    return config


def vectors_of(config: Configuration, network: VisionNetwork, layer: str, channels: int) -> Tensor | SparseAutoencoder:
    """Return the directions (K, C) of direction targets, or the autoencoder whose features the targets are.

    Raises:
        UsageError: no directions are named, or they belong to another layer, network or number of channels.
    """
    keys = {**plain(config)["target"], "layer": layer}
    if keys["kind"] == "sae":
        return _autoencoder(json.dumps(keys, sort_keys=True, default=str), channels, _stamps(keys))
    if keys["kind"] == "concept":
        return _concepts(config, keys, network)
    if keys["kind"] == "text":
        return _texts(keys, network)
    if not keys.get("vectors"):
        raise UsageError("target.vectors", keys.get("vectors"), "a .safetensors or .npy file of directions is needed")
    vectors = load_directions(str(keys["vectors"]))
    if vectors.shape[1] != channels:
        problem = f"has directions of {vectors.shape[1]} channels, and {layer} has {channels} channels"
        raise UsageError("target.vectors", keys["vectors"], problem)
    return vectors


@lru_cache(maxsize=1)
def _autoencoder(keys: str, channels: int, _stamps: tuple[object, ...]) -> SparseAutoencoder:
    """Load an autoencoder; all batches of a run share it, unless its files change."""
    return load_autoencoder(json.loads(keys), channels)


def _stamps(keys: Mapping[str, Any]) -> tuple[object, ...]:
    """Return name, size and time of change of the autoencoder's files, as a key of the cache."""
    named = [Path(str(keys[key]).partition("#")[0]).expanduser() for key in ("checkpoint", "mean") if keys.get(key)]
    files = [file for path in named for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
    return tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file())


def _concepts(config: Configuration, keys: Mapping[str, Any], network: VisionNetwork) -> Tensor:
    """Return the directions of concepts, from a file, from the cache, or mined now."""
    if keys["concepts"] is None:
        try:
            mining = _mining(config, keys, network)
            return mining.find(config.cache / "concepts" / mining.key).factors.directions
        except UsageError as error:
            raise UsageError(_own_key(error.key), error.value, error.problem) from None
    concepts = Concepts.open(keys["concepts"])
    if concepts.layer != keys["layer"]:
        raise UsageError("target.layer", keys["layer"], f"the concepts are of {concepts.layer}")
    if text := network_difference(concepts.meta, identity_of(network)):
        raise UsageError("target.concepts", keys["concepts"], f"the concepts are of {text}")
    return concepts.factors.directions


def prompts_of(keys: Mapping[str, Any]) -> list[str]:
    """Return the prompts of ``target=text``.

    Raises:
        UsageError: no prompts, or values that are no texts.
    """
    given = keys.get("prompt")
    prompts = [given] if isinstance(given, (str, int, float)) else given
    if not isinstance(prompts, list) or not prompts or not all(str(prompt).strip() for prompt in prompts):
        raise UsageError("target.prompt", given, 'a text is needed, such as "a striped animal", or a list of texts')
    return [str(prompt) for prompt in prompts]


def _texts(keys: Mapping[str, Any], network: VisionNetwork) -> Tensor:
    """Return the embeddings of the prompts, directions of the image embedding."""
    if not isinstance(network.module, ClipNetwork):
        raise UsageError("target", "text", f"{network.name} has no text tower; model=open_clip has one")
    if keys["layer"] != OUTPUT:
        raise UsageError("target.layer", keys["layer"], f"texts are directions of the image embedding, {OUTPUT}")
    return network.module.texts(prompts_of(keys))


def _own_key(key: str) -> str:
    """Return the key of the group ``target`` that corresponds to a key of vital-mine."""
    return {"concepts": "target.method", "layers": "target.layer"}.get(key, key.replace("concepts.", "target."))


def _mining(config: Configuration, keys: Mapping[str, Any], network: VisionNetwork) -> ConceptMining:
    if not config.references.root and config.model.source != "embedded":
        problem = "a folder of images to find concepts in is needed, or target.concepts=folder of vital-mine"
        raise UsageError("references.root", config.references.root, problem)
    root, of_class = image_folder(config.references.root, config.cache), keys["class"]
    if of_class is not None:
        check_classifier(network, of_class, "target.class")
        of_class = network.classes.find(str(of_class), "target.class")
        root = class_folder(root, network, of_class, "references.root", loader_of(config))
    folder = ImageFolder(root, network.preprocessing, "references.root", loader_of(config))
    names = ("method", "count", "importance", "seed", "patches", "explained")
    settings = ConceptSettings(of_class=of_class, **{name: keys[name] for name in names})
    return ConceptMining(network, keys["layer"], folder, settings, progress=config.progress)
