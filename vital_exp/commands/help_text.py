"""The help text of a command, without composing its configuration."""

from __future__ import annotations

from collections.abc import Sequence
from string import Template

import yaml

from vital_exp.config_tree import config_dir, groups, options_of


def asks_for_help(arguments: Sequence[str]) -> bool:
    """Whether a command line has ``--help``, the beginning of it, or ``-h``."""
    return any(word == "-h" or (len(word) > len("--h") and "--help".startswith(word)) for word in arguments)


def help_text(command: str) -> str:
    """Return ``hydra.help.template`` of a command's configuration with its groups and their options filled in.

    Hydra's own way composes the configuration and copies it twice for each group: two seconds for a page of text.
    """
    content = yaml.safe_load((config_dir() / f"{command}.yaml").read_text(encoding="utf-8"))["hydra"]["help"]
    template = Template(content["template"].replace("${hydra.help.header}", content["header"]))
    listed = (f"{group}: {', '.join(options_of(group))}\n" for group in groups(command))
    return template.substitute(APP_CONFIG_GROUPS="".join(listed))
