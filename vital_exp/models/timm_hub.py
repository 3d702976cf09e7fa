"""Networks that timm saved or published: a folder with config.json and weights, on disk or on the hub."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vital_exp.errors import UsageError
from vital_exp.models import hub
from vital_exp.models.sources import recognised
from vital_exp.targets.class_name_files import WORDNET_ID
from vital_exp.targets.class_names import ClassNames
from vital_exp.weights_files import read_tensors

# timm's prefixes of names; the second is an older spelling of the first.
HUB, OLD_HUB, FOLDER = "hf-hub:", "hf_hub:", "local-dir:"
PREFIXES = (HUB, OLD_HUB, FOLDER)
WEIGHTS = (hub.SAFE_WEIGHTS[0], *hub.PICKLES)
# Keys of a folder's configuration by which timm would look for weights elsewhere; they are left out.
PLACES = ("file", "url", "hf_hub_id", "hf_hub_filename", "source", "custom_load", "state_dict")


def is_hub_name(name: str) -> bool:
    """Whether a name is that of a network in a folder or on the hub, not one of timm's own list."""
    return name.startswith(PREFIXES)


def repository(name: str) -> str | None:
    """Return the repository in a name of the hub; None for other names."""
    return name.partition(":")[2] if name.startswith((HUB, OLD_HUB)) else None


def hub_network(
    name: str, weights: bool, fetch: bool, arguments: Mapping[str, Any], cache_dir: Path | None
) -> tuple[nn.Module, ClassNames | None]:
    """Return timm's network of a folder, or of Hugging Face's hub, and its class names where it brings them.

    Args:
        name: ``local-dir:folder`` or ``hf-hub:owner/name@revision``.
        weights: whether its weights are loaded; else they are random.
        fetch: whether files of the hub that are not in the cache are downloaded.
        arguments: arguments of the constructor, which override the folder's.
        cache_dir: where the hub's files are kept.

    Raises:
        UsageError: no such folder, not a network of timm, or no weights that can be read without running code.
        OSError, ValueError: the hub's files are not in the cache, or cannot be downloaded.
    """
    import timm

    folder = _folder(name, weights, fetch, cache_dir)
    config = hub.read_config(folder)
    architecture, own = _described(config, name)
    if weights:
        own["state_dict"] = _read_weights(folder, name)
    given = {**(config.get("model_args") or {}), **arguments}
    try:
        module: Any = timm.create_model(architecture, pretrained=weights, pretrained_cfg=own, **given)
    except (RuntimeError, AttributeError, KeyError) as error:  # what timm raises for another network's tensors
        lines = " ".join(str(error).split())
        raise UsageError(hub.KEY, name, f"its weights do not fit {architecture}: {lines[:200]}") from None
    own.pop("state_dict", None)
    module.pretrained_cfg.pop("state_dict", None)  # it would keep a second copy of all weights
    return module, _class_names(config, own)


def _folder(name: str, weights: bool, fetch: bool, cache_dir: Path | None) -> Path:
    place = repository(name)
    if place is None:
        return hub.local_folder(name.removeprefix(FOLDER), name)
    if not place:
        raise UsageError(hub.KEY, name, f"a name of the hub is {HUB}owner/name")
    if not fetch and not hub.in_cache(place, [hub.CONFIG], cache_dir or _own_cache()):
        problem = f"its {hub.CONFIG}, which names the architecture, is not in the cache"
        raise UsageError(hub.KEY, name, f"{problem}: model.pretrained=true downloads it, {FOLDER}folder reads yours")
    folder = hub.hub_folder(place, [hub.CONFIG], cache_dir, fetch)
    for file in WEIGHTS if weights else ():
        if (hub.hub_folder(place, [hub.CONFIG, file], cache_dir, fetch) / file).is_file():
            break
    return folder


def _own_cache() -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def _described(config: Mapping[str, Any], name: str) -> tuple[str, dict[str, Any]]:
    """Return timm's name of the architecture, and the folder's settings for input and classes."""
    import timm
    from timm.models import PretrainedCfg

    old = "pretrained_cfg" not in config  # the older format keeps all keys in one object
    architecture = config.get("architecture")
    if not isinstance(architecture, str):
        other = "; it is one of transformers: model=transformers" if "model_type" in config else ""
        raise UsageError(hub.KEY, name, f"its {hub.CONFIG} names no architecture of timm{other}")
    if not timm.is_model(architecture):
        problem = f"is of {architecture}, which this version of timm does not have"
        raise UsageError(hub.KEY, name, problem, timm.list_models())
    own = dict(config if old else config["pretrained_cfg"])
    own |= {key: config[key] for key in ("num_classes", "label_names", "label_descriptions") if key in config}
    if "labels" in own:
        own["label_names"] = own.pop("labels")
    known = {field.name for field in dataclasses.fields(PretrainedCfg)} - set(PLACES)
    return architecture, {key: value for key, value in own.items() if key in known}


def _read_weights(folder: Path, name: str) -> Mapping[str, Tensor]:
    found = [folder / file for file in WEIGHTS if (folder / file).is_file()]
    if not found:
        problem = f"holds no weights ({', '.join(WEIGHTS)}): give them by model.checkpoint=file"
        raise UsageError(hub.KEY, name, problem)
    return read_tensors(found[0], hub.KEY)


def _class_names(config: Mapping[str, Any], own: Mapping[str, Any]) -> ClassNames | None:
    """Return the class names, by description where a label has one; None where names are missing."""
    labels = own.get("label_names") or ()
    count = int(own.get("num_classes", len(labels)))
    if isinstance(labels, dict):  # by number; some may be missing
        labels = [labels.get(str(i), f"class {i}") for i in range(count)]
    if not labels or len(labels) != count:
        return None
    words = own.get("label_descriptions") or {}
    ids = list(map(str, labels)) if all(WORDNET_ID.fullmatch(str(label)) for label in labels) else None
    return recognised([str(words.get(label, label)) for label in labels], ids)
