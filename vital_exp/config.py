"""The configuration tree: where it is, composing it, checking it, building objects from it. Imports no torch."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from vital_exp.errors import UsageError, nearest

# Mappings a user may add keys to.
OPEN_MAPPINGS = ("model.arguments", "transforms", "objective")
# Keys that change neither a picture nor what is recorded of it; a run may be resumed with others.
INCIDENTAL = ("resume", "list", "dry_run", "checkpoint_every", "progress", "pictures_every", "cache_dir", "logger", "evaluation", "trainer.log_every_n_steps")


def config_dir() -> Path:
    """Return the folder of the configuration tree: inside an installed wheel, or ``conf/`` of the checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


def compose_config(overrides: Sequence[str], name: str = "visualize") -> DictConfig:
    """Compose the configuration a command would get with these overrides.

    Raises:
        UsageError: an unknown group, option or key, or a value that cannot be read.
    """
    overrides = [without_plus(override) for override in overrides]
    try:
        config = normalised(_compose(name, overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise explain(error, overrides) from error
    check_added_keys(overrides, config)
    return config


def _compose(name: str, overrides: list[str]) -> DictConfig:
    """Compose with Hydra, also inside a running Hydra job, whose state is put back."""
    state = GlobalHydra.instance()
    outer = state.hydra
    state.clear()
    try:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            return compose(name, overrides=overrides)
    finally:
        state.hydra = outer


def normalised(config: DictConfig) -> DictConfig:
    """Return a copy without Hydra's own part, interpolations resolved."""
    copy = OmegaConf.create(plain(config))
    OmegaConf.set_struct(copy, True)
    return copy


def without_plus(override: str) -> str:
    """Drop the ``+`` before a group that the defaults list has already: both spellings choose an option."""
    key = override.lstrip("+").split("=")[0]
    return override.lstrip("+") if override.startswith("+") and key in groups() else override


def explain(error: Exception, overrides: Sequence[str] = ()) -> UsageError:
    """Turn an error of Hydra or OmegaConf into one line that names the key, the value and the nearest allowed ones."""
    text = " ".join(str(error).split())
    if match := re.search(r"Could not (?:find|load) '([\w/]+)/([^'/]+)'", text):
        group, option = match.groups()
        options = options_of(group)
        return UsageError(group, option, f"one of {', '.join(options)}", options)
    match = re.search(r"Could not (?:override|append to config\.?) '([^'@]+)", text) or re.search(
        r"[Kk]ey '([^']+)' is not in struct", text
    )
    if match:
        key = match.group(1)
        given = next((o for o in overrides if o.split("=")[0].lstrip("+~") == key), key)
        near = nearest(key, [*known_keys(), *groups()])
        hint = f" (did you mean {' or '.join(near)}?)" if near else ""
        return UsageError(key, given.partition("=")[2], f"no such key{hint}")
    return UsageError("configuration", " ".join(overrides), re.sub(r" See https?://\S+.*", "", text))


def groups() -> list[str]:
    """Return the names of the configuration groups."""
    root = config_dir()
    return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_dir())


def options_of(group: str) -> list[str]:
    """Return the options of a configuration group, without the files that only hold shared keys."""
    return sorted(p.stem for p in (config_dir() / group).glob("*.yaml") if not p.stem.startswith("_"))


def known_keys() -> list[str]:
    """Return the dotted keys of the default configuration, for suggestions."""
    config = _compose("visualize", [])
    found: list[str] = []

    def walk(node: DictConfig, prefix: str) -> None:
        for key in node:
            found.append(f"{prefix}{key}")
            child = OmegaConf.to_container(node, resolve=False)[key]  # type: ignore[index,call-overload]
            if isinstance(child, dict):
                walk(node[key], f"{prefix}{key}.")

    walk(config, "")
    return found


def check_added_keys(overrides: Sequence[str], config: DictConfig | None = None) -> None:
    """Refuse a key added with ``+`` that nothing reads: Hydra itself would accept it in silence.

    Raises:
        UsageError: the key is neither in an open mapping nor an argument of the object it was added to.
    """
    added = [override for override in overrides if override.startswith("+")]
    config = compose_config([o for o in overrides if "=" in o and o not in added]) if added and not config else config
    for override in added:
        key, _, value = override.partition("=")
        key = key.lstrip("+")
        if "/" in key or key.split("@")[0] in groups():
            continue
        parent, _, name = key.rpartition(".")
        if any(parent == mapping or parent.startswith(f"{mapping}.") for mapping in OPEN_MAPPINGS):
            continue  # what reads these checks them itself
        node = OmegaConf.select(config, parent) if parent else None
        arguments = _arguments(node.get("_target_")) if isinstance(node, DictConfig) else []
        if name not in arguments:
            near = nearest(key, [f"{parent}.{argument}" for argument in arguments] or known_keys())
            hint = f" (did you mean {' or '.join(near)}?)" if near else ""
            raise UsageError(f"+{key}", value, f"no such key{hint}")


def _arguments(target: str | None) -> list[str]:
    return list(inspect.signature(get_class(target)).parameters) if target else []


def build(node: DictConfig, **objects: Any) -> Any:
    """Instantiate the object a configuration node describes; ``objects`` are handed over as they are.

    The one place that calls Hydra's instantiate.

    Raises:
        UsageError: an argument that the object does not take.
    """
    if not isinstance(node, DictConfig) or not node.get("_target_"):
        raise UsageError("_target_", node, "what it builds is not said: _target_=package.module.Class is needed")
    factory: Callable[..., Any] = instantiate(node, _partial_=True, _convert_="all")
    try:
        return factory(**objects)
    except TypeError as error:
        raise UsageError(str(node.get("_target_")), "", str(error)) from error


def plain(config: DictConfig) -> dict[str, Any]:
    """Return the configuration as nested dicts and lists, interpolations resolved, without Hydra's own part."""
    content = OmegaConf.to_container(config, resolve=True)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items() if key != "hydra"}


def picture_config(config: DictConfig) -> dict[str, Any]:
    """Return the part of the configuration that decides the pictures, flat: dotted key to value."""
    flat: dict[str, Any] = {}

    def walk(node: object, prefix: str) -> None:
        if isinstance(node, dict) and node:
            for key, value in node.items():
                walk(value, f"{prefix}.{key}" if prefix else str(key))
        else:
            flat[prefix] = node

    walk(plain(config), "")
    return {k: v for k, v in flat.items() if not any(k == name or k.startswith(f"{name}.") for name in INCIDENTAL)}


def config_hash(config: DictConfig) -> str:
    """Return 16 hexadecimal digits that change when a picture-deciding key does, whichever targets are asked for."""
    content = {key: value for key, value in picture_config(config).items() if key != "target.index"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def set_keys(config: DictConfig, **values: Any) -> None:
    """Set dotted keys (with ``__`` for the dot) of a composed configuration in place."""
    with open_dict(config):
        for key, value in values.items():
            OmegaConf.update(config, key.replace("__", "."), value)
