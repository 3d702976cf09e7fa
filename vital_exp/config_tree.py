"""The place of the configuration tree, and its groups, options and keys. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

# The default command of the functions below.
VISUALIZE = "visualize"
# Words of a configuration file that are not keys of the composed configuration.
NOT_KEYS = ("defaults", "hydra", "_target_")


def config_dir() -> Path:
    """Return the folder of the configuration tree: inside an installed wheel, or ``conf/`` of the checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


def groups(command: str = VISUALIZE) -> list[str]:
    """Return the names of a command's configuration groups: the groups in its defaults list, and their sub-groups."""
    listed, _ = _of_command(command)
    return [group for group in _all_groups() if group.split("/")[0] in listed]


def strange_groups(command: str) -> list[str]:
    """Return the names of other commands' groups that are neither groups nor keys of this command."""
    listed, keys = _of_command(command)
    return [group for group in _all_groups() if group.split("/")[0] not in listed | keys]


@cache
def _all_groups() -> tuple[str, ...]:
    root = config_dir()
    folders = (path.relative_to(root) for path in root.rglob("*") if path.is_dir())
    return tuple(sorted(str(folder) for folder in folders if not any(part.startswith("_") for part in folder.parts)))


@cache
def _of_command(command: str) -> tuple[frozenset[str], frozenset[str]]:
    """Return the groups in the defaults list of a command's file, and the file's keys.

    Optional groups are left out: an option of another group chooses their options.
    """
    content = yaml.safe_load((config_dir() / f"{command}.yaml").read_text(encoding="utf-8"))
    listed = frozenset(group for entry in content["defaults"] if isinstance(entry, dict) for group in entry)
    return listed, frozenset(content) - {"defaults", "hydra"}


def options_of(group: str) -> list[str]:
    """Return the options of a configuration group, without the files that only hold shared keys.

    Examples:
        >>> from vital_exp.config_tree import options_of
        >>> options_of("optimizer")
        ['adam_fourier', 'adam_lucid', 'adam_published', 'nadam_maco']
    """
    return sorted(p.stem for p in (config_dir() / group).glob("*.yaml") if not p.stem.startswith("_"))


def option_content(group: str, option: str) -> dict[str, Any]:
    """Return the content of an option's own file as nested dicts, without its defaults list."""
    return deepcopy(_option_content(group, option))


@cache
def _option_content(group: str, option: str) -> dict[str, Any]:
    content = OmegaConf.to_container(OmegaConf.load(config_dir() / group / f"{option}.yaml"))
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items() if key != "defaults"}


@cache
def known_keys(command: str = VISUALIZE) -> Mapping[str, list[str]]:
    """Return every dotted key of a command, with the options that have it; an empty list if it always exists."""
    found: dict[str, list[str]] = {}
    always: set[str] = set()
    own, unchosen = {*groups(command), ""}, _unchosen(command)
    for path in sorted(config_dir().rglob("*.yaml")):
        group = "/".join(path.relative_to(config_dir()).parts[:-1])
        if group not in own or (not group and path.stem != command):
            continue  # a file of another command
        text = path.read_text(encoding="utf-8")
        package = re.match(r"# @package (\S+)", text)
        place = package[1].replace("_global_", "") if package else group.replace("/", ".")
        shared = path.stem.startswith("_")
        owners = options_of(group) if shared else [path.stem]
        for key in _flat(yaml.safe_load(text), place):
            found.setdefault(key, []).extend(f"{group}={owner}" for owner in owners)
            if not group or (shared and group not in unchosen):
                always.add(key)
    return {key: [] if key in always else owners for key, owners in found.items()}


def _unchosen(command: str) -> set[str]:
    """Return the groups of a command whose default option is null."""
    content = yaml.safe_load((config_dir() / f"{command}.yaml").read_text(encoding="utf-8"))
    entries = [entry for entry in content["defaults"] if isinstance(entry, dict)]
    return {str(group) for entry in entries for group, option in entry.items() if option is None}


def _flat(node: object, prefix: str) -> Iterator[str]:
    """Yield the dotted keys of a configuration file, the keys of mappings included."""
    for name, value in node.items() if isinstance(node, dict) else ():
        if name not in NOT_KEYS:
            key = f"{prefix}.{name}" if prefix else str(name)
            yield key
            yield from _flat(value, key)
