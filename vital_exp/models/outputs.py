"""What a network returns, and which of it is read as its output: the logits where there are any."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from numbers import Number

from torch import Tensor, nn

from vital_exp.errors import UsageError

KEY = "model.output"
# The name that marks an entry as the logits, and is believed.
LOGITS = "logits"
# Names of entries that are (N, D) and no logits: what Hugging Face, timm and CLIP call features, and losses.
NO_LOGITS = frozenset({
    *("loss", "pooler_output", "features", "feature", "embedding", "embeddings", "embeds", "image_embeds"),
    *("image_features", "hidden_states", "last_hidden_state", "attentions", "pre_logits"),
})  # fmt: skip
# The beginning of the names of classifiers that only help in training.
AUXILIARY = "aux"
# What is returned where it is no container, in words.
ONE = "a tensor"
# Entries named in a message.
NAMED = 8
# Containers inside containers that are looked into.
DEPTH = 6


@dataclass(frozen=True)
class Output:
    """Which tensor of what a network returns is read.

    Attributes:
        key: where it is, such as ``"logits"``, ``"1"`` or ``"heads.colour"``; ``""``: the network returns the tensor
            itself; None: the rule of :func:`logits_key`, at each pass anew.
        classes: how many logits it holds for each picture; None: it is no logits and is read in its own shape.
        returns: what the network returns, in words.
    """

    key: str | None = None
    classes: int | None = None
    returns: str = ""

    @property
    def is_there(self) -> bool:
        """Whether the network returns a tensor that can be read, as far as is known."""
        return self.key is not None or not self.returns

    @property
    def without_classes(self) -> str:
        """What is returned in place of logits (N, classes), and which key chooses; empty where that is not known."""
        if not self.returns:
            return ""
        several = ", and model.output=key says which entry has them" if self.key else ""
        return f" (N, classes) among what it returns ({self.returns}){several}"

    def entry(self, returned: object, count: int) -> Tensor:
        """Return the tensor as the network returns it for ``count`` pictures.

        Raises:
            UsageError: there is none.
        """
        if isinstance(returned, Tensor) and not self.key:
            return returned
        key = found_key(returned, count) if self.key is None else self.key
        found = None if key is None else value_at(returned, key)
        if isinstance(found, Tensor):
            return found
        missing = "no tensor with a row for each picture" if key is None else f"no tensor at {key} this time"
        raise UsageError(KEY, self.key, f"{missing}: the network returns {described(returned, count)}")

    def shaped(self, entry: Tensor, count: int) -> Tensor:
        """Return an entry as (N, classes) where it holds logits, else as it is.

        Raises:
            UsageError: it holds another number of logits than the network had at first.
        """
        classes = self.classes if self.key is not None else row_width(entry, count)
        if classes is None or tuple(entry.shape) == (count, classes):
            return entry
        if entry.numel() != count * classes:
            wanted = f"({count}, {classes}) logits for {count} pictures, and the network returns {tuple(entry.shape)}"
            raise UsageError(KEY, self.key or "", wanted)
        return entry.reshape(count, classes)

    def tensor(self, returned: object, count: int) -> Tensor:
        """Return the logits (N, classes) of ``count`` pictures, or another output in its own shape.

        Raises:
            UsageError: the network returns no tensor, or another one than at first.
        """
        return self.shaped(self.entry(returned, count), count)


def settled(
    returned: object, count: int, asked: str | None = None, wanted: int | None = None, features: bool = False
) -> Output:
    """Return which tensor is read from now on, by what a network returned for ``count`` pictures.

    Args:
        returned: by the network.
        count: of pictures.
        asked: the key of the entry to read; None: the logits by the rule of :func:`logits_key`, else the first tensor.
        wanted: how many classes there should be; None where nobody knows.
        features: whether the network is known to have no classes.

    Raises:
        UsageError: no entry of that name, or one that has no row of numbers for each picture.
    """
    returns = described(returned, count)
    if asked is not None:
        entry = _asked(returned, count, asked, returns)
        return Output(entry[0], row_width(entry[1], count), returns)
    key = None if features else logits_key(returned, count, wanted)
    if key is not None:
        entry_at = value_at(returned, key)
        assert isinstance(entry_at, Tensor)
        return Output(key, row_width(entry_at, count), returns)
    return Output(found_key(returned, count), None, returns)


def _asked(returned: object, count: int, asked: str, returns: str) -> tuple[str, Tensor]:
    """The entry that a user named, and its whole key."""
    if isinstance(returned, Tensor):
        raise UsageError(KEY, asked, f"the network returns one tensor, {returns}: leave the key out")
    inside = {f"{asked}.{name}": tensor for name, tensor in tensors(value_at(returned, asked))}
    found = {key.removesuffix("."): tensor for key, tensor in inside.items()}
    if len(found) != 1:
        known = [name for name, _ in tensors(returned)]
        raise UsageError(KEY, asked, f"no tensor of what the network returns: {returns}", known)
    (entry,) = found.items()
    if not entry[1].is_floating_point() or not entry[1].ndim or entry[1].shape[0] != count:
        shape = _shape(entry[1], count)
        raise UsageError(KEY, asked, f"has no numbers for each picture: {shape} {entry[1].dtype} of {returns}")
    return entry


def logits_key(returned: object, count: int, wanted: int | None = None) -> str | None:
    """Return where the logits of ``count`` pictures are; None where the network returns none.

    An entry called ``logits`` is believed. Else it is the first tensor with one row of numbers for each picture
    ((N, classes), other sides of 1 do not matter) whose name does not say features or loss; as many numbers as
    ``wanted`` count before the order, (N,) and names that begin with ``aux`` come last.
    """
    found = _with_rows(returned, count)
    named = [key for key, _ in found if key.rpartition(".")[2] == LOGITS]
    if named:
        first = value_at(returned, named[0])
        return named[0] if isinstance(first, Tensor) and row_width(first, count) else None
    candidates = logits_candidates(returned, count)

    def rank(key: str) -> tuple[bool, bool, bool]:
        tensor = candidates[key]
        known = wanted is not None and row_width(tensor, count) == wanted
        return not known, _is_auxiliary(key), tensor.ndim < 2

    return min(candidates, key=rank, default=None)


def logits_candidates(returned: object, count: int) -> dict[str, Tensor]:
    """Return all tensors that may be logits, by their keys."""
    found = _with_rows(returned, count)
    return {
        key: tensor
        for key, tensor in found
        if row_width(tensor, count) is not None and not NO_LOGITS.intersection(key.split("."))
    }


def doubtful(returned: object, count: int, output: Output, wanted: int | None) -> list[str]:
    """Return the keys that might as well be the logits as the one that was chosen; none where the choice is clear."""
    if not output.key or output.key.rpartition(".")[2] == LOGITS or output.classes in (None, wanted):
        return []
    own = logits_candidates(returned, count)
    return [key for key, one in own.items() if key != output.key and one.ndim >= 2 and not _is_auxiliary(key)]


def _is_auxiliary(key: str) -> bool:
    return key.rpartition(".")[2].lower().startswith(AUXILIARY)


def found_key(returned: object, count: int) -> str | None:
    """Return the key of the logits, else of the first tensor with a row for each picture; None where there is none."""
    key = logits_key(returned, count)
    return key if key is not None else next((name for name, _ in _with_rows(returned, count)), None)


def row_width(tensor: Tensor, count: int) -> int | None:
    """Return how many numbers a tensor has for each picture if these are one row, at most one side above 1; else None.

    (N, K), (N, 1, K) and (N, K, 1, 1) have K, (N,) has 1; (N, T, D) and (N, C, H, W) are no rows.
    """
    if tensor.ndim == 0 or tensor.shape[0] != count or not tensor.is_floating_point():
        return None
    sides = [side for side in tensor.shape[1:] if side != 1]
    if len(sides) > 1 or 0 in sides:
        return None
    return sides[0] if sides else 1


def _with_rows(returned: object, count: int) -> list[tuple[str, Tensor]]:
    """The floating-point tensors with one entry for each picture, by their keys; a list of one result each has none."""
    if _one_each(returned, count):
        return []
    return [
        (key, tensor)
        for key, tensor in tensors(returned)
        if tensor.is_floating_point() and tensor.ndim and tensor.shape[0] == count
    ]


def _one_each(returned: object, count: int) -> bool:
    """Whether a network returns a list of one result for each picture, as detectors do."""
    if not isinstance(returned, (list, tuple)) or hasattr(returned, "_fields") or len(returned) != count:
        return False
    return all(not isinstance(one, (Tensor, list, tuple)) and parts(one) for one in returned)


def tensors(returned: object, depth: int = DEPTH) -> Iterator[tuple[str, Tensor]]:
    """Yield all tensors inside of what a network returns with their keys, ``""`` for the whole, in its order."""
    if isinstance(returned, Tensor):
        yield "", returned
        return
    if depth == 0:
        return
    for name, part in parts(returned).items():
        for inner, tensor in tensors(part, depth - 1):
            yield f"{name}.{inner}" if inner else name, tensor


def parts(value: object) -> dict[str, object]:
    """Return what a container holds by name: of a mapping, a dataclass, a (named) tuple, a list, an object.

    Nothing is taken out of a generator: that would run it.
    """
    if isinstance(value, Mapping):
        return {str(name): part for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        names = getattr(value, "_fields", None) or range(len(value))
        return {str(name): part for name, part in zip(names, value, strict=True)}
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, (Tensor, nn.Module, type, str, bytes, Number)) or callable(value):
        return {}
    found = {name: part for name, part in getattr(value, "__dict__", {}).items() if not name.startswith("_")}
    logits = getattr(value, LOGITS, None)  # may be a property
    return {LOGITS: logits, **found} if isinstance(logits, Tensor) else found


def value_at(returned: object, key: str) -> object:
    """Return what is at a key, by names or places; None where there is nothing."""
    value, rest = returned, key
    while rest:
        inside = parts(value)
        fitting = [name for name in inside if rest == name or rest.startswith(f"{name}.")]
        if fitting:
            name = max(fitting, key=len)  # a name may hold a dot itself
            value, rest = inside[name], rest[len(name) + 1 :]
            continue
        place, _, rest = rest.partition(".")
        if not place.isdecimal() or int(place) >= len(inside):
            return None
        value = list(inside.values())[int(place)]
    return value


def described(returned: object, count: int) -> str:
    """Return what a network returned in words: ``logits (N, 10), features (N, 512)``."""
    if isinstance(returned, Tensor):
        return f"{ONE} {_shape(returned, count)}"
    each = _one_each(returned, count)
    found = list(tensors(returned[0] if each and isinstance(returned, (list, tuple)) else returned))
    if not found:
        return "None" if returned is None else f"a {type(returned).__name__} without tensors"
    shown = [f"{key} {_shape(tensor, -1 if each else count)}" for key, tensor in found[:NAMED]]
    more = [f"{len(found) - NAMED} more"] if len(found) > NAMED else []
    return ("a list of one result for each picture: " if each else "") + ", ".join([*shown, *more])


def _shape(tensor: Tensor, count: int) -> str:
    sides = ["N" if place == 0 and side == count else str(side) for place, side in enumerate(tensor.shape)]
    return f"({', '.join(sides)}{',' if len(sides) == 1 else ''})"
