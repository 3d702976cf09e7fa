"""Networks by their source: timm, torchvision, a Python factory, this package, open_clip, transformers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from textwrap import shorten
from typing import Any

from torch import nn

from vital_exp.errors import UsageError
from vital_exp.models import embedded, hub, timm_hub
from vital_exp.models.checkpoints import load_checkpoint
from vital_exp.models.factories import find_factory
from vital_exp.models.model_config import ModelConfig
from vital_exp.models.network import Preprocessing
from vital_exp.models.open_clip import clip_network
from vital_exp.models.preprocessing import SMALLEST_CROPPED_INPUT
from vital_exp.models.sources import Built
from vital_exp.models.transformers_models import transformers_network
from vital_exp.targets.class_name_files import read_class_names
from vital_exp.targets.class_names import ClassNames
from vital_exp.values import one_of

# Networks whose published weights expect an input transform, which torchvision sets only when it loads them itself.
INCEPTIONS = ("googlenet", "inception_v3")
WITHOUT_WEIGHTS = "give model.checkpoint=file or model.pretrained=false"
LONGEST_REASON = 150  # letters of a library's own message


def _from_timm(config: ModelConfig, cache_dir: Path | None) -> Built:
    import timm

    name = _required(config.name, "model.name", "the name of a timm network")
    pretrained, names = config.pretrained and not config.checkpoint, None
    if timm_hub.is_hub_name(name):  # its own configuration says how many classes it has
        with _explained_failures("model.name", name, pretrained):
            module, names = timm_hub.hub_network(name, pretrained, config.pretrained, config.arguments, cache_dir)
    elif timm.is_model(name):
        with _explained_failures("model.name", name, pretrained):
            arguments = _with_class_count(config)
            module = timm.create_model(name, pretrained=pretrained, cache_dir=cache_dir, **arguments)
    else:
        raise UsageError("model.name", name, _unknown_to_timm(name), timm.list_models())
    own: Any = module.pretrained_cfg
    size = tuple(own["input_size"][1:])
    resize = round(min(size) / own.get("crop_pct", 1.0)) if min(size) >= SMALLEST_CROPPED_INPUT else None
    preprocessing = Preprocessing(tuple(own["mean"]), tuple(own["std"]), size, resize, own["interpolation"])
    return Built(module, preprocessing, names)


def _unknown_to_timm(name: str) -> str:
    if "/" not in name:
        return "no such network in timm"
    where = "local-dir" if Path(name).expanduser().exists() else "hf-hub"
    return f"no such network in timm; a network of a folder or of Hugging Face's hub is called {where}:{name}"


def _from_torchvision(config: ModelConfig, cache_dir: Path | None) -> Built:
    from torchvision import models

    classifiers = models.list_models(module=models)
    name = _required(config.name, "model.name", "the name of a torchvision classifier")
    if name not in classifiers:
        raise UsageError("model.name", name, "no such classifier in torchvision", classifiers)
    choices = models.get_model_weights(name)
    if config.weights not in ["DEFAULT", *(w.name for w in choices)]:
        raise UsageError("model.weights", config.weights, f"one of {', '.join(w.name for w in choices)}")
    weights = choices[config.weights]
    preset = weights.transforms()
    own = Preprocessing(
        tuple(preset.mean),
        tuple(preset.std),
        (preset.crop_size[0],) * 2,
        preset.resize_size[0],
        preset.interpolation.value,
    )
    pretrained = config.pretrained and not config.checkpoint
    arguments = _with_class_count(config)
    if name in INCEPTIONS:
        arguments = {"transform_input": pretrained, "init_weights": False, **arguments}
    with _explained_failures("model.name", name, pretrained):
        module = models.get_model(name, weights=None, **arguments)
        if pretrained:
            folder = cache_dir and str(cache_dir)
            module.load_state_dict(weights.get_state_dict(model_dir=folder, weights_only=True, check_hash=True))
    return Built(module, own)


def _with_class_count(config: ModelConfig) -> dict[str, Any]:
    """Return the constructor's arguments; a list of class names gives the number of classes."""
    arguments = dict(config.arguments)
    if config.class_names is not None and not isinstance(config.class_names, ClassNames):
        arguments.setdefault("num_classes", len(read_class_names(config.class_names)))
    return arguments


def _from_python(config: ModelConfig, _cache_dir: Path | None) -> Built:
    spelling = _required(config.factory, "model.factory", "package.module:function or file.py:function")
    factory = find_factory(spelling, "model.factory")
    try:
        inspect.signature(factory).bind(**config.arguments)
    except TypeError as error:
        raise UsageError("model.arguments", config.arguments, f"{spelling} does not take them: {error}") from error
    module = factory(**config.arguments)
    if not isinstance(module, nn.Module):
        raise UsageError("model.factory", spelling, f"returned {type(module).__name__}, not a torch.nn.Module")
    return Built(module)


def _from_embedded(config: ModelConfig, _cache_dir: Path | None) -> Built:
    name = _required(config.name, "model.name", f"one of {', '.join(embedded.EMBEDDED)}")
    one_of("model.name", name, embedded.EMBEDDED)
    if config.arguments:
        raise UsageError("model.arguments", config.arguments, "the embedded networks take none")
    module = embedded.build(name)
    if config.pretrained and not config.checkpoint:
        load_checkpoint(module, embedded.weights_path(name))
    return Built(module, Preprocessing(embedded.MEAN, embedded.STD, (embedded.SIZE, embedded.SIZE)))


def _from_open_clip(config: ModelConfig, cache_dir: Path | None) -> Built:
    name = _required(config.name, "model.name", "the name of a model of open_clip, or a JSON file")
    if config.arguments:
        raise UsageError("model.arguments", config.arguments, "models of open_clip take none")
    weights = config.weights if config.pretrained else None
    with _explained_failures("model.name", name, config.pretrained and not config.checkpoint):
        return Built(*clip_network(name, config.checkpoint, weights, cache_dir, config.checkpoint_key))


def _from_transformers(config: ModelConfig, cache_dir: Path | None) -> Built:
    name = _required(config.name, "model.name", "a folder that transformers saved, or a name of Hugging Face's hub")
    if config.arguments:
        raise UsageError(
            "model.arguments", config.arguments, "networks of transformers take none: config.json has all settings"
        )
    return transformers_network(name, config.checkpoint, config.checkpoint_key, config.pretrained, cache_dir)


Source = Callable[[ModelConfig, "Path | None"], Built]
SOURCES: Mapping[str, Source] = {
    "timm": _from_timm,
    "torchvision": _from_torchvision,
    "python": _from_python,
    "embedded": _from_embedded,
    "open_clip": _from_open_clip,
    "transformers": _from_transformers,
}


def _required(value: str | None, key: str, what: str) -> str:
    if not value:
        raise UsageError(key, value, f"is needed: {what}")
    return value


class _explained_failures:
    """Turns a failure to fetch or build a named network, and the retries before it, into one line each."""

    def __init__(self, key: str, name: str, pretrained: bool) -> None:
        self.key, self.name, self.pretrained = key, name, pretrained
        self.retries = hub.retries_told_once()

    def __enter__(self) -> None:
        self.retries.__enter__()

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        self.retries.__exit__(kind, error, trace)
        if isinstance(error, TypeError):
            raise UsageError("model.arguments", self.name, f"this network does not take them: {error}") from error
        if isinstance(error, (OSError, RuntimeError, ValueError)) and not isinstance(error, UsageError):
            reason = shorten(str(error).strip().split("\n")[0], LONGEST_REASON, placeholder=" ...")
            cannot = f"its pretrained weights cannot be had ({reason}); {WITHOUT_WEIGHTS}"
            problem = cannot if self.pretrained else f"cannot be built: {reason}"
            raise UsageError(self.key, self.name, problem) from error
