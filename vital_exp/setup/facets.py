"""Facets for a configuration: references by facet, and a target for each facet of a unit."""

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
FoundFacets = Mapping[str, Sequence[Mapping[str, Any]]]  # the facets of units, by name; see FacetedReferences.found

logger = logging.getLogger(__name__)


class OwnEmbedding:
    """Embeds images by the network's own activations: means over positions, in the target's layer.

    For classes the layer is the last aligned one.

    Args:
        network: the frozen network.
    """

    def __init__(self, network: VisionNetwork) -> None:
        self.network = network

    def layer(self, target: Target) -> str:
        """Return the layer whose activations embed the images of a target."""
        return target.layer or list(alignment(self.network, self.network.recipe).layers)[-1]

    def identity(self, target: Target) -> str:
        """Return a text that identifies network and layer."""
        return f"{self.network.name} {identity_of(self.network).key} {self.layer(target)}"

    @torch.no_grad()
    def __call__(self, target: Target, pictures: Tensor) -> Tensor:
        """Return embeddings (n, C), float32 on the CPU, of pictures (n, 3, H, W) RGB in [0, 1]."""
        layer = self.layer(target)
        activations, _ = self.network.taps([layer])(model_space(pictures, self.network))
        return activations[layer].flatten(2).float().mean(dim=2).cpu()


class OtherEmbedding:
    """Embeds images by the input of another network's classifier, or its output if it has none (DINO, CLIP).

    Args:
        network: the other network, frozen.
    """

    def __init__(self, network: VisionNetwork) -> None:
        from vital_exp.evaluation.reading import NetworkReader

        self.network = network
        self._read = NetworkReader(network)

    def identity(self, _target: Target) -> str:
        """Return a text that identifies the network."""
        return f"{self.network.name} {identity_of(self.network).key}"

    def __call__(self, _target: Target, pictures: Tensor) -> Tensor:
        """Return embeddings (n, D), float32 on the CPU, of pictures (n, 3, H, W) RGB in [0, 1]."""
        return self._read(pictures).features


def faceted(config: Configuration, network: VisionNetwork, source: References) -> References:
    """Return references by facet if the configuration asks for facets, else the source.

    Raises:
        UsageError: a number of facets that is not allowed, or that needs more images than there are; no references; an
            embedding network that is unknown or without weights.
    """
    keys = config.references
    facets, given = keys.facets, keys.embedding
    check_facets(facets)
    if facets == 1:
        return source
    if isinstance(source, NoReferences):
        raise UsageError("references.root", None, f"{KEY}={facets} needs images: {source.wanted}")
    if facets == AUTO and (few := _too_few_tensors(source)) is not None:
        logger.warning("%d images were given: one facet, because two need %d images", few, 2 * LEAST_MEMBERS)
        return source
    _check_candidates(config, facets, source)
    embedding: Embedding = OwnEmbedding(network) if given is None else OtherEmbedding(_other(config, network))
    competing: Competing = source  # type: ignore[assignment]
    return FacetedReferences(competing, facets, keys.count, keys.seed, embedding, _store(config, source))


def _too_few_tensors(source: References) -> int | None:
    """Return a target's number of tensors that is too small for two facets; None if there is none."""
    counts = source.counts().values() if isinstance(source, TensorReferences) else ()
    return next((count for count in counts if count < 2 * LEAST_MEMBERS), None)


def _check_candidates(config: Configuration, facets: str | int, source: References) -> None:
    """Raise UsageError if the images are too few for the facets, before anything is mined or read."""
    if isinstance(source, TensorReferences):
        for name, count in source.counts().items():
            check_enough(facets, count, f"images of {name} were given" if name else "images were given")
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
    """Return the number of images that compete; mined references have resolved auto."""
    return source.candidates_count if isinstance(source, MinedReferences) else config.references.candidates


def _store(config: Configuration, source: References) -> FacetStore | None:
    """Return the store of facets: the mined index, or the cache; None without a cache."""
    if isinstance(source, MinedReferences):
        return IndexFacets(source)
    return FacetFiles(config.cache) if config.references.cache else None


def _other(config: Configuration, network: VisionNetwork) -> VisionNetwork:
    """Return the embedding network, on the network's device."""
    from vital_exp.evaluation.score import NotComputed
    from vital_exp.evaluation.weights import network_if_there

    spec = config.references.embedding
    if not isinstance(spec, (str, dict)):
        wanted = "null (for the network itself), the name of a network, or the keys of the group model"
        raise UsageError(EMBEDDING, spec, wanted)
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
    """Return whether a network of these keys has random weights."""
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
    """Return the targets, with each unit replaced by its facets, the clearest facet first.

    Args:
        config: the composed configuration.
        references: of the targets.
        targets: units, or facets.
        find: whether to find facets that are not known; False leaves their units in place.
        found: facets that another rank has found.

    Raises:
        UsageError: a facet that the unit does not have, or a facet in a configuration without facets.
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
    """Check that no target is a facet if the references have no facets; tensors may be given for a facet itself.

    Raises:
        UsageError: a target is such a facet.
    """
    if isinstance(references, FacetedReferences):
        return
    own = references.targets() if isinstance(references, TensorReferences) else ()
    if stray := next((target for target in targets if target.facet is not None and target not in own), None):
        raise UsageError(KEY, config.references.facets, f"{stray.name} is a facet: auto, or at least 2", [AUTO])
