"""Whether the weights of a judge are on this machine: evaluation downloads nothing unless ``download`` is true."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vital_exp.errors import UsageError
from vital_exp.evaluation.score import NotComputed
from vital_exp.models import hub, timm_hub
from vital_exp.models.model_config import ModelConfig
from vital_exp.models.named import named_config, named_network
from vital_exp.models.network import VisionNetwork

Spec = str | Mapping[str, Any]
# The files that timm looks for in a repository of weights, in its order.
HUB_FILES = ("model.safetensors", "pytorch_model.bin")


def network_if_there(spec: Spec, cache_dir: Path, download: bool, key: str) -> VisionNetwork:
    """Build a network by name, or from the keys of the group ``model``, if no weights are missing.

    Raises:
        UsageError: an unknown name or key, or weights that cannot be loaded.
        NotComputed: the weights are missing, and ``download`` is false.
    """
    config = _config(spec, key)
    if not download and not weights_there(config, cache_dir):
        name = config.name or config.factory
        raise NotComputed(f"needs the weights of {name}: give a checkpoint, or download=true")
    return named_network(spec, cache_dir, key)


def _config(spec: Spec, key: str) -> ModelConfig:
    if isinstance(spec, str):
        return named_config(spec, key)
    known = {name: value for name, value in spec.items() if name in ModelConfig.__dataclass_fields__}
    return ModelConfig(**known)  # named_network reports unknown keys


def weights_there(config: ModelConfig, cache_dir: Path) -> bool:
    """Return whether a network can be built without a download."""
    if config.source == "open_clip":
        return bool(config.checkpoint) or not config.pretrained
    if not config.pretrained or config.checkpoint or config.source not in FILES:
        return True
    return FILES[config.source](config, cache_dir)


def _torchvision_file(config: ModelConfig, cache_dir: Path) -> bool:
    from torchvision import models

    if config.name not in models.list_models():
        return True  # the mistake is reported when the network is built
    choices = models.get_model_weights(config.name)
    if config.weights != "DEFAULT" and config.weights not in [one.name for one in choices]:
        return True
    return (cache_dir / Path(choices[config.weights].url).name).is_file()


def _timm_file(config: ModelConfig, cache_dir: Path) -> bool:
    import timm
    from huggingface_hub import try_to_load_from_cache

    if timm_hub.is_hub_name(str(config.name)):
        repository = timm_hub.repository(str(config.name))
        return repository is None or hub.in_cache(repository, timm_hub.WEIGHTS, cache_dir)
    if not timm.is_model(str(config.name)):
        return True
    own = timm.get_pretrained_cfg(str(config.name))
    if own is None or own.file:
        return True
    if not own.hf_hub_id:
        return isinstance(own.url, str) and (cache_dir / Path(own.url).name).is_file()
    repository, _, revision = own.hf_hub_id.partition("@")
    names = (own.hf_hub_filename,) if own.hf_hub_filename else HUB_FILES
    found = (try_to_load_from_cache(repository, name, cache_dir=cache_dir, revision=revision or None) for name in names)
    return any(isinstance(path, str) for path in found)


def _transformers_file(config: ModelConfig, cache_dir: Path) -> bool:
    name = str(config.name)
    return name.count("/") != 1 or Path(name).is_dir() or hub.in_cache(name, hub.SAFE_WEIGHTS, cache_dir)


FILES = {"timm": _timm_file, "torchvision": _torchvision_file, "transformers": _transformers_file}


def hub_file(name: str) -> Path:
    """Return the path at which torch.hub keeps a downloaded file."""
    return Path(torch.hub.get_dir()) / "checkpoints" / name


def local_file(path: str | None, key: str) -> Path | None:
    """Return the path of a file that the user named, or None.

    Raises:
        UsageError: the file does not exist.
    """
    if path is None:
        return None
    place = Path(path).expanduser()
    if not place.is_file():
        raise UsageError(key, path, "no such file")
    return place
