"""The configuration in a run folder: written as plain values and read as data, never as code. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from vital_exp.configuration import Configuration, plain
from vital_exp.errors import UsageError
from vital_exp.whole_files import whole_file

RECORDED, OVERRIDES = Path(".hydra") / "config.yaml", Path(".hydra") / "overrides.yaml"
MISTAKE_FILE = "mistake.txt"  # the reason why a run made no picture


def recorded_config(folder: Path, key: str, groups: Sequence[str] = ()) -> Configuration:
    """Return the configuration that a run folder has recorded, without interpolation.

    A run records resolved values. A text such as ``${oc.env:NAME}`` therefore stays a text, and a run folder from
    somebody else cannot read this machine's environment.

    Args:
        folder: a run folder with a recorded configuration.
        key: the configuration key that names the folder, for the message.
        groups: the groups that the configuration must have.

    Raises:
        UsageError: the file cannot be read, is not a mapping, or lacks a group.
    """
    try:
        content = yaml.safe_load((folder / RECORDED).read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("no mapping")
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(key, folder, f"{RECORDED} there cannot be read ({reason})") from error
    if lacking := [group for group in groups if group not in content]:
        raise UsageError(key, folder, f"{RECORDED} there lacks {', '.join(lacking)}")
    return Configuration(content)


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """Writes YAML without aliases, and quotes a text that another YAML reader would not take for a text."""

    def ignore_aliases(self, _data: object) -> bool:
        """Write a value that occurs twice in full both times."""
        return True


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    quotes = "'" if _is_number(text) or text.lower() in ("y", "n") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, quotes)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


_Dumper.add_representer(str, _text)


def as_yaml(content: Mapping[str, Any] | Sequence[str]) -> str:
    """Return plain values as YAML, with the keys in their order."""
    text: str = yaml.dump(content, Dumper=_Dumper, default_flow_style=False, allow_unicode=True, sort_keys=False)
    return text


def record_config(config: Mapping[str, Any], folder: Path, overrides: Sequence[str] | None = None) -> None:
    """Write a configuration, and its overrides unless they are None, into a run folder."""
    (folder / RECORDED).parent.mkdir(parents=True, exist_ok=True)
    with whole_file(folder / RECORDED) as file:
        file.write(as_yaml(plain(config)))
    if overrides is not None:
        with whole_file(folder / OVERRIDES) as file:
            file.write(as_yaml(list(overrides)))


def recorded_overrides(folder: Path) -> list[str]:
    """Return the overrides that a run folder has recorded; an empty list if there is no record."""
    place = folder / OVERRIDES
    return list(map(str, yaml.safe_load(place.read_text(encoding="utf-8")))) if place.is_file() else []
