"""Find mistakes in a configuration before anything runs, and turn Hydra's long messages into one line.

Imports no torch.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatch
from itertools import takewhile
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException
from hydra.utils import get_object

from vital_exp.config_tree import VISUALIZE, groups, known_keys, options_of, strange_groups
from vital_exp.errors import SUGGESTIONS, UsageError, nearest
from vital_exp.values import is_text_or_none, is_whole

# The key whose values are passed to the network's constructor.
ARGUMENTS = "model.arguments"
# Mappings of named parts; a user may add parts and remove them.
PARTS = ("transforms", "objective")
# Mappings to which a user may add keys.
OPEN_MAPPINGS = (ARGUMENTS, *PARTS)
# Where reference images come from: the values of references.source.
SOURCES = ("embedded", "folder", "mined")
MOVIES = (None, "gif", "apng")  # the values of movie
# Arguments that the engine sets when it builds an object; a value from the user would be overwritten.
SET_BY_ENGINE = (
    *(f"trainer.{name}" for name in ("max_steps", "max_epochs", "min_steps", "min_epochs", "max_time", "logger")),
    *(f"trainer.{name}" for name in ("callbacks", "strategy", "barebones", "default_root_dir")),
    *("trainer.enable_*", "trainer.accumulate_grad_batches", "trainer.fast_dev_run", "trainer.limit_train_batches"),
    *("image.preprocessing", "image.streams", "optimizer.params", "objective.*.problem", "logger.save_dir"),
)
CALLED_ELSEWHERE = {"units": "channels", "channels": "units"}  # by vital-mine and vital-atlas
NOT_THERE = object()


def explain(error: Exception, overrides: Sequence[str] = (), command: str = VISUALIZE) -> UsageError:
    """Turn an error of Hydra or OmegaConf into one line with the key, its value and the nearest allowed names."""
    text = " ".join(str(error).split())
    if isinstance(error, OverrideParseException):
        return UsageError("argument", error.override, f"cannot be read as key=value ({text.partition(' See http')[0]})")
    if match := re.search(r"Could not (?:find|load) '([\w/]+)/([^'/]+)'", text):
        return _no_such_option(*match.groups())
    if match := re.search(r"Ambiguous value for argument '([^=']+)=([^']*)'", text):
        key, value = match.groups()
        return UsageError(key, value, f"several values: -m makes a job of each, {key}=[{value}] is one list")
    match = re.search(r"full_key: ([^\s']+)", text) or re.search(
        r"(?:Could not override|Could not append to config\.?|[Kk]ey) '([^'@]+)'", text
    )
    if match:
        key = match.group(1)
        given = next((o for o in overrides if o.split("=")[0].lstrip("+~") == key), key)
        return _no_such_key(key, given.partition("=")[2], command)
    return UsageError("configuration", " ".join(overrides), re.sub(r" See https?://\S+.*", "", text))


def _no_such_option(group: str, option: str) -> UsageError:
    options = options_of(group)
    return UsageError(group, option, f"one of {', '.join(options)}", options)


def _no_such_key(key: str, value: object, command: str, options: Sequence[str] = ()) -> UsageError:
    """Return the mistake of an unknown key, with the options that have the key, or keys of similar spelling."""
    known = known_keys(command)
    if owners := known.get(key.lstrip("+")):
        owners = [owner for owner in owners if not owner.startswith("experiment=")] or owners
        first = f" ({owners[0]} {key}={value})" if len(owners) <= SUGGESTIONS else ""
        return UsageError(key, value, f"no such key here: it belongs to {' and '.join(owners)}{first}")
    other = CALLED_ELSEWHERE.get(key.lstrip("+"))
    near = [other] if other and other in known else nearest(key.lstrip("+"), [*options, *known, *groups(command)])
    hint = f" (did you mean {' or '.join(near)}?)" if near else ""
    return UsageError(key, value, f"no such key{hint}")


def check_words(arguments: Sequence[str], command: str = VISUALIZE) -> None:
    """Refuse an unquoted value with spaces, which the shell splits into several arguments.

    Args:
        arguments: the command line.
        command: the command's name.

    Raises:
        UsageError: a word without ``=`` follows a key=value, and the word is not a key.
    """
    for place, word in enumerate(arguments[1:], 1):
        before = arguments[place - 1]
        if _is_word(word) and "=" in before and not before.startswith("-") and word not in known_keys(command):
            rest = list(takewhile(_is_word, arguments[place:]))
            key, _, value = before.partition("=")
            quoted = f'{key}="{" ".join([value, *rest])}"'
            raise UsageError("argument", word, f"cannot be read as key=value; a value with spaces is quoted: {quoted}")


def _is_word(argument: str) -> bool:
    return "=" not in argument and argument[:1] not in ("-", "~")


def check_overrides(
    overrides: Sequence[str], compose: Callable[[Sequence[str], str], Mapping[str, object]], command: str = VISUALIZE
) -> None:
    """Refuse overrides that Hydra would accept silently, or refuse with a traceback.

    Args:
        overrides: the user's overrides; of a sweep's values only the first is checked.
        compose: composes the command's configuration from the overrides that add no key.
        command: the command's name.

    Raises:
        UsageError: a group without an option; a key added with ``+`` that nothing reads, that the engine sets or that
            exists already; a key removed with ``~`` that is not a part of the objective or the transforms.
    """
    added: list[str] = []
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        if re.match(r"hydra[./]", key):
            continue  # Hydra checks its own keys
        if not key:
            raise UsageError("argument", override, "cannot be read as key=value")
        if re.split(r"[.@/]", key)[0] in strange_groups(command):
            raise _no_such_key(key, value, command)
        if override.startswith("~"):
            _check_deleted(key, value, command)
        elif key in groups(command) and re.fullmatch(r"(null|[-\d.]+|true|false|)", value, re.IGNORECASE):
            raise _no_such_option(key, value)
        elif override.startswith("+"):
            added.append(override)
    if added:
        config = compose([_one_job(override) for override in overrides if override not in added], command)
        for override in added:
            _check_added(override, config, command)


def _one_job(override: str) -> str:
    """Return an override with the first value only, if its values make a sweep."""
    parsed = OverridesParser.create().parse_override(override)
    if not parsed.is_sweep_override():
        return override
    return f"{parsed.get_key_element()}={next(iter(parsed.sweep_string_iterator()))}"


def select(config: Mapping[str, object], key: str, default: object = None) -> object:
    """Return the value of a dotted key, or a default where there is none."""
    node: object = config
    for name in key.split("."):
        if not isinstance(node, Mapping) or name not in node:
            return default
        node = node[name]
    return node


def _check_deleted(key: str, value: str, command: str) -> None:
    parts = [mapping for mapping in PARTS if mapping in groups(command)]
    if key.rpartition(".")[0] not in parts:
        allowed = ", ".join(f"~{mapping}.<name>" for mapping in parts) or "here are none"
        raise UsageError(f"~{key}", value, f"only parts can be taken away: {allowed}")


def _check_added(override: str, config: Mapping[str, object], command: str) -> None:
    """Check an override that starts with ``+`` against the configuration without this override."""
    key, _, value = override.lstrip("+").partition("=")
    parent, _, name = key.rpartition(".")
    there = select(config, key, NOT_THERE) is not NOT_THERE
    if there and not override.startswith("++"):
        raise UsageError(f"+{key}", value, f"the key is there already: {key}={value}")
    if there or "/" in key or key.split("@")[0] in groups(command) or key == ARGUMENTS:
        return
    if any(fnmatch(key, pattern) for pattern in SET_BY_ENGINE):
        raise UsageError(f"+{key}", value, "the engine sets this itself")
    node = select(config, parent) if parent else None
    target = node.get("_target_") if isinstance(node, Mapping) else None
    if not target and any(f"{parent}.".startswith(f"{mapping}.") for mapping in (*PARTS, ARGUMENTS)):
        return  # check_values checks a new part; a network checks its own arguments
    options = _arguments(target)
    if name not in options:
        raise _no_such_key(f"+{key}", value, command, [f"{parent}.{option}" for option in options])


def _arguments(target: str | None) -> list[str]:
    return list(inspect.signature(get_object(target)).parameters) if target else []


def check_values(config: Mapping[str, Any], command: str = VISUALIZE) -> None:
    """Check the types and ranges of a command's values before any code reads them.

    Raises:
        UsageError: the first value that is not allowed, or a part of the objective or transforms without a _target_.
    """
    for key, (allowed, described) in VALUES[command].items():
        value = select(config, key)
        if not allowed(value):
            raise UsageError(key, value, described)
    for mapping in PARTS:
        for name, node in (config.get(mapping) or {}).items():
            if not isinstance(node, Mapping) or not node.get("_target_"):
                raise _part_of_nothing(mapping, name, node)


def _part_of_nothing(mapping: str, name: str, node: object) -> UsageError:
    """Return the mistake of a part without ``_target_``: an option that is not chosen, or a new part."""
    if name in options_of(mapping):
        return UsageError(f"{mapping}.{name}", node, f"the option {mapping}=[{name}] is not among the chosen ones")
    return UsageError(f"{mapping}.{name}", node, "what it builds is not said: _target_=package.module.Class")


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_count(value: object) -> bool:
    return is_whole(value, 1)


Check = tuple[Callable[[object], bool], str]


def _is_pair_or_none(value: object) -> bool:
    return value is None or (isinstance(value, list) and len(value) == 2 and all(map(is_text_or_none, value)))


FLAG: Check = (_is_flag, "true or false")
ONE_DEVICE: Check = (
    lambda value: value in (1, "1", "auto") or (isinstance(value, list) and len(value) == 1),
    "one device",
)
# Keys of every command that loads a network.
COMMON: Mapping[str, Check] = {
    **dict.fromkeys(("progress", "model.pretrained"), FLAG),
    "cache_dir": (lambda value: isinstance(value, str) and value != "", "a folder"),
    ARGUMENTS: (lambda value: isinstance(value, Mapping), "a mapping, {pad_type: same}"),
}
VALUES: Mapping[str, Mapping[str, Check]] = {
    "visualize": {
        **COMMON,
        **dict.fromkeys(
            (
                "resume",
                "dry_run",
                "channels_last",
                "fold_batch_norms",
                "pack_weights",
                "evaluation.enabled",
                "references.cache",
                "log_targets",
            ),
            FLAG,
        ),
        "trainer.log_every_n_steps": (_is_count, "a whole number of at least 1"),
        "references.seed": (lambda value: is_whole(value, 0), "a whole number"),
        "references.source": (lambda value: value in SOURCES, f"one of {', '.join(SOURCES)}"),
        "references.root": (is_text_or_none, "a folder of natural images"),
        "evaluation.judges": (
            lambda value: isinstance(value, list),
            "a list of networks, [resnet50,densenet121]",
        ),
        "movie": (lambda value: value in MOVIES, "gif, apng or null"),
        "steer": (is_text_or_none, "layer:channel:+2sd, layer:channel:-1sd, layer:channel:off or folder#concept:+2sd"),
        "sweep_metric": (is_text_or_none, "the name of a metric, accuracy_top1"),
        "objective": (lambda value: isinstance(value, Mapping), "at least one term, objective=[alignment]"),
    },
    "mine": {
        **COMMON,
        "trainer.devices": ONE_DEVICE,
        **dict.fromkeys(("patches", "sheets", "dry_run"), FLAG),
        "images": (is_text_or_none, "a folder of images"),
        "directions": (is_text_or_none, "a file of directions, of one layer"),
        **dict.fromkeys(("naming.words", "naming.download"), FLAG),
        "naming.method": (lambda value: value in ("nearest", "splice"), "nearest or splice"),
        "naming.penalty": (lambda value: isinstance(value, float) and 0 < value < 1, "a share between 0 and 1"),
        "naming.formula_length": (
            lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= 1,
            "a whole number of at least 1",
        ),
        "find": (lambda value: is_text_or_none(value) and value != "", "words, or an image file"),
        "find_by": (lambda value: value in (None, "activation", "embedding"), "activation, embedding or null"),
        "find_count": (_is_count, "a whole number of at least 1"),
        "naming.labels": (lambda value: isinstance(value, (bool, list)), "true, false or a list of labels"),
        "concepts": (lambda value: value is None or isinstance(value, Mapping), "one of nmf, kmeans, pca"),
        "concepts.class": (lambda value: value is None or isinstance(value, (str, int)), "a class: number or name"),
        "spectrum": (lambda value: isinstance(value, (bool, str)), "true, false or a folder of images"),
        "spectrum_size": (_is_count, "a side in px, at least 1"),
    },
    "evaluate": {
        **dict.fromkeys(("download", "references.cache", "study", "progress", "wandb", "offline"), FLAG),
        "project": (lambda value: value is None or (isinstance(value, str) and value != ""), "a name"),
        "study_targets": (_is_count, "a whole number of at least 1"),
        "study_seed": (lambda value: is_whole(value, 0), "a whole number"),
        "answers": (
            lambda value: is_text_or_none(value) or (isinstance(value, list) and len(value) > 0),
            "files that the study's page saved, or a folder of them",
        ),
        "trainer.devices": ONE_DEVICE,
        "cache_dir": COMMON["cache_dir"],
        **dict.fromkeys(("run", "pictures", "references.root"), (is_text_or_none, "a folder")),
        "targets": (is_text_or_none, "a CSV file with the columns picture and target"),
        "pattern": (lambda value: isinstance(value, str), "a name pattern, class-{index}.png"),
        "judges": (lambda value: isinstance(value, list), "a list of networks, [resnet50,densenet121]"),
        "metrics": (lambda value: isinstance(value, (str, list)), "all, or a list of names"),
        "evaluation.features": (lambda value: isinstance(value, list), "a list of networks, [resnet50]"),
        "references.source": (lambda value: value in SOURCES, f"one of {', '.join(SOURCES)}"),
    },
    "report": {
        **dict.fromkeys(("wandb", "offline", "progress"), FLAG),
        **dict.fromkeys(("out", "title"), (is_text_or_none, "a text")),
        "project": (lambda value: value is None or (isinstance(value, str) and value != ""), "a name"),
        "metrics": (lambda value: value is None or isinstance(value, (str, list)), "all, or a list of names"),
    },
    "audit": {
        "cache_dir": COMMON["cache_dir"],
        "run": (lambda value: isinstance(value, (str, list, type(None))), "a run folder, or a list of them"),
        "images": (is_text_or_none, "a folder of natural images"),
        "judges": (lambda value: isinstance(value, list), "a list of networks, [resnet50,densenet121]"),
    },
    "atlas": {
        **COMMON,
        **dict.fromkeys(("dry_run", "naming.words", "naming.download", "wandb", "offline"), FLAG),
        **dict.fromkeys(("images", "concept_folder"), (is_text_or_none, "a folder")),
        "sae": (is_text_or_none, "a file, or a folder of SAELens"),
        "pictures": (lambda value: isinstance(value, str), "a method of vital-visualize, or none"),
        "naming.labels": (lambda value: value == "auto" or isinstance(value, bool), "auto, true or false"),
        "overrides": (lambda value: isinstance(value, list), "a list, [references.count=20]"),
        "compare": (_is_pair_or_none, "two folders of atlases, [before,after]"),
        "project": (lambda value: isinstance(value, str) and value != "", "a name"),
    },
}
