"""Networks by name (an option of the configuration group ``model``, or timm's) and modules of the user's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vital_exp.config import compose_config, options_of, plain
from vital_exp.config_tree import option_content
from vital_exp.errors import UsageError, nearest
from vital_exp.models.checkpoints import PLACE_KEY, load_checkpoint
from vital_exp.models.libraries import WITHOUT_WEIGHTS
from vital_exp.models.loading import build_network, wrap
from vital_exp.models.model_config import ModelConfig
from vital_exp.models.network import Recipe, VisionNetwork
from vital_exp.models.preparation import check_tensors, check_values
from vital_exp.models.timm_hub import is_hub_name
from vital_exp.models.transformers_models import PREFIX as TRANSFORMERS
from vital_exp.modes import own_modes


def model_overrides(name: str, key: str = "model") -> list[str]:
    """Return the overrides that choose a network: an option of the group ``model``, else a timm network.

    A name of a folder or of Hugging Face's hub begins with ``transformers:``, or with timm's ``hf-hub:`` or
    ``local-dir:``, by the library that saved the network.

    Raises:
        UsageError: no option and no timm network has this name.
    """
    if name in options_of("model"):
        return [f"model={name}"]
    if is_hub_name(name):
        return ["model=timm", f"model.name={_as_override(name)}"]
    if name.startswith(TRANSFORMERS):
        return ["model=transformers", f"model.name={_as_override(name.removeprefix(TRANSFORMERS))}"]
    import timm

    if timm.is_model(name):
        return ["model=timm", f"model.name={name}"]
    known = [*options_of("model"), *timm.list_models()]
    raise UsageError(key, name, "neither an option of the group model nor a network of timm", known)


def _as_override(text: str) -> str:
    """Return a text quoted, so that Hydra reads the same text back."""
    quoted = text.replace("'", "\\'")
    return f"'{quoted}'"


def model_config(config: Mapping[str, Any]) -> ModelConfig:
    """Return the group ``model`` of a composed configuration."""
    return ModelConfig(**plain(config["model"]))


def own_recipe(config: ModelConfig) -> Recipe:
    """Return the part of a recipe that the user asked for: what differs from the network's named configuration.

    A named configuration is for classes; hidden units take other weights and priors (docs/methods/vital.md) unless the
    user says otherwise.
    """
    asked = config.recipe
    for option in options_of("model"):
        keys = option_content("model", option)
        if (keys.get("source"), keys.get("name")) == (config.source, config.name):
            own = ModelConfig(**{key: keys[key] for key in vars(Recipe()) if key in keys}).recipe
            return replace(asked, **{key: None for key, value in vars(own).items() if value == getattr(asked, key)})
    return asked


def named_config(name: str, key: str = "model") -> ModelConfig:
    """Return the configuration of a network by its name: an option of the group ``model``, else a timm network's.

    Raises:
        UsageError: no option and no timm network has this name.
    """
    if name not in options_of("model"):
        return model_config(compose_config(model_overrides(name, key)))
    # The option's file alone: composing a whole configuration is far slower.
    return ModelConfig(**{**option_content("model", "_keys"), **option_content("model", name)})


def named_network(spec: str | Mapping[str, Any], cache_dir: Path | None = None, key: str = "model") -> VisionNetwork:
    """Build a network from a name, or from the keys of the group ``model`` (a judge in a configuration).

    Raises:
        UsageError: an unknown name or key; see also :func:`build_network`.
    """
    if isinstance(spec, str):
        return _built(named_config(spec, key), cache_dir, key)
    if not isinstance(spec, Mapping):
        raise UsageError(key, spec, "a name, or the keys of the group model")
    allowed: Sequence[str] = list(ModelConfig.__dataclass_fields__)
    for name in spec:
        if name not in allowed:
            near = nearest(name, allowed)
            hint = f" (did you mean {' or '.join(near)}?)" if near else ""
            raise UsageError(f"{key}.{name}", spec[name], f"no such key of a model{hint}")
    return _built(ModelConfig(**spec), cache_dir, key)


def _built(config: ModelConfig, cache_dir: Path | None, key: str) -> VisionNetwork:
    """Build a network; a mistake is blamed on ``key``, where the network is not the run's own."""
    try:
        return build_network(config, cache_dir)
    except UsageError as error:
        if key == "model" or not error.key.startswith("model."):
            raise
        file = f"give {{source: {config.source}, name: {config.name}, checkpoint: file}}"
        problem = error.problem.replace(WITHOUT_WEIGHTS, file)
        blamed = key if error.key == "model.name" else f"{key}{error.key.removeprefix('model')}"
        raise UsageError(blamed, error.value, problem, error.options) from error


@own_modes()
def load_model(
    model: str | nn.Module,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    size: int | Sequence[int] | None = None,
    class_names: Sequence[str] | str | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_key: str | None = None,
    device: str | torch.device | None = None,
    output: str | int | None = None,
    head: str | None = None,
    channels: int | None = None,
    preview: Sequence[int] | None = None,
    value_range: Sequence[float] | None = None,
    pretrained: bool | None = None,
) -> VisionNetwork:
    """Return a network wrapped for visualisation; a module of your own is frozen in place, and runs uncompiled.

    Args:
        model: an option of the group ``model`` (``"resnet50"``), a timm network, ``"transformers:folder"``, timm's
            ``"local-dir:folder"`` and ``"hf-hub:owner/name"``, or a module of your own.
        mean, std: per channel, for pictures in [0, 1]; ImageNet's unless the network has its own.
        size: the input's side or (height, width), px; 224 unless the network has its own.
        class_names: one per output, or a file of them; ImageNet's for 1000 outputs.
        checkpoint: local weights, .safetensors or weights-only .pth.
        checkpoint_key: place of the network in the file, ``"ema"``; by default the place that has all its names.
        device: the network's device; by default it stays on its own.
        output: name or number of the logits in an output that is a tuple, dict or dataclass, dotted where nested; by
            default ``logits``, else the first entry of shape (N, classes).
        head: ``"softmax"``, ``"sigmoid"`` or ``"none"``; by default sigmoid for one output, softmax for several.
        channels: number of channels of its pictures; by default as many as its first layer takes.
        preview: the three channels that are shown as red, green, blue where pictures are neither grey nor RGB.
        value_range: the values of arrays that become 0 and 1.
        pretrained: whether a network given by name downloads its published weights; false for transformers' networks.

    Raises:
        UsageError: an argument that does not fit; TorchScript, quantised and exported modules, whose layers are hidden.

    Examples:
        >>> from vital_exp import load_model
        >>> load_model("embedded_resnet").class_names.label(0)
        'star'
    """
    own: dict[str, object] = {"mean": mean, "std": std, "size": size, "class_names": class_names, "output": output}
    own |= {"head": head, "channels": channels, "preview": preview, "value_range": value_range}
    own["pretrained"] = pretrained
    build = partial(_named, model) if isinstance(model, str) else partial(_wrapped, model)
    network = build(own, checkpoint, checkpoint_key)
    return network if device is None else network.to(device)


def _named(
    name: str, keys: dict[str, object], checkpoint: str | Path | None, checkpoint_key: str | None
) -> VisionNetwork:
    """Build a network by its name; ``keys`` that are not None replace those of its configuration."""
    composed = compose_config(model_overrides(name))
    config = model_config(composed)
    for key, value in keys.items():
        if value is not None:
            setattr(config, key, value)
    config.checkpoint = str(checkpoint) if checkpoint else config.checkpoint
    config.checkpoint_key = checkpoint_key
    return build_network(config, Path(composed.cache_dir).expanduser())


def _wrapped(
    module: nn.Module, keys: dict[str, Any], checkpoint: str | Path | None, checkpoint_key: str | None
) -> VisionNetwork:
    """Wrap a module, with the weights of ``checkpoint`` if there is one."""
    if (pretrained := keys.pop("pretrained")) is not None:
        raise UsageError("pretrained", pretrained, "is for networks given by name; a module has its weights")
    if checkpoint and isinstance(module, nn.Module):
        check_tensors(module)
        check_values(module)
        load_checkpoint(module, checkpoint, checkpoint_key)
    elif checkpoint_key is not None:
        raise UsageError(PLACE_KEY, checkpoint_key, "names a place in the file of checkpoint, which is not given")
    return wrap(module, ModelConfig(**keys))
