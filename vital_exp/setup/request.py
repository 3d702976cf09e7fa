"""Requests from the command line or from Python: configuration, network, targets and references."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vital_exp.config import compose_config
from vital_exp.configuration import Configuration
from vital_exp.errors import UsageError
from vital_exp.models.identity import begin_call
from vital_exp.models.loading import build_network, wrap
from vital_exp.models.memory_order import arrange
from vital_exp.models.model_config import ModelConfig
from vital_exp.models.named import model_config, model_overrides
from vital_exp.models.network import VisionNetwork
from vital_exp.models.preparation import check_values
from vital_exp.references.base import References
from vital_exp.setup import parts
from vital_exp.setup.checks import check_layer, check_numbers
from vital_exp.setup.directions import settle_files
from vital_exp.setup.facets import FoundFacets, facet_targets, faceted
from vital_exp.setup.problem import (
    as_references,
    check_alignment,
    check_references,
    check_units,
    references_of,
    targets_of,
)
from vital_exp.setup.run_setup import RunSetup
from vital_exp.setup.window_size import settle_windows
from vital_exp.targets.selection import parse_target
from vital_exp.targets.unit import Target


@dataclass(frozen=True)
class HandedOver:
    """Arguments of a call from Python that replace keys of the configuration.

    Attributes:
        model: a name, a module or a network.
        targets: targets or their spellings, at least one.
        references: tensors or a folder; None: the configuration's references.
    """

    model: str | nn.Module | VisionNetwork
    targets: Sequence[str | Target]
    references: str | Path | Tensor | Mapping[Any, Tensor] | None = None

    @property
    def tensors(self) -> Tensor | Mapping[Any, Tensor] | None:
        """The references if they are tensors; None for a folder, which becomes a key of the configuration."""
        return None if isinstance(self.references, (str, Path)) else self.references

    @cached_property
    def kind(self) -> str:
        """The kind of the targets, an option of the group ``target``."""
        return _kind(self.targets)

    def overrides(self) -> list[str]:
        """Return the overrides that select options of the groups ``model``, ``target`` and ``references``."""
        named = model_overrides(self.model) if isinstance(self.model, str) else ["model=python"]
        source = "folder" if self.kind == "class" else "mined"
        folder = [f"references={source}"] if isinstance(self.references, (str, Path)) else []
        return [*named, f"target={self.kind}", *folder]


@dataclass(frozen=True)
class Request:
    """A configuration with its network (on its device), targets and references."""

    config: Configuration
    network: VisionNetwork
    targets: list[Target]
    references: References
    overrides: tuple[str, ...] = ()

    @cached_property
    def setup(self) -> RunSetup:
        """The setup of the run."""
        return RunSetup.of(self.config, self.network, self.references)

    @classmethod
    def of(
        cls,
        model: str | nn.Module | VisionNetwork,
        targets: Sequence[str | Target] | str | Target,
        *,
        method: str = "vital",
        references: str | Path | Tensor | Mapping[Any, Tensor] | None = None,
        seed: int = 0,
        steps: int | None = None,
        overrides: Sequence[str] = (),
        local_rank: int = 0,
        found: FoundFacets | None = None,
    ) -> Request:
        """Return the request of a call from Python; see :func:`vital_exp.visualize` for the arguments.

        ``local_rank`` and ``found`` are as for :meth:`from_config`.

        Raises:
            UsageError: the first mistake in the call.
        """
        handed = HandedOver(model, [targets] if isinstance(targets, (str, Target)) else list(targets), references)
        asked = [*handed.overrides(), f"method={method}", f"seed={seed}"]
        asked += [] if steps is None else [f"steps={steps}"]
        config = compose_config([*asked, *map(str, overrides)])
        if isinstance(references, (str, Path)):
            config = config.with_keys(references__root=str(references))
        return cls.from_config(config, [*asked, *map(str, overrides)], local_rank, found, handed)

    @classmethod
    def from_config(
        cls,
        config: Configuration,
        overrides: Sequence[str] = (),
        local_rank: int = 0,
        found: FoundFacets | None = None,
        handed: HandedOver | None = None,
    ) -> Request:
        """Return the request of a composed configuration, with its network on the device of a rank.

        Args:
            config: the composed configuration.
            overrides: the overrides that it was composed from, which are recorded with it.
            local_rank: number of this rank on its machine.
            found: facets that another rank has found.
            handed: arguments of a call from Python, which take precedence over the configuration.

        Raises:
            UsageError: the first mistake in the configuration.
        """
        check_numbers(config)
        parts.device_count(config)
        config = settle_files(config)
        network = _network(handed.model if handed else None, config, local_rank)
        if handed is None:
            targets, references = _selected(config, network)
            config, targets = _shown(config, network, references, targets, found)
        else:
            chosen = _chosen(handed.targets, handed.kind, network)
            config = config.with_keys(target__layer=chosen[0].layer)
            references = _looked_at(config, network, chosen, handed)
            config, targets = _shown(config, network, references, chosen, found)
            config = _recorded(config, network, targets, None if handed.tensors is None else references)
        return cls(config, network, targets, references, tuple(overrides))


def _selected(config: Configuration, network: VisionNetwork) -> tuple[list[Target], References]:
    """Return the targets that a configuration selects, and their references."""
    layer = config.target.layer
    if config.target.kind == "class":
        _ = network.classes  # raises UsageError for a network without classes
    else:
        check_layer(layer)
    check_alignment(config, network, layer)
    parts.check_optimisation(config, network)
    if config.target.kind == "class":  # "all" stands for the classes that have references
        references = references_of(config, network)
        return targets_of(config, network, references), references
    targets = targets_of(config, network)
    return targets, references_of(config, network, targets)


def _looked_at(
    config: Configuration, network: VisionNetwork, targets: Sequence[Target], handed: HandedOver
) -> References:
    """Check the targets of a call from Python, and return their references."""
    for layer in dict.fromkeys(target.layer for target in targets):
        check_alignment(config, network, layer)
    parts.check_optimisation(config, network)
    check_units(config, network, targets)
    if handed.tensors is None:
        references = references_of(config, network, targets)
    else:
        references = faceted(config, network, as_references(handed.tensors, network))
    check_references(targets, references)
    return references


def _shown(
    config: Configuration,
    network: VisionNetwork,
    references: References,
    targets: list[Target],
    found: FoundFacets | None,
) -> tuple[Configuration, list[Target]]:
    """Return the configuration with the size of windows, and the targets, with units replaced by wanted facets."""
    settled = settle_windows(config, network, references, targets, find=not config.dry_run)
    return settled, facet_targets(settled, references, targets, not config.dry_run, found)


def _kind(spellings: Sequence[str | Target]) -> str:
    """Return the kind of targets, the option of the group ``target``; UsageError for classes beside hidden units."""
    if not spellings:
        raise UsageError("targets", "[]", "at least one target")
    kinds = [parse_target(spelling, None).kind for spelling in spellings]
    if "class" in kinds and set(kinds) != {"class"}:
        hidden = next(s for s, kind in zip(spellings, kinds, strict=True) if kind != "class")
        raise UsageError("targets", hidden, "classes and hidden units need different references: two calls")
    return kinds[0]


def _chosen(spellings: Sequence[str | Target], kind: str, network: VisionNetwork) -> list[Target]:
    """Return the targets, each once."""
    names = network.classes if kind == "class" else None
    chosen = list(dict.fromkeys(parse_target(spelling, names) for spelling in spellings))
    if stray := next((target for target in chosen if target.tokens != chosen[0].tokens), None):
        raise UsageError("targets", stray.name, f"reads other tokens than {chosen[0].name}: two calls")
    return chosen


def _network(model: str | nn.Module | VisionNetwork | None, config: Configuration, local_rank: int) -> VisionNetwork:
    """Return the network of a call from Python, or else the one that the configuration names, on its device."""
    if model is None or isinstance(model, str):
        device = parts.device_of(config, local_rank=local_rank)
        return _placed(build_network(model_config(config), config.cache), config, device)
    asked = {key: config.model[key] for key in ("output", "head") if config.model[key] is not None}
    if isinstance(model, VisionNetwork) and asked:
        key, value = next(iter(asked.items()))
        raise UsageError(f"model.{key}", value, f"the network is wrapped already: load_model(module, {key}=...)")
    wrapped = model if isinstance(model, VisionNetwork) else wrap(model, ModelConfig(**asked))
    return _placed(wrapped, config, parts.device_of(config, wrapped, local_rank))


def _placed(network: VisionNetwork, config: Configuration, device: torch.device) -> VisionNetwork:
    """Return the network on its device, in the configuration's memory order and, for ``64-true``, in float64."""
    check_values(network.module)
    if config.trainer.precision == "64-true":
        network = network.double()
    moved: VisionNetwork = network.to(device)
    arrange(moved, config.channels_last)
    begin_call(moved, config.cache if config.references.cache else None)
    return moved


def _recorded(
    config: Configuration, network: VisionNetwork, targets: Sequence[Target], given: References | None
) -> Configuration:
    """Return the configuration with records of the given objects, with which a resumed call is compared."""
    named = config.with_keys(model__name=network.name, target__index=[target.name for target in targets])
    if given is None:
        return named
    fingerprints = sorted({given.fingerprint(target) for target in targets})
    return named.with_keys(references__source="tensors", references__fingerprint=fingerprints)
