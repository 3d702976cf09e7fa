"""Build the network that a configuration names, or wrap a module."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from vital_exp.errors import UsageError
from vital_exp.models import outputs
from vital_exp.models.checkpoints import PLACE_KEY, load_checkpoint
from vital_exp.models.heads import NONE, SIGMOID, SOFTMAX, Ending, Head, head_of
from vital_exp.models.libraries import SOURCES
from vital_exp.models.model_config import ModelConfig
from vital_exp.models.network import Preprocessing, VisionNetwork
from vital_exp.models.outputs import Output
from vital_exp.models.preparation import check_tensors, check_values, prepared
from vital_exp.models.preprocessing import configured, input_channels, provisional
from vital_exp.models.refusals import REFUSALS, refusal
from vital_exp.models.sources import IMAGENET_CLASSES
from vital_exp.targets.class_name_files import read_class_names
from vital_exp.targets.class_names import ClassNames
from vital_exp.values import one_of

# Sources that load a checkpoint themselves, since it may hold a text tower's weights too, or names of older versions.
LOAD_THEMSELVES = ("open_clip", "transformers")

logger = logging.getLogger(__name__)


def build_network(config: ModelConfig, cache_dir: Path | None = None) -> VisionNetwork:
    """Build the network that a configuration names, with its weights, on the CPU.

    Published weights that are not on disk are downloaded into ``cache_dir``.

    Raises:
        UsageError: unknown source, network, factory or checkpoint; weights that cannot be had; a wrong size.
    """
    one_of("model.source", config.source, SOURCES)
    if config.checkpoint_key is not None and not config.checkpoint:
        raise UsageError(
            PLACE_KEY, config.checkpoint_key, "names a place in the file of model.checkpoint, which is not given"
        )
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
        UsageError: a kind of module whose layers cannot be read, a network that refuses the input, or class names that
            do not match its outputs.
    """
    name = str(config.name or config.factory or type(module).__name__)
    network = VisionNetwork(prepared(module), name, provisional(config, own), None, config.recipe)
    network.preprocessing = configured(config, own, input_channels(config, network), name)
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


@torch.no_grad()
def _output(network: VisionNetwork, config: ModelConfig, names: int | None) -> tuple[Output, str | None]:
    """Return which tensor is the network's output, found by a forward pass, and the softmax or sigmoid that it ends in.

    Unless one picture gives a tensor (1, classes), a pass of two pictures follows: it shows which axis counts pictures.
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
    """Return what the network returns for ``count`` blank pictures."""
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
        one = ": one name, for a positive output" if count == 1 else ""
        raise UsageError("model.class_names", f"{len(given)} names", f"the network has {count} classes{one}")
    return given
