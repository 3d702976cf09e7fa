"""What of a network's keys can be checked without torch: numbers, files, the names of a factory and of judges' keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vital_exp.config_tree import option_content
from vital_exp.errors import UsageError, nearest
from vital_exp.models.factories import check_spelling
from vital_exp.values import interval, numbers, side, sides
from vital_exp.weights_places import weights_file

LISTS = ("mean", "std")
FINITE = "a finite number"  # what mistakes say is allowed


def check_network_numbers(model: Mapping[str, Any]) -> None:
    """Check the sizes, means and ranges of the group ``model``, as far as they do not depend on the network.

    Raises:
        UsageError: the first that is not allowed.
    """
    for key, check in (("size", sides), ("resize", side)):
        if model.get(key) is not None:
            check(f"model.{key}", model[key])
    if model.get("value_range") is not None:
        interval("model.value_range", model["value_range"])
    found = {key: numbers(f"model.{key}", model[key], each=FINITE) for key in LISTS if model.get(key) is not None}
    if "std" in found and min(found["std"]) <= 0:
        raise UsageError("model.std", list(found["std"]), "numbers above 0: pictures are divided by them")
    if len(found) == len(LISTS) and len(found["mean"]) != len(found["std"]):
        mean, std = (len(found[key]) for key in LISTS)
        raise UsageError("model.std", list(found["std"]), f"as many numbers as model.mean, which has {mean}, not {std}")


def check_network_files(model: Mapping[str, Any]) -> None:
    """Make sure that the file of a factory, and that of the weights, are there; raises UsageError."""
    if model.get("source") == "python" and isinstance(model.get("factory"), str):
        check_spelling(model["factory"], "model.factory")
    if model.get("checkpoint"):
        weights_file(model["checkpoint"])


def check_judges(judges: Sequence[object], key: str) -> None:
    """Check that each judge is a name or keys of the group ``model``.

    Raises:
        UsageError: anything else, or a key that there is not.
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
