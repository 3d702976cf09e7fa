"""Attacked networks on disk: their weights, and a description from which to build them again.

Overrides to use one: model=python model.factory=vital_exp.attacks.saved:load +model.arguments.folder=<folder> ...
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as serialise
from torch import nn

from vital_exp.attacks.detector import Detector
from vital_exp.attacks.diversion import CHILD, Diversion, with_diversion
from vital_exp.attacks.fooling_circuit import FoolingCircuit
from vital_exp.attacks.seam_detector import SeamDetector
from vital_exp.attacks.silent_units import (
    ConvolutionWithSilentUnits,
    NormWithSilentUnits,
    Place,
    with_silent_units,
)
from vital_exp.errors import UsageError
from vital_exp.models.checkpoints import load_checkpoint
from vital_exp.models.loading import build_network, wrap
from vital_exp.models.model_config import ModelConfig
from vital_exp.models.network import VisionNetwork
from vital_exp.models.refusals import hold_in_float32
from vital_exp.whole_files import whole_file

WEIGHTS, DESCRIPTION = "weights.safetensors", "network.json"
FACTORY = "vital_exp.attacks.saved:load"


def save(network: VisionNetwork, model: ModelConfig, folder: Path | str) -> str:
    """Write an attacked network and return the overrides with which any command uses it.

    Args:
        network: the attacked network.
        model: the configuration of the honest network.
        folder: the folder to write to, created if needed.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    keys = {**asdict(model), "pretrained": False, "checkpoint": None, **_own(network)}
    structure = {**_structure(network.module), "output": model.output}  # the honest network's
    described = {"name": network.name, "model": keys, "attack": structure}
    # Copies, because safetensors refuses two names that share memory.
    state = {name: value.detach().clone().contiguous() for name, value in network.module.state_dict().items()}
    with whole_file(folder / WEIGHTS, binary=True) as file:
        file.write(serialise(state))
    with whole_file(folder / DESCRIPTION) as file:
        json.dump(described, file, indent=2)
    return _overrides(network, model, folder)


def _overrides(network: VisionNetwork, model: ModelConfig, folder: Path) -> str:
    """The overrides with which a command uses a saved network."""
    own, preprocessing = _own(network), network.preprocessing
    arguments = [f"model=python model.factory={FACTORY} +model.arguments.folder={folder}"]
    arguments += [f"model.{key}={_list(own[key])}" for key in ("mean", "std", "size", "layers", "layer_weights")]
    arguments += [f"model.{key}={own[key]}" for key in ("output", "head") if own[key]]
    arguments += [f"model.resize={preprocessing.resize}"] if preprocessing.resize else []
    names = model.class_names
    if names is not None:
        arguments += [f"model.class_names={names}" if isinstance(names, str) else f'"model.class_names={_list(names)}"']
    return " ".join(arguments)


def _list(values: Iterable[object]) -> str:
    return "[" + ",".join(map(str, values)) + "]"


def _own(network: VisionNetwork) -> dict[str, Any]:
    """The keys of the group ``model`` whose values the network holds itself."""
    preprocessing, recipe = network.preprocessing, network.recipe
    return {
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
        "size": list(preprocessing.size),
        "resize": preprocessing.resize,
        "interpolation": preprocessing.interpolation,
        "output": None if isinstance(network.module, FoolingCircuit) else network.output.key or None,
        "head": network.head.kind,
        "layers": list(recipe.layers or ()),
        "layer_weights": list(recipe.layer_weights or ()),
        "total_variation": recipe.total_variation,
        "l2": recipe.l2,
    }


def _structure(module: nn.Module) -> dict[str, Any]:
    """What an attack has built around or into the honest network."""
    if isinstance(module, FoolingCircuit):
        keys = {"size": list(module.detector.size), "classes": module.num_classes, "strength": module.strength}
        picture = module.picture
        return {"kind": "fooling_circuit", **keys, "picture": None if picture is None else list(picture.shape)}
    modules = dict(module.named_modules())
    if isinstance(modules.get(CHILD), Diversion):
        return {"kind": "diversion"}
    beside = [name for name, part in modules.items() if isinstance(part, ConvolutionWithSilentUnits)]
    if beside:
        norms = [name for name, part in modules.items() if isinstance(part, NormWithSilentUnits)]
        return {"kind": "silent_units", "convolution": beside[0], "norm": norms[0]}
    return {"kind": "fine_tuned"}


def load(folder: str) -> nn.Module:
    """Return the module of an attacked network that :func:`save` wrote: the factory for ``model=python``.

    Raises:
        UsageError: the folder holds no attacked network.
    """
    described = _described(Path(folder).expanduser())
    honest = build_network(_honest(described["model"], described["attack"]["output"]))
    hold_in_float32(honest, "model.arguments.folder")
    module = _built(honest, described["attack"])
    load_checkpoint(module, Path(folder).expanduser() / WEIGHTS)
    return module


def load_network(folder: Path | str) -> VisionNetwork:
    """Return a saved network with its preprocessing, class names and recipe.

    Raises:
        UsageError: the folder holds no attacked network.
    """
    described = _described(Path(folder).expanduser())
    keys = {**described["model"], "name": described["name"]}
    return wrap(load(str(folder)), ModelConfig(**keys))


def _honest(model: Mapping[str, Any], output: str | int | None) -> ModelConfig:
    return ModelConfig(**{**model, "layers": None, "layer_weights": None, "output": output})


def _described(folder: Path) -> dict[str, Any]:
    place = folder / DESCRIPTION
    if not place.is_file():
        raise UsageError("model.arguments.folder", folder, f"no {DESCRIPTION} there; vital-audit writes such folders")
    described: dict[str, Any] = json.loads(place.read_text(encoding="utf-8"))
    return described


def _built(honest: VisionNetwork, attack: Mapping[str, Any]) -> nn.Module:
    if attack["kind"] == "silent_units":
        return with_silent_units(honest.module, Place(attack["convolution"], attack["norm"]))
    if attack["kind"] == "diversion":
        own = honest.preprocessing
        decoy, shown = torch.zeros(2, own.channels, *own.size).unbind()
        return with_diversion(honest.module, Diversion(SeamDetector(), decoy.clone(), shown.clone()))
    if attack["kind"] == "fooling_circuit":
        picture = None if attack["picture"] is None else torch.zeros(attack["picture"])
        detector = Detector((attack["size"][0], attack["size"][1]), honest.preprocessing.channels)
        keys = {"picture": picture, "strength": attack["strength"], "output": honest.output}
        return FoolingCircuit(honest.module, detector, attack["classes"], **keys)
    return honest.module
