"""Networks of timm in the form in which it saves and publishes them: a folder of config.json and weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from vital_exp.errors import UsageError
from vital_exp.models import hub
from vital_exp.models.sources import recognised
from vital_exp.targets.class_name_files import WORDNET_ID
from vital_exp.targets.class_names import ClassNames
from vital_exp.weights_files import read_tensors

# timm's prefixes of a name; the second is an older spelling of the first.
HUB, OLD_HUB, FOLDER = "hf-hub:", "hf_hub:", "local-dir:"
PREFIXES = (HUB, OLD_HUB, FOLDER)
WEIGHTS = (hub.SAFE_WEIGHTS[0], *hub.PICKLES)
# Of a folder's configuration, what would send timm elsewhere for weights.
PLACES = ("file", "url", "hf_hub_id", "hf_hub_filename", "source", "custom_load", "state_dict")


def is_hub_name(name: str) -> bool:
    """Whether a name is of a network in a folder or on the hub, not of timm's own list."""
    return name.startswith(PREFIXES)


def repository(name: str) -> str | None:
    """Return the repository of a name of the hub; None of other names."""
    return name.partition(":")[2] if name.startswith((HUB, OLD_HUB)) else None


def hub_network(
    name: str, weights: bool, fetch: bool, arguments: Mapping[str, Any], cache_dir: Path | None
) -> tuple[nn.Module, ClassNames | None]:
    """Return a network of a folder, or of Hugging Face's hub, and the names of its classes where it brings them.

    Args:
        name: ``local-dir:folder`` or ``hf-hub:owner/name@revision``.
        weights: whether its weights are loaded; else they are random.
        fetch: whether files of the hub that are not in the cache are downloaded.
        arguments: of the constructor, before those of the folder.
        cache_dir: where the hub's files are kept.

    Raises:
        UsageError: no such folder, none of timm, or no weights in it that can be read without running code.
        OSError, ValueError: the hub's files cannot be had.
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
    except (RuntimeError, AttributeError, KeyError) as error:  # what timm raises over tensors of others
        lines = " ".join(str(error).split())
        raise UsageError(hub.KEY, name, f"its weights do not fit {architecture}: {lines[:200]}") from None
    own.pop("state_dict", None)
    module.pretrained_cfg.pop("state_dict", None)  # a second copy of all weights
    return module, _class_names(config, own)


def _folder(name: str, weights: bool, fetch: bool, cache_dir: Path | None) -> Path:
    place = repository(name)
    if place is None:
        return hub.local_folder(name.removeprefix(FOLDER), name)
    if not place:
        raise UsageError(hub.KEY, name, f"a name of the hub is {HUB}owner/name")
    if not fetch and not hub.in_cache(place, [hub.CONFIG], cache_dir or _own_cache()):
        problem = f"what network it is stands in its {hub.CONFIG}, which is not in the cache"
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
    """Return timm's name of the architecture, and what the folder says of input and classes."""
    import timm
    from timm.models import PretrainedCfg

    old = "pretrained_cfg" not in config  # all in one
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


def _read_weights(folder: Path, name: str) -> dict[str, Any]:
    found = [folder / file for file in WEIGHTS if (folder / file).is_file()]
    if not found:
        problem = f"holds no weights ({', '.join(WEIGHTS)}): model.checkpoint=file names them"
        raise UsageError(hub.KEY, name, problem)
    return read_tensors(found[0], hub.KEY)


def _class_names(config: Mapping[str, Any], own: Mapping[str, Any]) -> ClassNames | None:
    """Return the names of the classes: what describes a label, else the label itself."""
    labels = own.get("label_names") or ()
    count = int(own.get("num_classes", len(labels)))
    if isinstance(labels, dict):  # where numbers are left out
        labels = [labels.get(str(i), f"class {i}") for i in range(count)]
    if not labels or len(labels) != count:
        return None
    words = own.get("label_descriptions") or {}
    ids = list(map(str, labels)) if all(WORDNET_ID.fullmatch(str(label)) for label in labels) else None
    return recognised([str(words.get(label, label)) for label in labels], ids)
