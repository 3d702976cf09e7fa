"""Checks of a network's keys that need no torch: numbers, files, the name of a factory, the keys of judges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vital_exp.config_tree import option_content
from vital_exp.errors import UsageError, nearest
from vital_exp.models.factories import check_spelling
from vital_exp.values import interval, numbers, side, sides
from vital_exp.weights_places import weights_file

LISTS = ("mean", "std")
FINITE = "a finite number"  # the allowed values, for messages


def check_network_numbers(model: Mapping[str, Any]) -> None:
    """Check the sizes, means and ranges of the group ``model``, as far as possible without the network.

    Raises:
        UsageError: the first value that is not allowed.
    """
    for key, check in (("size", sides), ("resize", side)):
        if model.get(key) is not None:
            check(f"model.{key}", model[key])
    if model.get("value_range") is not None:
        interval("model.value_range", model["value_range"])
    found = {key: numbers(f"model.{key}", model[key], each=FINITE) for key in LISTS if model.get(key) is not None}
    if "std" in found and min(found["std"]) <= 0:
        raise UsageError("model.std", list(found["std"]), "numbers above 0: pictures are divided by model.std")
    if len(found) == len(LISTS) and len(found["mean"]) != len(found["std"]):
        mean, std = (len(found[key]) for key in LISTS)
        raise UsageError("model.std", list(found["std"]), f"needs as many numbers as model.mean: {mean}, not {std}")


def check_network_files(model: Mapping[str, Any]) -> None:
    """Check that the files of a factory and of the weights exist; raises UsageError."""
    if model.get("source") == "python" and isinstance(model.get("factory"), str):
        check_spelling(model["factory"], "model.factory")
    if model.get("checkpoint"):
        weights_file(model["checkpoint"])


def check_judges(judges: Sequence[object], key: str) -> None:
    """Check that each judge is a name or keys of the group ``model``.

    Raises:
        UsageError: another type, or an unknown key.
    """
    for judge in judges:
        if isinstance(judge, str):
            continue
        if not isinstance(judge, Mapping):
            raise UsageError(key, judge, "a name, or the keys of the group model")
        known = list(option_content("model", "_keys"))
        for name in judge:
            if name not in known:
                near = nearest(str(name), known)
                hint = f" (did you mean {' or '.join(near)}?)" if near else ""
                raise UsageError(f"{key}.{name}", judge[name], f"no such key of a model{hint}")
