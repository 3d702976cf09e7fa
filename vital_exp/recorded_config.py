"""The configuration that a run folder holds, read as data whoever wrote it. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vital_exp.errors import UsageError

RECORDED = Path(".hydra") / "config.yaml"
MISTAKE_FILE = "mistake.txt"  # of a run that could not make anything
INTERPOLATION = re.compile(r"(\\*)\$\{")


def recorded_config(folder: Path, key: str, groups: Sequence[str] = ()) -> DictConfig:
    """Return the configuration of a run folder as it stands there.

    A run records its configuration resolved, so nothing in the file is interpolated: what looks like ``${oc.env:NAME}``
    is text, and a folder from elsewhere learns nothing of this machine.

    Args:
        folder: a run folder with a recorded configuration.
        key: the configuration key that names the folder, for the message.
        groups: the groups that are needed of it.

    Raises:
        UsageError: the file cannot be read, is no configuration, or lacks a group.
    """
    try:
        content = yaml.safe_load((folder / RECORDED).read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("no mapping")
        config: DictConfig = OmegaConf.create(_literal(content))
    except (OSError, ValueError, RecursionError, yaml.YAMLError, OmegaConfBaseException) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(key, folder, f"{RECORDED} there cannot be read ({reason})") from error
    if lacking := [group for group in groups if group not in config]:
        raise UsageError(key, folder, f"{RECORDED} there lacks {', '.join(lacking)}")
    return config


def _literal(node: Any) -> Any:
    """Escape what OmegaConf would interpolate."""
    if isinstance(node, dict):
        return {name: _literal(value) for name, value in node.items()}
    if isinstance(node, list):
        return [_literal(value) for value in node]
    return INTERPOLATION.sub(lambda found: f"{found[1] * 2}\\${{", node) if isinstance(node, str) else node
