"""Networks of Hugging Face's transformers, from a folder or the hub: classifiers, backbones and image towers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from importlib.util import find_spec
from logging import CRITICAL
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vital_exp.errors import UsageError
from vital_exp.models import hub
from vital_exp.models.checkpoints import load_checkpoint
from vital_exp.models.heads import NONE, SIGMOID
from vital_exp.models.image_processors import FILES, read_preprocessing
from vital_exp.models.sources import Built, recognised
from vital_exp.targets.class_names import ClassNames
from vital_exp.weights_files import read_tensors

PREFIX = "transformers:"  # begins a network's name in load_model
OWN_FILES = (hub.CONFIG, *FILES)
WEIGHTS = (*hub.SAFE_WEIGHTS, hub.SAFE_PARTS)
CLASSIFIER, BACKBONE = "ForImageClassification", "Backbone"
# Models of images and texts, and the class of their image tower.
TOWERS = {"clip": "CLIPVisionModelWithProjection", "siglip": "SiglipVisionModel"}
# By transformers' problem_type: the head of a classifier, where its classes do not exclude each other.
HEADS = {"multi_label_classification": SIGMOID, "regression": NONE}
# Networks that mask parts of a picture at random: the class that takes their weights and sees the whole picture.
UNMASKED = {"vit_mae": "ViTModel"}
POOLER = "pooler."  # begins the names of a layer whose weights many published backbones lack
LONGEST = 120  # characters of the library's messages that are repeated
UNNAMED = "LABEL_"  # begins transformers' names of classes that have none


def transformers_network(
    name: str, checkpoint: str | None, checkpoint_key: str | int | None, fetch: bool, cache_dir: Path | None
) -> Built:
    """Return a network of transformers that takes normalised pictures and returns one tensor.

    Classifiers return logits (N, classes). All others return an embedding (N, D): CLIP's and SigLIP's of the image,
    else the pooled output, else the class token or the mean over positions. Layers have the library's names.

    Args:
        name: a folder, or ``owner/name@revision`` of Hugging Face's hub.
        checkpoint: local weights in place of the folder's.
        checkpoint_key: where in the file the weights are.
        fetch: whether files of the hub that are not in the cache are downloaded.
        cache_dir: where the hub's files are kept.

    Raises:
        UsageError: transformers is not installed; no such folder, or a folder of another library, without safe weights,
            with code of its own, or with a network that takes no pictures; the hub's files are not in the cache, or
            cannot be downloaded.
    """
    if find_spec("transformers") is None:
        raise UsageError("model", "transformers", "needs transformers: pip install vital-exp[transformers]")
    folder = _folder(name, checkpoint is None, fetch, cache_dir)
    with _quietly():
        config = _config(folder, name)
        kind = _class(config, name)
        own = _own_config(config, kind)
        if checkpoint is None:
            module = _from_folder(kind, own, folder, name)
        else:
            module = _from_checkpoint(kind, own, checkpoint, checkpoint_key)
    module.register_forward_hook(_output)
    preprocessing = read_preprocessing(folder, module.config, partial(_processor, folder, name))
    if CLASSIFIER in kind.__name__:
        return Built(module, preprocessing, _class_names(module.config), HEADS.get(module.config.problem_type))
    module.num_classes = 0  # its output is an embedding
    return Built(module, preprocessing)


def _folder(name: str, weights: bool, fetch: bool, cache_dir: Path | None) -> Path:
    if Path(name).expanduser().is_dir():
        return hub.local_folder(name, name)
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise UsageError(hub.KEY, name, f"no such folder, and not a name owner/name of {hub.HUB}")
    if not fetch:
        problem = f"no such folder; model.pretrained=true downloads the network of this name from {hub.HUB}"
        raise UsageError(hub.KEY, name, problem)
    try:
        folder = hub.hub_folder(name, OWN_FILES, cache_dir, fetch)
        if not (folder / hub.CONFIG).is_file():
            raise UsageError(hub.KEY, name, f"holds no {hub.CONFIG}, which says what network it is")
        _check_described(hub.read_config(folder), name)  # before anything large is fetched
        return hub.hub_folder(name, [*OWN_FILES, *WEIGHTS], cache_dir, fetch) if weights else folder
    except (OSError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        problem = f"cannot be had from {hub.HUB} ({_first(error)}): give a folder that is on this machine"
        raise UsageError(hub.KEY, name, problem) from None


def _check_described(content: Mapping[str, Any], name: str) -> None:
    """Raise UsageError unless config.json describes a network that transformers itself has."""
    from transformers import CONFIG_MAPPING, __version__

    if "auto_map" in content:
        problem = "brings code of its own (auto_map in its config.json), which is not run: write a function that builds"
        raise UsageError(hub.KEY, name, f"{problem} it, model=python model.factory=file.py:function")
    kind = content.get("model_type")
    if kind is None:
        other = "; it is one of timm: model=timm model.name=local-dir:folder" if "architecture" in content else ""
        raise UsageError(hub.KEY, name, f"its {hub.CONFIG} names no model_type of transformers{other}")
    if kind not in CONFIG_MAPPING:
        raise UsageError(hub.KEY, name, f"is of model_type {kind}, which transformers {__version__} does not have")


def _config(folder: Path, name: str) -> Any:
    from transformers import AutoConfig

    _check_described(hub.read_config(folder), name)
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # huggingface_hub raises its own exceptions for values of a wrong type
        raise UsageError(hub.KEY, name, f"its {hub.CONFIG} is not understood: {_first(error)}") from None


def _class(config: Any, name: str) -> type[Any]:
    """Return the class of transformers to build: the saved one if it is known, else the library's base model."""
    import transformers
    from transformers import AutoBackbone, AutoModel

    saved = next(iter(config.architectures or ()), "")
    if config.model_type in UNMASKED:
        kind = getattr(transformers, UNMASKED[config.model_type])
    elif config.model_type in TOWERS and not saved.endswith(CLASSIFIER):
        kind = getattr(transformers, TOWERS[config.model_type])
    elif (CLASSIFIER in saved or saved.endswith((BACKBONE, "WithProjection"))) and hasattr(transformers, saved):
        kind = getattr(transformers, saved)
    else:
        mappings = [one._model_mapping for one in (AutoModel, AutoBackbone)]
        kind = next((mapping[type(config)] for mapping in mappings if type(config) in mapping), None)
    if getattr(kind, "main_input_name", None) != "pixel_values" or not isinstance(kind, type):
        raise UsageError(hub.KEY, name, f"is a {saved or config.model_type}, which does not take pictures alone")
    return kind


def _own_config(config: Any, kind: type[Any]) -> Any:
    """Return the configuration of the class that is built: of a model of images and texts, the image tower's."""
    if config.model_type in UNMASKED:
        own_kind = kind.config_class
        known = own_kind().to_dict().keys() - {"model_type", "architectures"}
        return own_kind(**{key: value for key, value in config.to_dict().items() if key in known})
    if TOWERS.get(config.model_type) != kind.__name__:
        return config
    own = config.vision_config
    if hasattr(config, "projection_dim"):
        own.projection_dim = config.projection_dim
    return own


def _from_folder(kind: type[Any], config: Any, folder: Path, name: str) -> Any:
    if not any((folder / file).is_file() for file in hub.SAFE_WEIGHTS):
        pickle = next((folder / file for file in hub.PICKLES if (folder / file).is_file()), None)
        advice = f"model.checkpoint={pickle or 'file'} reads {'it as weights only' if pickle else 'other formats'}"
        raise UsageError(hub.KEY, name, f"holds no {hub.SAFE_WEIGHTS[0]}: {advice}")
    return _loaded(kind, folder, name, config=config, use_safetensors=True, local_files_only=True)


def _from_checkpoint(kind: type[Any], config: Any, path: str, key: str | int | None) -> Any:
    """Build a network with the weights of a file, by the names of this version of transformers or of older ones."""
    if key is None:
        tensors = read_tensors(path)
        with suppress(UsageError):  # load_checkpoint, below, reads more formats and says what is wrong
            return _loaded(kind, None, path, config=config, state_dict=tensors)
    module = kind(config)
    load_checkpoint(module, path, key)
    return module


def _loaded(kind: type[Any], folder: Path | None, name: str, **given: Any) -> Any:
    """Return a network with the given weights, all of them.

    Raises:
        UsageError: weights are missing or have another shape.
    """
    load = partial(kind.from_pretrained, folder, output_loading_info=True, dtype=torch.float32, **given)
    try:
        module, found = load(ignore_mismatched_sizes=True)
        if found["missing_keys"] and all(POOLER in one for one in found["missing_keys"]):  # the pooler would be random
            module, found = load(ignore_mismatched_sizes=True, add_pooling_layer=False)
    except Exception as error:  # safetensors, huggingface_hub and transformers raise many classes
        raise UsageError(hub.KEY, name, f"its weights cannot be read: {_first(error)}") from None
    other = [one[0] if isinstance(one, tuple) else one for one in found["mismatched_keys"]]
    for what, names in (("lack", sorted(found["missing_keys"])), ("have another shape of", sorted(other))):
        if names:
            problem = f"its weights {what} {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"
            raise UsageError(hub.KEY, name, f"{problem} of a {kind.__name__}")
    return module


def _output(_module: nn.Module, _given: object, returned: Any) -> Tensor:
    """Return one tensor in place of all that a network of transformers returns: its logits or embeddings (N, D)."""
    for key in ("logits", "image_embeds", "pooler_output"):
        if isinstance(found := getattr(returned, key, None), Tensor):
            return found.flatten(1) if key != "logits" else found
    maps = getattr(returned, "feature_maps", None)
    last = maps[-1] if maps else getattr(returned, "last_hidden_state", None)
    if not isinstance(last, Tensor):
        names = ", ".join(returned.keys()) if isinstance(returned, dict) else type(returned).__name__
        raise ValueError(f"it returns neither logits nor an embedding: {names}")
    return last.mean((2, 3)) if last.ndim == 4 else last[:, 0]  # the class token


def _class_names(config: Any) -> ClassNames | None:
    known = config.id2label or {}
    names = [str(known.get(i, f"{UNNAMED}{i}")) for i in range(len(known))]
    return recognised(names) if any(not name.startswith(UNNAMED) for name in names) else None


def _processor(folder: Path, name: str) -> Mapping[str, Any]:
    """Return all settings of an image processor; its class fills those that the file leaves out."""
    from transformers import AutoImageProcessor

    try:
        with _quietly():
            load: Any = AutoImageProcessor.from_pretrained
            own = load(folder, local_files_only=True, trust_remote_code=False)
        settings: dict[str, Any] = own.to_dict()
    except Exception as error:  # any exception of the processor's class
        problem = f"its {FILES[0]} lacks size, image_mean or image_std, and is not understood ({_first(error)})"
        raise UsageError(hub.KEY, name, problem) from None
    return settings


def _first(error: BaseException) -> str:
    return " ".join(str(error).split())[:LONGEST] or type(error).__name__


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep transformers from drawing progress bars and reporting on weights: this library reports what matters."""
    from transformers.utils import logging

    reports: Any = logging
    level, bars = reports.get_verbosity(), reports.is_progress_bar_enabled()
    reports.set_verbosity(CRITICAL)
    reports.disable_progress_bar()
    try:
        yield
    finally:
        reports.set_verbosity(level)
        if bars:
            reports.enable_progress_bar()
