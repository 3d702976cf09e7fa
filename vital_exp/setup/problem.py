"""Targets, references, aligned layers and relevance, made from a composed configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from vital_exp.config import plain
from vital_exp.configuration import Configuration, ReferenceKeys
from vital_exp.errors import UsageError
from vital_exp.models.channels import GREY, RGB
from vital_exp.models.layers import Alignment, alignment, unit_alignment, unit_shape
from vital_exp.models.named import model_config, own_recipe
from vital_exp.models.network import VisionNetwork
from vital_exp.models.tokens import token_span
from vital_exp.models.unit_readout import unit_readout
from vital_exp.references.base import References
from vital_exp.references.decoding import printable
from vital_exp.references.drawn import DrawnReferences
from vital_exp.references.folder import FolderReferences
from vital_exp.references.none import NoReferences
from vital_exp.references.tensors import TensorReferences
from vital_exp.relevance import METHODS as RELEVANCE_METHODS
from vital_exp.setup.checks import check_layer, check_reference_count, pair, position_of, variations_of
from vital_exp.setup.directions import prompts_of, vectors_of
from vital_exp.setup.facets import check_stray, faceted
from vital_exp.setup.image_root import image_root
from vital_exp.setup.parts import loader_of
from vital_exp.targets.autoencoder import SparseAutoencoder
from vital_exp.targets.class_names import ClassNames
from vital_exp.targets.readout import Readout, check_unit
from vital_exp.targets.selection import NAMES, class_targets, unit_targets
from vital_exp.targets.unit import DIRECTIONS, TOKENS, Target
from vital_exp.values import one_of


def references_of(config: Configuration, network: VisionNetwork, targets: Sequence[Target] = ()) -> References:
    """Return the references that the configuration names, by facet if it asks for facets.

    Raises:
        UsageError: a count, size or folder that is not allowed; mined references for classes; a mistake about facets.
    """
    references = faceted(config, network, _source_of(config, network, targets))
    check_stray(config, references, targets)
    return references


def _source_of(config: Configuration, network: VisionNetwork, targets: Sequence[Target]) -> References:
    keys = config.references
    check_reference_count(config)
    own = network.preprocessing
    size = pair(keys.size, "references.size", own.size)
    if keys.source == "embedded":
        if size[0] != size[1]:
            raise UsageError("references.size", keys.size, "must be one side: the embedded images are square")
        if own.channels not in (GREY, RGB):
            wanted = f"the embedded images are RGB, and {network.name} takes {own.channels} channels: references=folder"
            raise UsageError("references", "embedded", wanted)
        return DrawnReferences(keys.count, keys.seed, size[0], _competing(keys), own.channels)
    if keys.source == "mined":
        if not keys.root and not keys.index and config.model.source != "embedded":
            return NoReferences("a folder of natural images is needed, in which mining finds those that drive a unit")
        from vital_exp.setup.mined import mined_references

        return mined_references(config, network, targets, _directions(config, network, targets), config.cache)
    if not keys.root:
        return NoReferences("a folder of natural images is needed, with one sub-folder per class")
    resize = own.resize and round(own.resize * min(size) / min(own.size))
    names = network.class_names or ClassNames.numbered(1)  # a network without classes needs no images of classes
    root = image_root(keys.root, config.cache)
    candidates = _competing(keys)
    kind = (own.channels, own.value_range, loader_of(config))
    of = (keys.count, keys.seed, size, resize, own.interpolation, candidates)
    return FolderReferences(root, names, *of, *kind, called=printable(keys.root))


def _competing(keys: ReferenceKeys) -> Any:
    """Return the number of images that compete: ``references.candidates``, else ``references.count``."""
    return keys.count if keys.candidates is None else keys.candidates


def targets_of(config: Configuration, network: VisionNetwork, references: References | None = None) -> list[Target]:
    """Return the targets that the configuration selects; "all" stands for the classes that ``references`` have.

    Raises:
        UsageError: an unknown class, layer, channel or position, or a class without references.
    """
    keys = plain(config)["target"]
    variations = variations_of(config)
    if keys["kind"] != "class":
        return _hidden_targets(config, keys, network, variations)
    available = references.class_indices() if references else None
    classes = network.classes  # raises UsageError for a network without classes
    names = references.class_names if references else None
    targets = class_targets(keys["index"], names or classes, variations, available)
    if references:
        check_references(targets, references)
    return targets


def _hidden_targets(
    config: Configuration, keys: Mapping[str, Any], network: VisionNetwork, variations: int
) -> list[Target]:
    """Return the units of a hidden layer that the group ``target`` selects."""
    layer, position = keys["layer"], keys.get("position")
    check_layer(layer)
    shape = unit_shape(network, str(layer))
    directed = keys["kind"] in DIRECTIONS
    units = len(vectors_of(config, network, str(layer), shape[0])) if directed else shape[0]
    if keys["kind"] == "neuron":
        position = position_of(position)
    tokens = None
    if keys["kind"] != "neuron" and position is not None:
        tokens, position = one_of("target.position", position, TOKENS), None
        token_span(network, str(layer), tokens)
    targets = unit_targets(keys["kind"], str(layer), keys["index"], units, position, variations, tokens)
    for target in targets:
        check_unit(target, shape)
    if keys["kind"] == "text":
        prompts = prompts_of(keys)
        targets = [target.labelled(prompts[target.index]) for target in targets]
    return targets


def check_references(targets: Sequence[Target], references: References) -> None:
    """Check, before anything is optimised, that every class target has references; raises UsageError."""
    available = references.class_indices()
    for target in targets:
        if target.kind == "class" and available is not None and target.index not in available:
            references.fingerprint(target)  # raises a UsageError that names the classes with references
            raise UsageError("references.root", target.name, "no reference images of this class")


def check_units(config: Configuration, network: VisionNetwork, targets: Sequence[Target]) -> None:
    """Check that the network has the channels and positions of hidden units.

    Raises:
        UsageError: the first unit that the network does not have.
    """
    for target in targets:
        if target.layer is None:
            continue
        shape = unit_shape(network, target.layer)
        check_unit(target, shape, "targets")
        if target.is_direction:
            known = len(vectors_of(config, network, target.layer, shape[0]))
            if target.index >= known:
                problem = f"there are {known} {NAMES[target.kind]}, 0 to {known - 1}"
                raise UsageError("targets", target.name, problem)


def check_alignment(config: Configuration, network: VisionNetwork, layer: str | None) -> None:
    """Check layers and relevance before anything is computed.

    Raises:
        UsageError: the first mistake.
    """
    alignment_of(config, network, layer)
    method = config.relevance.method
    if method not in RELEVANCE_METHODS:
        raise UsageError("relevance.method", method, f"one of {', '.join(RELEVANCE_METHODS)}", RELEVANCE_METHODS)
    if layer is None and method != "none":
        wanted = "hidden units only; target=channel target.layer=<the classifier> makes classes hidden units"
        raise UsageError("relevance", method, wanted)


def alignment_of(config: Configuration, network: VisionNetwork, layer: str | None) -> Alignment:
    """Return the aligned layers and their weights, for classes (``layer`` None) or for units of a layer.

    Raises:
        UsageError: an unknown layer, a layer above the target, or different numbers of weights and layers.
    """
    model = model_config(config)
    if layer is None:
        return alignment(network, model.recipe)
    return unit_alignment(network, own_recipe(model), layer)


def readout_of(config: Configuration, network: VisionNetwork, targets: Sequence[Target]) -> Readout:
    """Return the read-outs of targets, which are units of one layer, or classes."""
    return unit_readout(network, targets, _directions(config, network, targets))


def _directions(
    config: Configuration, network: VisionNetwork, targets: Sequence[Target]
) -> Tensor | SparseAutoencoder | None:
    """Return the directions of direction targets, (K, C), or their autoencoder."""
    if not targets or not targets[0].is_direction:
        return None
    layer = str(targets[0].layer)
    return vectors_of(config, network, layer, unit_shape(network, layer)[0])


def as_references(given: Tensor | Mapping[Any, Tensor], network: VisionNetwork) -> References:
    """Return references made of tensors that the Python API was called with.

    Raises:
        UsageError: a tensor that is not (B, C, H, W) floating point in [0, 1], with the network's number C of channels.
    """
    references = TensorReferences(given, network.class_names or ClassNames.numbered(1), network.preprocessing.channels)
    references.check_ranges()
    return references
