"""The help text of a command and of a group, without a composed configuration. Imports no torch."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from string import Template

import yaml

from vital_exp.config_tree import config_dir, groups, options_of

WIDTH = 80  # columns of a terminal


def asks_for_help(arguments: Sequence[str]) -> bool:
    """Whether a command line has ``-h``, ``--help`` or an abbreviation of it."""
    return any(word == "-h" or (len(word) > len("--h") and "--help".startswith(word)) for word in arguments)


def help_text(command: str, arguments: Sequence[str] = ()) -> str:
    """Return the help of a command, or of the group that the arguments name (``--help model``).

    The help of a command is ``hydra.help.template`` of its configuration, with the groups filled in. Hydra itself would
    compose the configuration and copy it twice for each group, which takes two seconds.
    """
    if asked := [word for word in arguments if word in groups(command)]:
        return _group_text(asked[0])
    content = yaml.safe_load((config_dir() / f"{command}.yaml").read_text(encoding="utf-8"))["hydra"]["help"]
    template = Template(content["template"].replace("${hydra.help.header}", content["header"]))
    listed = (f"{_shortened(f'  {group}: ', options_of(group))}\n" for group in groups(command))
    return template.substitute(APP_CONFIG_GROUPS="".join(listed))


def _shortened(start: str, options: Sequence[str]) -> str:
    """Return one line with as many options as the terminal has room for."""
    whole = start + ", ".join(options)
    if len(whole) <= WIDTH:
        return whole
    return f"{whole[: WIDTH - len(', ...') + 1].rpartition(',')[0]}, ..."


def _group_text(group: str) -> str:
    """Return the options of a group, each with the comment that its file begins with."""
    lines = [f"{group}=option, of:", ""]
    for option in options_of(group):
        said = textwrap.wrap(" ".join(_header(group, option)), WIDTH - 4)
        lines += [f"  {option}", *(f"    {line}" for line in said)]
    return "\n".join([*lines, ""])


def _header(group: str, option: str) -> Iterator[str]:
    for line in (config_dir() / group / f"{option}.yaml").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            return
        if not line.startswith("# @package"):
            yield line.lstrip("# ")
