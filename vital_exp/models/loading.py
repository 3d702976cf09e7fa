"""Build a network from timm, torchvision, a python factory or the embedded ones, and wrap it."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import logging
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vital_exp.errors import UsageError
from vital_exp.models import embedded, outputs, timm_hub
from vital_exp.models.channels import GREY, RGB, preview_of
from vital_exp.models.checkpoints import PLACE_KEY, load_checkpoint
from vital_exp.models.heads import NONE, SIGMOID, SOFTMAX, Ending, Head, head_of
from vital_exp.models.network import Preprocessing, Recipe, VisionNetwork
from vital_exp.models.open_clip import clip_network
from vital_exp.models.outputs import Output
from vital_exp.models.preparation import check_tensors, check_values, prepared
from vital_exp.models.refusals import REFUSALS, other_channels, refusal
from vital_exp.models.sources import Built
from vital_exp.models.transformers_models import transformers_network
from vital_exp.targets.class_name_files import read_class_names
from vital_exp.targets.class_names import ClassNames
from vital_exp.values import interval, is_whole, number, numbers, one_of, side, sides, whole_number

logger = logging.getLogger(__name__)

IMAGENET_CLASSES = 1000
# The shorter side before the centre crop is 256 for an input of 224, as in VITAL; the same ratio for other inputs ...
RESIZE_RATIO = 256 / 224
# ... but small networks (CIFAR's 32 px) see whole images.
SMALLEST_CROPPED_INPUT = 128
# Their published weights expect an input transform that torchvision sets only when it loads the weights itself.
INCEPTIONS = ("googlenet", "inception_v3")
# Pictures are RGB in [0, 1]: larger means and deviations are those of pictures of 0 to 255.
LARGEST_MEAN, LARGEST_STD = 2.0, 5.0
INTERPOLATIONS = ("bilinear", "bicubic", "nearest")
# Sources that load a checkpoint themselves: it has a text tower's weights too, or names of older versions.
LOAD_THEMSELVES = ("open_clip", "transformers")
FINITE = "a finite number"  # what mistakes say is allowed


@dataclass
class ModelConfig:
    """The keys of the configuration group ``model``; None means the network's own value or the default rule."""

    source: str = "timm"
    name: str | None = None
    factory: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    pretrained: bool = True
    weights: str = "DEFAULT"
    checkpoint: str | None = None
    checkpoint_key: str | int | None = None
    channels: int | None = None
    preview: Sequence[int] | None = None
    value_range: Sequence[float] | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    size: int | Sequence[int] | None = None
    resize: int | None = None
    interpolation: str | None = None
    class_names: str | Sequence[str] | None = None
    output: str | int | None = None
    head: str | None = None
    layers: Sequence[str] | None = None
    layer_weights: Sequence[float] | None = None
    total_variation: float | None = None
    l2: float | None = None

    @property
    def recipe(self) -> Recipe:
        """Layers, weights and priors as asked for.

        Raises:
            UsageError: no layer, one named twice, or a weight that is no number.
        """
        given = self.layer_weights
        weights = None if given is None else numbers("model.layer_weights", given, each=FINITE)
        priors = {key: getattr(self, key) for key in ("total_variation", "l2")}
        for key, value in priors.items():
            if value is not None:
                number(f"model.{key}", value, allowed=FINITE)
        return Recipe(_layers(self.layers), weights, **priors)


def _layers(given: Sequence[str] | str | None) -> tuple[str, ...] | None:
    """Layer names; those of an nn.Sequential are numbers to YAML, and a single one may come without brackets."""
    if given is None:
        return None
    layers = (given,) if isinstance(given, str) else tuple(map(str, given))
    if not layers or len(set(layers)) < len(layers):
        raise UsageError("model.layers", list(layers), "different layers, at least one; null: the default rule")
    return layers


def build_network(config: ModelConfig, cache_dir: Path | None = None) -> VisionNetwork:
    """Build the network a configuration names, with its weights, on the CPU.

    Weights that were asked for by name and are not on disk are downloaded into ``cache_dir``.

    Raises:
        UsageError: unknown source, network, factory or checkpoint; weights that cannot be had; a wrong size.
    """
    one_of("model.source", config.source, SOURCES)
    if config.checkpoint_key is not None and not config.checkpoint:
        raise UsageError(PLACE_KEY, config.checkpoint_key, "a place in a file, which model.checkpoint names")
    built = SOURCES[config.source](config, cache_dir)
    if config.checkpoint and config.source not in LOAD_THEMSELVES:
        check_tensors(built.module)
        check_values(built.module)
        load_checkpoint(built.module, config.checkpoint, config.checkpoint_key)
    asked = config if built.head is None or config.head is not None else replace(config, head=built.head)
    return wrap(built.module, asked, built.preprocessing, built.class_names)


def wrap(
    module: nn.Module, config: ModelConfig, own: Preprocessing | None = None, own_names: ClassNames | None = None
) -> VisionNetwork:
    """Wrap a module with the preprocessing and class names that the configuration gives, else its own.

    Raises:
        UsageError: a kind of module whose layers cannot be read, the network refuses the input, or the class names do
            not match its outputs.
    """
    name = str(config.name or config.factory or type(module).__name__)
    network = VisionNetwork(prepared(module), name, _provisional(config, own), None, config.recipe)
    network.preprocessing = _preprocessing(config, own, _channels(config, network), name)
    given = config.class_names
    names = ClassNames(read_class_names(given)) if given is not None and not isinstance(given, ClassNames) else given
    network.output, ends_in = _output(network, config, None if names is None else len(names))
    network.head = head_of(config.head, network.output.classes, ends_in)
    if network.output.classes == 1 and config.head is None:
        logger.warning("%s has one output: it says yes where its sigmoid is above one half; model.head=none if it is a "
                       "regression's", name)  # fmt: skip
    if names is None and own_names is not None and len(own_names) == network.output.classes:
        names = own_names
    network.class_names = _class_names(names, network.output.classes, network.head)
    return network


def _provisional(config: ModelConfig, own: Preprocessing | None) -> Preprocessing:
    """RGB of the input's size, until the network has been asked which channels it takes."""
    size = (own or Preprocessing()).size if config.size is None else sides("model.size", config.size)
    return Preprocessing(size=size)


def _channels(config: ModelConfig, network: VisionNetwork) -> int:
    """How many channels the network's pictures have: as asked for, else as its first layer says."""
    if config.channels is not None:
        return whole_number("model.channels", config.channels, 1)
    first = next((part for part in network.module.modules() if isinstance(part, nn.Conv2d)), None)
    if first is not None and first.in_channels == RGB:
        return RGB
    found = other_channels(network)
    return RGB if found is None else found[1]


def _preprocessing(config: ModelConfig, own: Preprocessing | None, channels: int, name: str) -> Preprocessing:
    base = _with_channels(own or Preprocessing(), config, channels, name)
    size = base.size if config.size is None else sides("model.size", config.size)
    if config.resize is not None:
        side("model.resize", config.resize)
    resize = config.resize or (base.resize if own and size == own.size else _default_resize(size))
    interpolation = config.interpolation or base.interpolation
    one_of("model.interpolation", interpolation, INTERPOLATIONS)
    mean = base.mean if config.mean is None else numbers("model.mean", config.mean, each=FINITE)
    std = base.std if config.std is None else numbers("model.std", config.std, each=FINITE)
    for key, value in (("model.mean", mean), ("model.std", std)):
        if len(value) != channels:
            raise UsageError(key, list(value), f"{_counted(channels, 'value')}, one per channel of its pictures")
    if min(std) <= 0:
        raise UsageError("model.std", list(std), "numbers above 0: pictures are divided by them")
    for key, value, most in (("model.mean", mean, LARGEST_MEAN), ("model.std", std, LARGEST_STD)):
        if max(value) > most:
            raise UsageError(key, list(value), "numbers for RGB in [0, 1] are needed; of 0 to 255: divide them by 255")
    values = None if config.value_range is None else interval("model.value_range", config.value_range)
    if values is not None and values[0] == values[1]:
        raise UsageError("model.value_range", list(values), "[low, high], the lower number first")
    return Preprocessing(mean, std, size, resize, interpolation, values, _preview(config, channels))


def _with_channels(own: Preprocessing, config: ModelConfig, channels: int, name: str) -> Preprocessing:
    """The source's own preprocessing for pictures of a number of channels.

    Raises:
        UsageError: neither grey nor RGB, and no mean or standard deviation is given.
    """
    lacking = [key for key in ("mean", "std") if getattr(config, key) is None]
    if channels == own.channels or not lacking:
        return own
    if channels != GREY:
        wanted = f"{_counted(channels, 'value')}, one per channel of its pictures in [0, 1]: {name} takes {channels}"
        raise UsageError(f"model.{lacking[0]}", None, wanted)
    mean, std = (round(statistics.mean(values), 3) for values in (own.mean, own.std))
    logger.warning("%s takes grey pictures: model.mean=[%g] and model.std=[%g], the average over colours, unless they "
                   "are given", name, mean, std)  # fmt: skip
    return replace(own, mean=(mean,), std=(std,))


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _preview(config: ModelConfig, channels: int) -> tuple[int, int, int] | None:
    """Which channels of a picture are shown."""
    if channels in (GREY, RGB):
        if config.preview is not None:
            raise UsageError("model.preview", list(config.preview), f"{config.name or 'the network'} takes "
                             f"{'grey' if channels == GREY else 'RGB'} pictures, which are shown whole")  # fmt: skip
        return None
    if config.preview is None:
        return preview_of(channels)
    allowed = f"three channels from 0 to {channels - 1}, shown as red, green and blue"
    given = list(config.preview) if isinstance(config.preview, Sequence) else [config.preview]
    if len(given) != RGB or any(not is_whole(one, 0, channels - 1) for one in given):
        raise UsageError("model.preview", config.preview, allowed)
    return (given[0], given[1], given[2])


def _default_resize(size: tuple[int, int]) -> int | None:
    return round(min(size) * RESIZE_RATIO) if min(size) >= SMALLEST_CROPPED_INPUT else None


@torch.no_grad()
def _output(network: VisionNetwork, config: ModelConfig, names: int | None) -> tuple[Output, str | None]:
    """Which tensor is the network's output, found by one forward pass, and the softmax or sigmoid that it ends in.

    What is no plain (1, classes) is looked at for two pictures: only then a side that counts pictures is known from
    others.
    """
    with Ending() as ending:
        returned, count = _returned(network, 1), 1
        if not (isinstance(returned, Tensor) and returned.ndim == 2):
            returned, count = _returned(network, 2), 2
    asked = None if config.output is None else str(config.output)
    said = asked is not None or config.head in (SOFTMAX, SIGMOID)
    features = getattr(network.module, "num_classes", None) == 0 and not said
    output = outputs.settled(returned, count, asked, names, features)
    if asked is None and (others := outputs.doubtful(returned, count, output, names)):
        chooses = " or ".join(f"model.output={key}" for key in others)
        logger.warning("%s returns %s: %s is taken as its logits; %s chooses another",
                       network.name, output.returns, output.key, chooses)  # fmt: skip
    return output, None if output.classes is None else ending.of(output.entry(returned, count))


def _returned(network: VisionNetwork, count: int) -> object:
    """What the network returns for empty pictures."""
    try:
        return network.returned(network.blank(count))
    except REFUSALS as error:
        raise refusal(network, network.preprocessing.size, error) from None


def _class_names(given: ClassNames | None, count: int | None, head: Head) -> ClassNames | None:
    if count is None:
        return None
    if given is None:
        known = count == IMAGENET_CLASSES and head.kind != NONE
        return ClassNames.imagenet() if known else ClassNames.numbered(count)
    if len(given) != count:
        one = ": one name, of what a positive output says" if count == 1 else ""
        raise UsageError("model.class_names", f"{len(given)} names", f"the network has {count} classes{one}")
    return given


def _from_timm(config: ModelConfig, cache_dir: Path | None) -> Built:
    import timm

    name = _required(config.name, "model.name", "the name of a timm network")
    pretrained, names = config.pretrained and not config.checkpoint, None
    if timm_hub.is_hub_name(name):  # which says itself how many classes it has
        with _telling("model.name", name, pretrained):
            module, names = timm_hub.hub_network(name, pretrained, config.pretrained, config.arguments, cache_dir)
    elif timm.is_model(name):
        with _telling("model.name", name, pretrained):
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
    return f"no such network in timm; {where}:{name} is one of a folder or of Hugging Face's hub"


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
    with _telling("model.name", name, pretrained):
        module = models.get_model(name, weights=None, **arguments)
        if pretrained:
            folder = cache_dir and str(cache_dir)
            module.load_state_dict(weights.get_state_dict(model_dir=folder, weights_only=True, check_hash=True))
    return Built(module, own)


def _with_class_count(config: ModelConfig) -> dict[str, Any]:
    """The constructor's arguments; a list of class names says how many outputs the classifier has."""
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


def find_factory(spelling: str, key: str) -> Callable[..., Any]:
    """Return the function that ``package.module:function`` or ``path/file.py:function`` names.

    Raises:
        UsageError: a wrong spelling, no such module or function.
    """
    place, separator, function = spelling.rpartition(":")
    if not separator or not place:
        raise UsageError(key, spelling, "package.module:function or file.py:function")
    module = _import_file(Path(place), key) if place.endswith(".py") else _import_module(place, key)
    if not hasattr(module, function):
        public = [name for name in vars(module) if not name.startswith("_")]
        raise UsageError(key, spelling, f"{place} has no {function}", public)
    factory: Callable[..., Any] = getattr(module, function)
    return factory


def _import_module(name: str, key: str) -> Any:
    sys.path.insert(0, str(Path.cwd()))  # a module beside the user, as `python -m` would find it
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UsageError(key, name, f"cannot be imported ({error})") from error
    finally:
        sys.path.remove(str(Path.cwd()))


def _import_file(path: Path, key: str) -> Any:
    if not path.expanduser().is_file():
        raise UsageError(key, path, "no such file")
    spec = importlib.util.spec_from_file_location(path.stem, path.expanduser())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)  # dataclasses and pickling look their module up by name
    spec.loader.exec_module(module)
    return module


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
    with _telling("model.name", name, config.pretrained and not config.checkpoint):
        return Built(*clip_network(name, config.checkpoint, weights, cache_dir, config.checkpoint_key))


def _from_transformers(config: ModelConfig, cache_dir: Path | None) -> Built:
    name = _required(config.name, "model.name", "a folder that transformers saved, or a name of Hugging Face's hub")
    if config.arguments:
        raise UsageError(
            "model.arguments", config.arguments, "networks of transformers take none: config.json says all"
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


class _telling:
    """Turns a failure to fetch or build a named network into one line that says what to do."""

    def __init__(self, key: str, name: str, pretrained: bool) -> None:
        self.key, self.name, self.pretrained = key, name, pretrained

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type | None, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, TypeError):
            raise UsageError("model.arguments", self.name, f"this network does not take them: {error}") from error
        if isinstance(error, (OSError, RuntimeError, ValueError)) and not isinstance(error, UsageError):
            reason = str(error).strip().split("\n")[0][:150]
            advice = "give model.checkpoint=file or model.pretrained=false"
            cannot = f"its pretrained weights cannot be had ({reason}); {advice}"
            problem = cannot if self.pretrained else f"cannot be built: {reason}"
            raise UsageError(self.key, self.name, problem) from error
