"""The reference of the configuration: every group, option and key, from the files' comments and the code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache

import yaml

from tools.documentation.kinds import kind_of
from tools.documentation.yaml_comments import File, Key, read_file
from vital_exp.config_tree import config_dir, groups

FOLDER = "reference/configuration"


@cache
def files() -> tuple[File, ...]:
    """Return all files of the configuration tree, without the settings of experiments for single methods."""
    root = config_dir()
    paths = (path for path in sorted(root.rglob("*.yaml")) if "_own" not in path.parts)
    return tuple(read_file(path, root) for path in paths)


def group_names() -> list[str]:
    """Return the names of the groups."""
    return sorted({file.group for file in files() if file.group})


def command_names() -> list[str]:
    """Return the commands' configurations, ``["audit", "evaluate", ...]``."""
    return [file.name for file in files() if not file.group]


def meaning(key: Key, file: File) -> str:
    """Return the comment on a key: of its own file, or else of a file it extends, of its group, or of any other file.

    A key of an open mapping (``model.arguments.depth``) has the comment on the mapping. Empty without any comment.
    """
    near = [file, *_bases(file), *(other for other in files() if other.group == file.group), *files()]
    name = key.name
    while name:
        said = (other.comment for source in near for other in source.keys if other.name == name and other.comment)
        if comment := next(said, ""):
            return comment
        name = name.rpartition(".")[0]
    return ""


def _bases(file: File) -> list[File]:
    found = [other for other in files() if other.group == file.group and other.name in file.bases]
    return found + [base for other in found for base in _bases(other)]


def pages() -> dict[str, str]:
    """Return the page of each group, and the page that lists them, by their path in the site."""
    made = {f"{FOLDER}/{group.replace('/', '-')}.md": _group_page(group) for group in group_names()}
    return {f"{FOLDER}.md": _list_of_groups(), **made}


def link(group: str, below: str = "") -> str:
    """Return the link to a group's page, from a page beside ``configuration.md`` or in a folder below."""
    return f"[`{group}`]({below}configuration/{group.replace('/', '-')}.md)"


def _list_of_groups() -> str:
    rows = [f"| {link(group)} | {', '.join(f'`{name}`' for name in _options(group))} |" for group in group_names()]
    return "\n".join(
        [
            "# Groups of the configuration",
            "",
            "Arguments of a command are `group=option` and `key=value`; "
            "all other options and keys have the defaults in these tables. "
            "`--cfg job` prints the whole configuration of a command.",
            "The page of the [commands](commands.md) lists the keys that a command has beside its groups.",
            "",
            "| group | options |",
            "|---|---|",
            *rows,
            "",
        ]
    )


def _options(group: str) -> list[str]:
    return [file.name for file in files() if file.group == group and not file.name.startswith("_")]


def _group_page(group: str) -> str:
    options = ", ".join(f"[{name}](#{anchor(group, name)})" for name in _options(group))
    lines = [f"# {group}", "", f"Options: {options}.", "", f"{_users(group)}.", ""]
    for file in files():
        if file.group == group:
            title = "Keys of every option" if file.name == "_keys" else f"{group}={file.name}"
            lines += [f"## {title} {{#{anchor(group, file.name)}}}", "", *_section(file)]
    return "\n".join(lines)


def anchor(group: str, option: str) -> str:
    """Return the anchor of an option on the page of its group."""
    return f"{group}-{option}".replace("/", "-").replace("_", "-")


def _users(group: str) -> str:
    """Return a line with the commands that have a group, and each command's default option."""
    found = []
    for name in command_names():
        if group in groups(name):
            chosen = defaults_of(name).get(group)
            found.append(f"vital-{name}" + (f" (default {chosen})" if chosen else ""))
    return f"A group of {', '.join(found)}" if found else "A group that other groups choose from"


def defaults_of(command: str) -> dict[str, str]:
    """Return the options in a command's defaults list, by group."""
    content = yaml.safe_load((config_dir() / f"{command}.yaml").read_text(encoding="utf-8"))
    entries = [entry for entry in content["defaults"] if isinstance(entry, dict)]
    named = {str(group): option for entry in entries for group, option in entry.items()}
    return {
        group: ", ".join(option) if isinstance(option, list) else str(option)
        for group, option in named.items()
        if option is not None and not group.startswith("optional")
    }


def _section(file: File) -> Iterator[str]:
    """Yield the lines on one option: its header, its own keys, and the keys of others that it sets."""
    if file.header:
        yield from (_shown(file.header), "")
    shared = {key.name for base in _bases(file) for key in base.keys}
    prefix = file.group.replace("/", ".")
    own = [key for key in file.keys if key.comment or (key.name.startswith(prefix) and key.name not in shared)]
    own = [key for key in own if file.group not in ("experiment", "method") or key.comment]
    if own:
        yield from key_table(own, file)
    if bases := [base for base in file.bases if base not in ("_keys", "_self_")]:
        yield from (f"Has the keys of {', '.join(f'`{file.group}={base}`' for base in bases)} too.", "")
    if others := [key for key in file.keys if key not in own]:
        yield from (f"Sets {', '.join(f'`{key.name}={key.default}`' for key in others)}.", "")
    if not file.keys:
        yield from ("No keys of its own.", "")


def key_table(keys: list[Key], file: File) -> list[str]:
    """Return a table of keys: name, default, kind of value, meaning."""
    rows = []
    for key in keys:
        default = f"`{key.default.rpartition('.')[2]}`" if key.part else f"`{key.default}`"
        said = meaning(key, file)
        cells = (f"`{key.name}`", default, kind_of(key, file, said), _shown(said))
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return ["| key | default | value | meaning |", "|---|---|---|---|", *rows, ""]


def _shown(comment: str) -> str:
    """Return a comment as Markdown text, with the characters of markup escaped."""
    return re.sub(r"([*_<>\[\]])", r"\\\1", comment)
