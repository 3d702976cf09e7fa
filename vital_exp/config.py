"""Compose configurations, compare them, and build objects from them. Imports no torch."""

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

# Number of composed configurations that are cached: calls in one process often compose the same one again.
KEPT = 32
# Other spellings of a command's keys. Hydra reads the name of a group as the group, so the real keys differ from it.
SPELLINGS = {
    "atlas": {"method": "pictures", "concepts": "concept_folder"},
    "mine": {"relevance": "relevance_method"},
}
# Keys that change neither a picture nor its recorded results; a resumed run may have other values of these keys.
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
    """Return the configuration of a command with these overrides.

    Raises:
        UsageError: an unknown group, option or key, or a value that cannot be parsed.

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
    """Compose with Hydra, and restore the state of a running Hydra job. Callers must not change the cached result."""
    state = GlobalHydra.instance()
    outer = state.hydra
    state.clear()
    try:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            return compose(command, overrides=list(overrides))
    finally:
        state.hydra = outer


def normalised(config: DictConfig, command: str = VISUALIZE) -> Configuration:
    """Return a command's configuration, resolved, without Hydra's own keys and the groups of other commands.

    Raises:
        UsageError: a value of the wrong type, or a value that is not allowed.
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
    """Remove, in place, keys that the method sets for an option which the user has replaced by another.

    ``method=vital_fourier objective=[activation]`` has no alignment, and ``method=maco_horama image=pixels`` has no
    spectrum to resample. A value that the user gave for such a key stays, so that a later check refuses it.
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
    """Return the canonical spelling of an override.

    A ``+`` before a group is removed, because the defaults list has every group already. An argument of the network
    may be given with or without ``+``. A value with a ``#`` (file#3) is quoted: Hydra cannot parse a bare ``#``.
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
    """Return an override with quotes around each value that has a ``#``, unless it has quotes or brackets already."""
    key, _, value = override.partition("=")
    if "#" not in value or any(sign in value for sign in "'\"[{"):
        return override
    return f"{key}=" + ",".join(f"'{part}'" if "#" in part else part for part in value.split(","))


def build(key: str, node: Mapping[str, object], **objects: object) -> Any:
    """Instantiate the object that a part of a configuration describes.

    Only this function calls Hydra's instantiate.

    Args:
        key: the dotted key of the part, ``"objective.alignment"``.
        node: the class, under ``_target_``, and its arguments.
        objects: further arguments, passed on unchanged.

    Raises:
        UsageError: there is no such class, or the class refuses an argument or a value.
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
    """Return the keys that decide the pictures, as a flat dict of dotted keys."""
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
    """Return a hash, 16 hexadecimal digits, of all keys that decide the pictures, except ``target.index``."""
    content = {key: value for key, value in picture_config(config).items() if key != "target.index"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def content_hash(config: Mapping[str, object]) -> str:
    """Return a hash, 16 hexadecimal digits, of all keys that decide the pictures, ``target.index`` included."""
    return hashlib.sha256(json.dumps(picture_config(config), sort_keys=True, default=str).encode()).hexdigest()[:16]
