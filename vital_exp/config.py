"""The configuration: composing it, comparing it, building objects from it. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vital_exp.config_mistakes import ARGUMENTS, OPEN_MAPPINGS, PARTS, check_overrides, check_values, explain
from vital_exp.config_tree import VISUALIZE, config_dir, groups, option_content, options_of, strange_groups
from vital_exp.configuration import Configuration, plain
from vital_exp.errors import UsageError

__all__ = ["OPEN_MAPPINGS", "build", "canonical", "compose_config", "config_dir", "config_hash", "groups", "normalised"]
__all__ += ["options_of", "picture_config", "plain"]

# Configurations that are kept as Hydra composed them: calls in one process often ask for the same again.
KEPT = 32
# Other spellings of a command's keys: Hydra takes the name of a group for nothing but a group.
SPELLINGS = {
    "atlas": {"method": "pictures", "concepts": "concept_folder"},
    "mine": {"relevance": "relevance_method"},
}
# Keys that change neither a picture nor what is recorded of it; a run may be resumed with others.
INCIDENTAL = (
    *(
        "resume",
        "list",
        "dry_run",
        "checkpoint_every",
        "progress",
        "pictures_every",
        "log_targets",
        "cache_dir",
        "rank_timeout",
    ),
    *(
        "logger",
        "evaluation",
        "movie",
        "sweep_metric",
        "trainer.log_every_n_steps",
        "trainer.devices",
        "trainer.num_nodes",
    ),
)


def compose_config(overrides: Sequence[str], command: str = VISUALIZE) -> Configuration:
    """Compose the configuration a command would get with these overrides.

    Raises:
        UsageError: an unknown group, option or key, or a value that cannot be read.

    Examples:
        >>> from vital_exp.config import compose_config
        >>> config = compose_config(["method=vital_fourier", "optimizer.lr=0.5"])
        >>> config.image._target_, config.optimizer.lr
        ('vital_exp.images.fourier.Fourier', 0.5)
        >>> compose_config(["stepz=3"])
        Traceback (most recent call last):
            ...
        vital_exp.errors.UsageError: stepz=3: no such key (did you mean steps or steer?)
    """
    overrides = [canonical(override, command) for override in overrides]
    try:
        check_overrides(overrides, compose_config, command)
        return normalised(_compose(command, tuple(overrides)), command)
    except (HydraException, OmegaConfBaseException) as error:
        raise explain(error, overrides, command) from error


@lru_cache(KEPT)
def _compose(command: str, overrides: tuple[str, ...]) -> DictConfig:
    """Compose with Hydra, also inside a running Hydra job, whose state is put back; nobody may change the result."""
    state = GlobalHydra.instance()
    outer = state.hydra
    state.clear()
    try:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            return compose(command, overrides=list(overrides))
    finally:
        state.hydra = outer


def normalised(config: DictConfig, command: str = VISUALIZE) -> Configuration:
    """Return a command's configuration without Hydra's part and other commands', interpolations resolved.

    Raises:
        UsageError: a key whose kind of value is known holds another.
    """
    strange = strange_groups(command)
    resolved = OmegaConf.to_container(config, resolve=True)
    assert isinstance(resolved, dict)
    content = {str(key): value for key, value in resolved.items() if key != "hydra" and key not in strange}
    if command == VISUALIZE:
        _drop_leftovers(content)
    check_values(content, command)
    return Configuration(content)


def _drop_leftovers(config: dict[str, Any]) -> None:
    """Take away, in place, what the method sets of another option than the chosen one.

    ``method=vital_fourier objective=[activation]`` has no alignment, and ``method=maco_horama image=pixels`` no
    spectrum to resample. A value of the user's stays, to be refused.
    """
    method = (config.get("method") or {}).get("name")
    if method not in options_of("method"):
        return
    content = option_content("method", method)
    for group in PARTS:
        for name, keys in content.get(group, {}).items():
            part = (config.get(group) or {}).get(name, {})
            if not part.get("_target_"):
                _drop(part, keys)
                if name in (config.get(group) or {}) and not part:
                    del config[group][name]
    if image := content.get("image"):
        options = [option_content("image", option) for option in options_of("image")]
        known = {key for option in options for key in option if option["_target_"] == config["image"].get("_target_")}
        _drop(config["image"], {key: value for key, value in image.items() if known and key not in known})


def _drop(node: dict[str, object], keys: Mapping[str, object]) -> None:
    for key in [key for key, value in keys.items() if node.get(key) == value]:
        del node[key]


def canonical(override: str, command: str = VISUALIZE) -> str:
    """Return the one spelling of an override that has several.

    A ``+`` before a group goes, because the defaults list has every group already; an argument of the network may be
    given with or without it. A value with a ``#`` (file#3) is quoted, for Hydra reads no bare one.
    """
    override = _quoted(override)
    bare = override.lstrip("+")
    key = bare.split("=")[0]
    if own := SPELLINGS.get(command, {}).get(key):
        return f"{own}={bare.partition('=')[2]}"
    if key in groups(command):
        return bare
    return f"++{bare}" if key == ARGUMENTS or key.startswith(f"{ARGUMENTS}.") else override


def _quoted(override: str) -> str:
    """Return an override whose values with a ``#`` are in quotes, if no quotes or brackets are there yet."""
    key, _, value = override.partition("=")
    if "#" not in value or any(sign in value for sign in "'\"[{"):
        return override
    return f"{key}=" + ",".join(f"'{part}'" if "#" in part else part for part in value.split(","))


def build(key: str, node: Mapping[str, object], **objects: object) -> Any:
    """Instantiate the object that a part of a configuration describes.

    The one place that calls Hydra's instantiate.

    Args:
        key: of the part, ``"objective.alignment"``.
        node: names the class as ``_target_``, and its arguments.
        objects: further arguments, handed over as they are.

    Raises:
        UsageError: no such class, an argument that it does not take, or a value that it refuses.
    """
    if not isinstance(node, Mapping) or not node.get("_target_"):
        raise UsageError("_target_", node, "what it builds is not said: _target_=package.module.Class is needed")
    target = str(node.get("_target_"))
    try:
        factory: Callable[..., object] = instantiate(plain(node), _partial_=True, _convert_="all")
    except HydraException as error:
        raise UsageError("_target_", target, "there is no such class") from error
    try:
        return factory(**objects)
    except (TypeError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{key}._target_", target, str(error).split("\n")[0]) from error


def picture_config(config: Mapping[str, object]) -> dict[str, Any]:
    """Return the part of the configuration that decides the pictures, flat: dotted key to value."""
    flat: dict[str, object] = {}

    def walk(node: object, prefix: str) -> None:
        if isinstance(node, dict) and node:
            for key, value in node.items():
                walk(value, f"{prefix}.{key}" if prefix else str(key))
        else:
            flat[prefix] = node

    walk(plain(config), "")
    return {k: v for k, v in flat.items() if not any(k == name or k.startswith(f"{name}.") for name in INCIDENTAL)}


def config_hash(config: Mapping[str, object]) -> str:
    """Return 16 hexadecimal digits that change when a picture-deciding key does, whichever targets are asked for."""
    content = {key: value for key, value in picture_config(config).items() if key != "target.index"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def content_hash(config: Mapping[str, object]) -> str:
    """Return 16 hexadecimal digits of all that decides the pictures of a run, its targets among it."""
    return hashlib.sha256(json.dumps(picture_config(config), sort_keys=True, default=str).encode()).hexdigest()[:16]
