"""From a composed configuration to the objects of a run: network, targets, references, pictures, objective."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import Tensor
from torch.optim import Optimizer

from vital_exp.config import build, plain
from vital_exp.engine.mined import mined_references
from vital_exp.engine.schedule import learning_rate
from vital_exp.errors import UsageError
from vital_exp.images.parameterisation import Parameterisation
from vital_exp.images.randomness import RandomStreams
from vital_exp.images.transforms import Compose
from vital_exp.models.layers import Alignment, alignment, layer_shapes, unit_alignment
from vital_exp.models.named import model_config, own_recipe
from vital_exp.models.network import VisionNetwork, model_space
from vital_exp.models.taps import Taps
from vital_exp.objectives.terms import Objective, Problem
from vital_exp.references.base import References
from vital_exp.references.decoding import CorruptImageError, fit, load_rgb
from vital_exp.references.drawn import DrawnReferences
from vital_exp.references.folder import FolderReferences
from vital_exp.references.statistics import ReferenceStatistics
from vital_exp.relevance import METHODS as RELEVANCE_METHODS
from vital_exp.relevance.weights import Relevance
from vital_exp.targets.class_names import ClassNames
from vital_exp.targets.directions import load_directions
from vital_exp.targets.readout import Readout, check_unit, readout
from vital_exp.targets.selection import class_targets, unit_targets
from vital_exp.targets.unit import Target

# Others scale the whole batch's loss and skip a step for all when one picture overflows.
PRECISIONS = ("32-true", "bf16-mixed", "64-true")
ACCELERATORS = ("auto", "cpu", "cuda", "gpu", "mps")


def check_numbers(config: DictConfig) -> None:
    """Check the keys that hold counts and choices.

    Raises:
        UsageError: the first that is not allowed.
    """
    for key, least in (("steps", 1), ("seed", 0), ("checkpoint_every", 1), ("pictures_every", 1)):
        value = config[key]
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise UsageError(key, value, f"a whole number of at least {least}")
    size = config.batch_size
    if size != "auto" and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise UsageError("batch_size", size, "a whole number of at least 1, or auto")
    if config.trainer.precision not in PRECISIONS:
        raise UsageError("trainer.precision", config.trainer.precision, f"one of {', '.join(PRECISIONS)}", PRECISIONS)
    if config.trainer.devices not in (1, "1", "auto") and not isinstance(config.trainer.devices, ListConfig):
        raise UsageError("trainer.devices", config.trainer.devices, "one device per job: start a job for each")


def device_of(config: DictConfig, network: VisionNetwork | None = None) -> torch.device:
    """Return the device the configuration asks for; ``auto`` is where a given network is, else the best there is.

    Raises:
        UsageError: an unknown accelerator, or one this machine does not have.
    """
    name = config.trainer.accelerator
    if name not in ACCELERATORS:
        raise UsageError("trainer.accelerator", name, f"one of {', '.join(ACCELERATORS)}", ACCELERATORS)
    if name == "auto" and network is not None:
        return network.device
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, there in available.items() if there)
    kind = "cuda" if name == "gpu" else name
    if not available[kind]:
        raise UsageError("trainer.accelerator", name, "this machine has none; cpu works everywhere")
    devices = config.trainer.devices
    number = devices[0] if isinstance(devices, ListConfig) else 0
    return torch.device(kind, number) if kind == "cuda" else torch.device(kind)


def cache_dir(config: DictConfig) -> Path:
    """Return the cache folder of the configuration."""
    return Path(config.cache_dir).expanduser()


def pair(size: Any, key: str, default: tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) of a side, a [height, width] or None for the default.

    Raises:
        UsageError: anything else, or a side below 1.
    """
    if size is None:
        return default
    sides = (
        (size, size) if isinstance(size, int) else tuple(size) if isinstance(size, (list, tuple, ListConfig)) else ()
    )
    if len(sides) != 2 or any(isinstance(s, bool) or not isinstance(s, int) or s < 1 for s in sides):
        raise UsageError(key, size, "a side of at least 1 px, or [height, width]")
    return sides[0], sides[1]


def references_of(config: DictConfig, network: VisionNetwork, targets: Sequence[Target] = ()) -> References:
    """Return the source of reference images that the configuration names.

    Raises:
        UsageError: a count, size or folder that is not allowed; mined references for classes.
    """
    keys = config.references
    if isinstance(keys.count, bool) or not isinstance(keys.count, int) or keys.count < 1:
        raise UsageError("references.count", keys.count, "a whole number of at least 1")
    own = network.preprocessing
    size = pair(keys.size, "references.size", own.size)
    if keys.source == "embedded":
        if size[0] != size[1]:
            raise UsageError("references.size", keys.size, "the embedded images are square: one side")
        return DrawnReferences(keys.count, keys.seed, size[0])
    if keys.source == "mined":
        return mined_references(config, network, targets)
    if not keys.root:
        raise UsageError("references.root", keys.root, "a folder of real images is needed, one sub-folder per class")
    resize = own.resize and round(own.resize * min(size) / min(own.size))
    names = network.class_names or ClassNames.numbered(1)  # a network without classes asks for images of none
    root = Path(keys.root).expanduser()
    return FolderReferences(root, names, keys.count, keys.seed, size, resize, own.interpolation)


def targets_of(config: DictConfig, network: VisionNetwork, references: References | None = None) -> list[Target]:
    """Return the targets the configuration selects; ``references`` says which classes "all" are.

    Raises:
        UsageError: an unknown class, layer, channel or position, or a class that has no references.
    """
    keys = plain(config)["target"]
    variations = keys["variations"]
    if isinstance(variations, bool) or not isinstance(variations, int) or variations < 1:
        raise UsageError("target.variations", variations, "a whole number of at least 1")
    if keys["kind"] != "class":
        return _hidden_targets(keys, network, variations)
    available = references.class_indices() if references else None
    names = getattr(references, "class_names", network.classes)
    targets = class_targets(keys["index"], names, variations, available)
    if references:
        check_references(targets, references)
    return targets


def _hidden_targets(keys: Mapping[str, Any], network: VisionNetwork, variations: int) -> list[Target]:
    """Return the units of a hidden layer that the group ``target`` selects."""
    layer, position = keys["layer"], keys.get("position")
    if not layer:
        raise UsageError("target.layer", layer, "the name of a layer is needed; list=layers prints them")
    shape = _shape(str(layer), network)
    units = len(directions_of(keys, shape[0])) if keys["kind"] == "direction" else shape[0]
    if keys["kind"] == "neuron":
        if not isinstance(position, list) or [type(p) for p in position] != [int, int] or min(position) < 0:
            raise UsageError("target.position", position, "[row, column] in the layer's map, from 0")
        position = (position[0], position[1])
    targets = unit_targets(keys["kind"], str(layer), keys["index"], units, position, variations)
    for target in targets:
        check_unit(target, shape)
    return targets


def _shape(layer: str, network: VisionNetwork) -> tuple[int, ...]:
    Taps(network.module, [layer], "target.layer")  # names the layer that does not exist
    shapes = layer_shapes(network)
    if layer not in shapes:
        raise UsageError("target.layer", layer, "the network never runs this layer in a forward pass")
    return shapes[layer]


def directions_of(keys: Mapping[str, Any], channels: int) -> Tensor:
    """Return the directions (K, C) that the group ``target`` names.

    Raises:
        UsageError: no file, or directions of another number of channels.
    """
    if not keys.get("vectors"):
        raise UsageError("target.vectors", keys.get("vectors"), "a .safetensors or .npy file of directions is needed")
    vectors = load_directions(str(keys["vectors"]))
    if vectors.shape[1] != channels:
        wanted = f"directions of {vectors.shape[1]} channels, and {keys['layer']} has {channels}"
        raise UsageError("target.vectors", keys["vectors"], wanted)
    return vectors


def check_references(targets: Sequence[Target], references: References) -> None:
    """Make sure that every class target has references, before anything is optimised."""
    available = references.class_indices()
    for target in targets:
        if target.kind == "class" and available is not None and target.index not in available:
            references.fingerprint(target)  # says which class and what there is instead
            raise UsageError("references.root", target.name, "no reference images of this class")


def check_units(config: DictConfig, network: VisionNetwork, targets: Sequence[Target]) -> None:
    """Make sure that the network has the channels and positions of hidden units.

    Raises:
        UsageError: the first that it has not.
    """
    for target in targets:
        if target.layer is None:
            continue
        shape = _shape(target.layer, network)
        check_unit(target, shape, "targets")
        if target.kind == "direction":
            known = len(directions_of({**plain(config)["target"], "layer": target.layer}, shape[0]))
            if target.index >= known:
                raise UsageError("targets", target.name, f"target.vectors has {known} directions, 0 to {known - 1}")


def check_recipe(config: DictConfig, network: VisionNetwork, layer: str | None) -> None:
    """Check layers, rates and transforms before anything is computed.

    Raises:
        UsageError: the first mistake among them.
    """
    alignment_of(config, network, layer)
    if config.relevance.method not in RELEVANCE_METHODS:
        allowed = ", ".join(RELEVANCE_METHODS)
        raise UsageError("relevance.method", config.relevance.method, f"one of {allowed}", RELEVANCE_METHODS)
    if config.target.kind == "class" and config.relevance.method != "none":
        wanted = "hidden units only: target=channel target.layer=<the classifier> has the classes as its channels"
        raise UsageError("relevance", config.relevance.method, wanted)
    pair(config.image.size, "image.size", network.preprocessing.size)
    rate_of(config)
    optimizer_of(config)
    transform_of(config)


def alignment_of(config: DictConfig, network: VisionNetwork, layer: str | None) -> Alignment:
    """Return what is aligned for classes (``layer`` None) or for units of a layer.

    Raises:
        UsageError: an unknown layer, one above the target, or not as many weights as layers.
    """
    model = model_config(config)
    if layer is None:
        return alignment(network, model.recipe)
    return unit_alignment(network, own_recipe(model), layer)


def problem_of(
    config: DictConfig, network: VisionNetwork, targets: Sequence[Target], references: References
) -> Problem:
    """Return what a batch of pictures, all of one layer or all of classes, is made for."""
    layer = targets[0].layer
    read = readout_of(config, network, targets)
    relevance = None if layer is None else Relevance(network, read, config.relevance.method)
    folder = cache_dir(config) if config.references.cache else None
    statistics = ReferenceStatistics(network, references, folder, relevance)
    return Problem(network, tuple(targets), read, alignment_of(config, network, layer), statistics, relevance)


def readout_of(config: DictConfig, network: VisionNetwork, targets: Sequence[Target]) -> Readout:
    """Return what targets of one layer, or classes, read from it."""
    layer = targets[0].layer
    if layer is None:
        return readout(targets, len(network.classes))
    shape = _shape(layer, network)
    directions = directions_of(plain(config)["target"], shape[0]) if targets[0].kind == "direction" else None
    return readout(targets, shape[0], directions)


def objective_of(config: DictConfig, problem: Problem) -> Objective:
    """Return the sum of the terms the configuration lists."""
    for name, node in config.objective.items():
        weight = node.get("weight")
        if isinstance(weight, bool) or not isinstance(weight, (int, float, type(None))):
            raise UsageError(f"objective.{name}.weight", weight, "a number")
    terms = {str(name): build(node, problem=problem) for name, node in config.objective.items()}
    return Objective(problem.network, terms)


def transform_of(config: DictConfig) -> Compose:
    """Return the transforms the configuration lists, in order."""
    return Compose({name: build(node) for name, node in config.transforms.items()})


def pictures_of(
    config: DictConfig, network: VisionNetwork, streams: RandomStreams, init: Tensor | None = None
) -> Parameterisation:
    """Return the parameterisation; ``init`` (N, 3, H, W) RGB or image.init replaces the random start."""
    keys = {key: value for key, value in config.image.items() if key not in ("size", "init")}
    size = pair(config.image.size, "image.size", network.preprocessing.size)
    if init is None and config.image.init not in ("noise", "reference"):
        init = _image_file(config.image.init, size).expand(len(streams.names), -1, -1, -1)
    start = None
    if init is not None:
        start, size = model_space(init, network), (init.shape[-2], init.shape[-1])
    pictures: Parameterisation = build(
        OmegaConf.create(keys), preprocessing=network.preprocessing, size=size, streams=streams, init=start
    )
    return pictures.to(network.device, network.dtype)


def _image_file(path: str, size: tuple[int, int]) -> Tensor:
    place = Path(path).expanduser()
    if not place.is_file():
        raise UsageError("image.init", path, "noise, reference, or an image file that exists")
    try:
        return fit(load_rgb(place), size)[None]
    except CorruptImageError as error:
        raise UsageError("image.init", path, f"not a readable image ({error.reason})") from error


def optimizer_of(config: DictConfig) -> Callable[[list[torch.nn.Parameter]], Optimizer]:
    """Return the function that makes the optimiser from the parameters."""
    if not isinstance(config.optimizer.lr, (int, float)) or config.optimizer.lr <= 0:
        raise UsageError("optimizer.lr", config.optimizer.lr, "a number above 0")
    node = OmegaConf.create({key: value for key, value in config.optimizer.items() if key != "warmup"})
    return lambda parameters: build(node, params=parameters)


def rate_of(config: DictConfig) -> Callable[[int], float]:
    """Return the schedule: step to learning rate."""
    warmup = config.optimizer.warmup
    if isinstance(warmup, bool) or not isinstance(warmup, int) or warmup < 0:
        raise UsageError("optimizer.warmup", warmup, "a whole number of steps, at least 0")
    return partial(learning_rate, steps=config.steps, peak=config.optimizer.lr, warmup=warmup)


def as_references(given: Tensor | Mapping[Any, Tensor] | str | Path, network: VisionNetwork) -> References | None:
    """Return references handed to the Python API as tensors; None for a folder, which the configuration names."""
    from vital_exp.references.tensors import TensorReferences

    if isinstance(given, (str, Path)):
        return None
    return TensorReferences(given, network.class_names or ClassNames.numbered(1))
