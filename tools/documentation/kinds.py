"""The kind of value that a configuration key takes.

It comes from the values that the code allows, the annotation of the class that reads the key, or the key's default.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

import vital_exp
from tools.documentation.yaml_comments import File, Key
from vital_exp.config_mistakes import VALUES
from vital_exp.config_tree import VISUALIZE

PACKAGE = Path(vital_exp.__file__).parent
# Classes that hold the keys below a key without _target_.
HOLDERS = {
    "model": "vital_exp.models.model_config.ModelConfig",
    "snapshots": "vital_exp.attacks.settings.Snapshots",
    "detector": "vital_exp.attacks.detector.DetectorTraining",
    "tuning": "vital_exp.attacks.fine_tuning.FineTuning",
}
UNKNOWN = "see its meaning"  # of a key whose default is null and that no other source describes
# Kinds of keys whose default is null or another key's value, where no other source describes them.
NULLS = {
    **dict.fromkeys(("checkpoint", "inception", "vocabulary", "concepts", "vectors", "sae", "index"), "a file or null"),
    **dict.fromkeys(("runs", "root"), "a folder, a list, or null"),
    **dict.fromkeys(("layer", "group", "name", "image", "label", "dataset", "unit"), "text or null"),
    **dict.fromkeys(("decoder", "decoder_bias", "activation"), "text or null"),
    **dict.fromkeys(("layers", "layer_weights", "circuits"), "a list or null"),
    "position": "`[row, column]`",
    "steer": "text or null",
    "refresh": "whole number, text, a list, or null",
    **dict.fromkeys(("steps", "kid_subset_size", "k", "patch.size", "references.patch.size"), "whole number or null"),
    **dict.fromkeys(("stem_weight", "scale"), "number or null"),
    "class": "whole number, text, or null",
    "embedding": "text, keys of the group `model`, or null",
    "loader": "`file.py:function` or null",
    "mean": "a file or null",
    "threshold": "number, text, or null",
    "size": "whole number, `[height, width]`, or null",
    "prompt": "text, or a list of texts",
    "count": "whole number",
    "facets": "whole number, or `auto`",
    "candidates": "whole number, or `auto`",
    "region": "one of `patch`, `image`, `window`",
    "window": "number, or `auto`",
    "enlarge": "true, false, or `auto`",
    "method": "an option of `relevance`",
    "download": "true or false",
    "variations": "whole number",
}
AUDIT = "vital_exp.attacks.settings.AuditSettings"
# Keys without a group, whose values the code checks under the key's own name.
TOP = ("mask", "pooling", "position", "relevance_method", "find_by", "list")
PLURALS = {"int": "whole numbers", "float": "numbers", "str": "texts"}
WORDS = {"bool": "true or false", "int": "whole number", "float": "number", "str": "text", "None": "null"}


def kind_of(key: Key, file: File, meaning: str) -> str:
    """Return the kind of a key's value in words: by checks in the code, or else its annotation, or else its default."""
    if key.part:
        return "part"
    options = allowed_values().get(key.name, ())
    if any(option in meaning for option in options):
        named = ", ".join(f"`{option}`" for option in options)
        return f"one of {named}" + (", null" if key.default == "null" else "")
    checked = VALUES.get(file.name if not file.group else VISUALIZE, {}).get(key.name)
    found = (checked and checked[1]) or _annotated(key, file) or _of_value(key.default)
    return found or NULLS.get(key.name) or NULLS.get(key.name.rpartition(".")[2]) or UNKNOWN


def _annotated(key: Key, file: File) -> str:
    """Return the kind of value by the annotation of the argument that takes it; empty where there is none."""
    place, _, name = key.name.rpartition(".")
    holder = HOLDERS.get(place) or (AUDIT if file.name == "audit" else "") or _targets(file.group, file.name).get(place)
    if not holder:
        return ""
    module, _, class_name = holder.rpartition(".")
    parameter = inspect.signature(getattr(import_module(module), class_name)).parameters.get(name)
    return _in_words(parameter.annotation) if parameter and isinstance(parameter.annotation, str) else ""


@cache
def _targets(group: str, name: str) -> dict[str, str]:
    """Return the classes that a file of the configuration builds, by the key that holds their arguments."""
    from vital_exp.config_tree import config_dir

    text = (config_dir() / group / f"{name}.yaml").read_text(encoding="utf-8")
    package = re.match(r"# @package (\S+)", text)
    place = package[1].replace("_global_", "") if package else group.replace("/", ".")
    found: dict[str, str] = {}

    def walk(node: object, here: str) -> None:
        if isinstance(node, dict):
            if node.get("_target_"):
                found[here] = node["_target_"]
            for key, child in node.items():
                walk(child, f"{here}.{key}" if here else str(key))

    walk(yaml.safe_load(text), place)
    return found


def _in_words(annotation: str) -> str:
    """Return ``"number or null"`` for ``"float | None"``; empty for an annotation that ``WORDS`` does not cover."""
    pieces = re.split(r"\s*\|\s*(?![^\[]*\])", annotation)
    words = []
    for piece in pieces:
        listed = re.fullmatch(r"(?:Sequence|list|tuple)\[(\w+)(?:, .*)?\]", piece)
        if piece in WORDS:
            words.append(WORDS[piece])
        elif listed and listed[1] in PLURALS:
            words.append(f"list of {PLURALS[listed[1]]}")
        else:
            return ""
    return " or ".join(words)


def _of_value(default: str) -> str:
    """Return the kind of a default value; empty for null and for the value of another key."""
    value = yaml.safe_load(default) if "${" not in default else None
    if isinstance(value, str) and re.fullmatch(r"[-\d.]+e[-\d]+", value):
        return "number"  # YAML reads 1e-8 as text, OmegaConf as a number
    named = {bool: "true or false", int: "whole number", float: "number", str: "text", list: "list", dict: "mapping"}
    return named.get(type(value), "")


@cache
def allowed_values() -> dict[str, tuple[str, ...]]:
    """Return the values that the code allows, by key: those of its calls of ``one_of("key", value, OPTIONS)``."""
    found: dict[str, tuple[str, ...]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if "one_of(" in text:
            for call in ast.walk(ast.parse(text)):
                if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "one_of" and len(call.args) == 3:
                    found |= _allowed(call, path)
    return found


def _allowed(call: ast.Call, path: Path) -> dict[str, tuple[str, ...]]:
    """Return the key and the values of one call, where both are constants of its module."""
    name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    constants: Mapping[str, Any] = vars(import_module(name))

    def value(node: ast.expr) -> Any:
        return eval(compile(ast.Expression(node), str(path), "eval"), dict(constants))

    try:
        key, options = value(call.args[0]), value(call.args[2])
    except (NameError, AttributeError):
        return {}  # known only at run time
    if "." not in key and key not in TOP:
        return {}  # an argument of a function, not a key
    return {key: tuple(str(option) for option in options)}
