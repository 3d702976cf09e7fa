"""What somebody asked for, from the command line or from Python, made into objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch import Tensor, nn

from vital_exp.config import compose_config, set_keys
from vital_exp.engine import setup
from vital_exp.errors import UsageError
from vital_exp.models.loading import ModelConfig, build_network, wrap
from vital_exp.models.named import model_config, model_overrides
from vital_exp.models.network import VisionNetwork
from vital_exp.references.base import References
from vital_exp.targets.selection import parse_target
from vital_exp.targets.unit import Target


@dataclass(frozen=True)
class Request:
    """A configuration with its network on the device, targets and references."""

    config: DictConfig
    network: VisionNetwork
    targets: list[Target]
    references: References
    overrides: tuple[str, ...] = ()

    @classmethod
    def from_config(cls, config: DictConfig, overrides: Sequence[str] = ()) -> Request:
        """Make the objects that a composed configuration names.

        Raises:
            UsageError: the first mistake in it.
        """
        setup.check_numbers(config)
        device = setup.device_of(config)
        network = build_network(model_config(config), setup.cache_dir(config))
        network = _placed(network, config, device)
        _ = network.classes
        setup.check_recipe(config, network)
        references = setup.references_of(config, network)
        targets = setup.targets_of(config, network, references)
        return cls(config, network, targets, references, tuple(overrides))

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
    ) -> Request:
        """Make the objects of a call from Python; see :func:`vital_exp.visualize`.

        Raises:
            UsageError: the first mistake in it.
        """
        named = model_overrides(model) if isinstance(model, str) else ["model=python"]
        asked = [*named, f"method={method}", f"seed={seed}", *([] if steps is None else [f"steps={steps}"])]
        config = compose_config([*asked, *map(str, overrides)])
        if isinstance(references, (str, Path)):
            set_keys(config, references__root=str(references), references__source="folder")
        setup.check_numbers(config)
        network = _network(model, config)
        setup.check_recipe(config, network)
        given = None if references is None else setup.as_references(references, network)
        source = given or setup.references_of(config, network)
        spellings = [targets] if isinstance(targets, (str, Target)) else list(targets)
        chosen = [parse_target(spelling, network.classes) for spelling in spellings]
        for target in chosen:
            if target.kind != "class":
                raise UsageError("targets", target.name, "class units only so far")
        if not chosen:
            raise UsageError("targets", "[]", "at least one target")
        setup.check_references(chosen, source)
        _record(config, network, chosen, given)
        return cls(config, network, list(dict.fromkeys(chosen)), source, (*asked, *map(str, overrides)))


def _network(model: str | nn.Module | VisionNetwork, config: DictConfig) -> VisionNetwork:
    if isinstance(model, str):
        built = build_network(model_config(config), setup.cache_dir(config))
        return _placed(built, config, setup.device_of(config))
    wrapped = model if isinstance(model, VisionNetwork) else wrap(model, ModelConfig())
    return _placed(wrapped, config, setup.device_of(config, wrapped))


def _placed(network: VisionNetwork, config: DictConfig, device: Any) -> VisionNetwork:
    """Move the network to its device; pictures in double precision need it in double precision."""
    if config.trainer.precision == "64-true":
        network = network.double()
    moved: VisionNetwork = network.to(device)
    return moved


def _record(config: DictConfig, network: VisionNetwork, targets: Sequence[Target], given: References | None) -> None:
    """Write into the configuration what came as objects, so that a resumed call can be compared with it."""
    set_keys(config, model__name=network.name, target__index=[target.name for target in targets])
    if given is not None:
        fingerprints = sorted({given.fingerprint(target) for target in targets})
        set_keys(config, references__source="tensors", references__fingerprint=fingerprints)
