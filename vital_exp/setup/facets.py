"""Facets as a configuration asks for them: references by facet, and targets for each facet of a unit."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vital_exp.configuration import Configuration
from vital_exp.errors import UsageError
from vital_exp.mining.references import IndexFacets, MinedReferences
from vital_exp.models.identity import identity_of
from vital_exp.models.layers import alignment
from vital_exp.models.model_config import ModelConfig
from vital_exp.models.network import VisionNetwork, model_space
from vital_exp.references.base import Competing, References
from vital_exp.references.embeddings import Embedding
from vital_exp.references.faceted import FacetedReferences, FacetFiles, FacetStore
from vital_exp.references.facets import AUTO, KEY, LEAST_MEMBERS, check_enough, check_facets
from vital_exp.references.none import NoReferences
from vital_exp.references.tensors import TensorReferences
from vital_exp.targets.unit import Target
from vital_exp.values import whole_number

EMBEDDING = "references.embedding"
CANDIDATES = "references.candidates"
FoundFacets = Mapping[str, Sequence[Mapping[str, Any]]]  # of units by name, as FacetedReferences.found returns them

logger = logging.getLogger(__name__)


class OwnEmbedding:
    """The network's own: activations of the target's layer, for a class of the last aligned one, mean over positions.

    Args:
        network: the frozen network.
    """

    def __init__(self, network: VisionNetwork) -> None:
        self.network = network

    def layer(self, target: Target) -> str:
        """Return the layer whose activations embed the images of a target."""
        return target.layer or list(alignment(self.network, self.network.recipe).layers)[-1]

    def identity(self, target: Target) -> str:
        """Return network and layer."""
        return f"{self.network.name} {identity_of(self.network).key} {self.layer(target)}"

    @torch.no_grad()
    def __call__(self, target: Target, pictures: Tensor) -> Tensor:
        """Return (n, C) float32 on the CPU for pictures (n, 3, H, W) RGB."""
        layer = self.layer(target)
        activations, _ = self.network.taps([layer])(model_space(pictures, self.network))
        return activations[layer].flatten(2).float().mean(dim=2).cpu()


class OtherEmbedding:
    """Another network's: what its classifier is given; the output of a network without one (DINO, CLIP).

    Args:
        network: the frozen network.
    """

    def __init__(self, network: VisionNetwork) -> None:
        from vital_exp.evaluation.reading import NetworkReader

        self.network = network
        self._read = NetworkReader(network)

    def identity(self, _target: Target) -> str:
        """Return the network."""
        return f"{self.network.name} {identity_of(self.network).key}"

    def __call__(self, _target: Target, pictures: Tensor) -> Tensor:
        """Return (n, D) float32 on the CPU for pictures (n, 3, H, W) RGB."""
        return self._read(pictures).features


def faceted(config: Configuration, network: VisionNetwork, source: References) -> References:
    """Return references by facet, where the configuration asks for facets; else the source itself.

    Raises:
        UsageError: a number of facets that is not allowed or more than the references can have, an embedding network
            that is unknown or without weights, images of facets that nobody has.
    """
    keys = config.references
    facets, given = keys.facets, keys.embedding
    check_facets(facets)
    if facets == 1:
        return source
    if isinstance(source, NoReferences):
        raise UsageError("references.root", None, f"{KEY}={facets} needs images: {source.wanted}")
    if facets == AUTO and (few := _too_few_tensors(source)) is not None:
        logger.warning("%d images were handed over: one facet, for two need %d", few, 2 * LEAST_MEMBERS)
        return source
    _check_candidates(config, facets, source)
    embedding: Embedding = OwnEmbedding(network) if given is None else OtherEmbedding(_other(config, network))
    competing: Competing = source  # type: ignore[assignment]
    return FacetedReferences(competing, facets, keys.count, keys.seed, embedding, _store(config, source))


def _too_few_tensors(source: References) -> int | None:
    """Return how many tensors a target has, where they are too few for two facets."""
    counts = source.counts().values() if isinstance(source, TensorReferences) else ()
    return next((count for count in counts if count < 2 * LEAST_MEMBERS), None)


def _check_candidates(config: Configuration, facets: str | int, source: References) -> None:
    """Refuse facets that so few images cannot have, before anything is mined or read."""
    if isinstance(source, TensorReferences):
        for name, count in source.counts().items():
            check_enough(facets, count, f"images of {name} were handed over" if name else "images were handed over")
        return
    asked = count = whole_number(CANDIDATES, _candidates(config, source), 1)
    if isinstance(source, MinedReferences):
        count = min(count, len(source.folder.paths))
    if facets == AUTO and count < 2 * LEAST_MEMBERS and count == asked:
        problem = f"{KEY}=auto needs at least {2 * LEAST_MEMBERS}: two facets of {LEAST_MEMBERS} images each"
        raise UsageError(CANDIDATES, count, problem)
    if facets != AUTO:
        check_enough(facets, count, f"images compete ({CANDIDATES}={asked})")


def _candidates(config: Configuration, source: References) -> object:
    """Return how many images compete; mined references have settled what auto is."""
    return source.candidates_count if isinstance(source, MinedReferences) else config.references.candidates


def _store(config: Configuration, source: References) -> FacetStore | None:
    """Where facets are kept: in the index that they are of, or in the cache."""
    if isinstance(source, MinedReferences):
        return IndexFacets(source)
    return FacetFiles(config.cache) if config.references.cache else None


def _other(config: Configuration, network: VisionNetwork) -> VisionNetwork:
    """Return the embedding network, on the network's device."""
    from vital_exp.evaluation.score import NotComputed
    from vital_exp.evaluation.weights import network_if_there

    spec = config.references.embedding
    if not isinstance(spec, (str, dict)):
        raise UsageError(EMBEDDING, spec, "null (the network's own), a name, or the keys of the group model")
    try:
        built = network_if_there(spec, config.cache, download=False, key=EMBEDDING)
    except NotComputed:
        problem = (
            f"its weights are not on this machine: {EMBEDDING}={{source:timm,name:...,checkpoint:file}} names them"
        )
        raise UsageError(EMBEDDING, _name(spec), problem) from None
    except UsageError as error:
        raise UsageError(
            error.key.replace("model.", f"{EMBEDDING}.", 1), error.value, error.problem, error.options
        ) from None
    if isinstance(spec, dict) and _is_random(spec):
        problem = f"has no weights: give {EMBEDDING}.checkpoint=file"
        raise UsageError(EMBEDDING, _name(spec), problem)
    return built.to(network.device)


def _is_random(spec: dict[str, Any]) -> bool:
    """Whether a network of these keys has random weights."""
    config = ModelConfig(**spec)
    return config.source in ("timm", "torchvision", "open_clip") and not (config.pretrained or config.checkpoint)


def _name(spec: str | dict[str, Any]) -> object:
    return spec if isinstance(spec, str) else spec.get("name") or spec.get("factory")


def facet_targets(
    config: Configuration,
    references: References,
    targets: Sequence[Target],
    find: bool = True,
    found: FoundFacets | None = None,
) -> list[Target]:
    """Return each unit's facets in place of it, the clearest first.

    Args:
        config: the composed configuration.
        references: of the targets.
        targets: units, or facets.
        find: whether facets that are not known are found; else their units stay.
        found: facets that another rank has found.

    Raises:
        UsageError: a facet that the unit does not have, or that nobody asked for.
    """
    check_stray(config, references, targets)
    if not isinstance(references, FacetedReferences):
        return list(targets)
    references.adopt(targets, found or {})
    waiting = {target.unit for target in targets if find and references.known(target) is None}
    if waiting and config.progress:
        units = "one unit" if len(waiting) == 1 else f"{len(waiting)} units"
        logger.info("the facets of %s are found first", units)
    return references.expanded(targets, find)


def check_stray(config: Configuration, references: References, targets: Sequence[Target]) -> None:
    """Refuse a facet among targets whose references have none; tensors that were handed over for a facet are its own.

    Raises:
        UsageError: there is one.
    """
    if isinstance(references, FacetedReferences):
        return
    own = references.targets() if isinstance(references, TensorReferences) else ()
    if stray := next((target for target in targets if target.facet is not None and target not in own), None):
        raise UsageError(KEY, config.references.facets, f"{stray.name} is a facet: auto, or at least 2", [AUTO])
