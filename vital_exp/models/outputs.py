"""Which of the tensors that a network returns is read as its output: the logits where there are any."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from numbers import Number

from torch import Tensor, nn

from vital_exp.errors import UsageError

KEY = "model.output"
# An entry of this name is taken as the logits.
LOGITS = "logits"
# Names of entries (N, D) that are not logits: embeddings, as Hugging Face, timm and CLIP call them, and losses.
NO_LOGITS = frozenset({
    *("loss", "pooler_output", "features", "feature", "embedding", "embeddings", "embeds", "image_embeds"),
    *("image_features", "hidden_states", "last_hidden_state", "attentions", "pre_logits"),
})  # fmt: skip
# Classifiers that only help in training have names that begin so.
AUXILIARY = "aux"
ONE = "a tensor"  # in messages, for a network that returns no container
NAMED = 8  # entries named in a message
DEPTH = 6  # nested containers that are searched for tensors


@dataclass(frozen=True)
class Output:
    """Which of the tensors that a network returns is read.

    Attributes:
        key: the tensor's entry, such as ``"logits"``, ``"1"`` or ``"heads.colour"``; ``""``: the network returns the
            tensor itself; None: the rule of :func:`logits_key` chooses at each pass.
        classes: the number of logits of each picture; None: the tensor is not logits and is read in its own shape.
        returns: what the network returns, in words, for messages.
    """

    key: str | None = None
    classes: int | None = None
    returns: str = ""

    @property
    def is_there(self) -> bool:
        """Whether the network returns a tensor that can be read; True where that is unknown."""
        return self.key is not None or not self.returns

    @property
    def without_classes(self) -> str:
        """For messages: what the network returns in place of logits (N, classes); empty where that is unknown."""
        if not self.returns:
            return ""
        several = ", and model.output=key says which entry has them" if self.key else ""
        return f" (N, classes) among what it returns ({self.returns}){several}"

    def entry(self, returned: object, count: int) -> Tensor:
        """Return the tensor that is read, in the shape in which the network returns it for ``count`` pictures.

        Raises:
            UsageError: the network returns no such tensor.
        """
        if isinstance(returned, Tensor) and not self.key:
            return returned
        key = found_key(returned, count) if self.key is None else self.key
        found = None if key is None else value_at(returned, key)
        if isinstance(found, Tensor):
            return found
        missing = "no tensor with a row for each picture" if key is None else f"no tensor at {key} in this pass"
        raise UsageError(KEY, self.key, f"{missing}: the network returns {described(returned, count)}")

    def shaped(self, entry: Tensor, count: int) -> Tensor:
        """Return an entry as (N, classes) where it holds logits, else as it is.

        Raises:
            UsageError: it holds another number of logits than at the network's first pass.
        """
        classes = self.classes if self.key is not None else row_width(entry, count)
        if classes is None or tuple(entry.shape) == (count, classes):
            return entry
        if entry.numel() != count * classes:
            wanted = f"needs ({count}, {classes}) logits for {count} pictures; the network returns {tuple(entry.shape)}"
            raise UsageError(KEY, self.key or "", wanted)
        return entry.reshape(count, classes)

    def tensor(self, returned: object, count: int) -> Tensor:
        """Return the logits (N, classes) of ``count`` pictures, or another output in its own shape.

        Raises:
            UsageError: the network returns no tensor, or another one than at its first pass.
        """
        return self.shaped(self.entry(returned, count), count)


def settled(
    returned: object, count: int, asked: str | None = None, wanted: int | None = None, features: bool = False
) -> Output:
    """Return which tensor is read from now on, by what a network returned for ``count`` pictures.

    Args:
        returned: what the network returned.
        count: number of pictures.
        asked: the key of the entry to read; None: the logits by the rule of :func:`logits_key`, else the first tensor.
        wanted: the expected number of classes; None: unknown.
        features: whether the network is known to have no classes.

    Raises:
        UsageError: no entry has the name ``asked``, or the entry has no row of numbers for each picture.
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
    """Return the full key and the tensor of the entry that a user named."""
    if isinstance(returned, Tensor):
        raise UsageError(KEY, asked, f"the network returns one tensor, {returns}: leave the key out")
    inside = {f"{asked}.{name}": tensor for name, tensor in tensors(value_at(returned, asked))}
    found = {key.removesuffix("."): tensor for key, tensor in inside.items()}
    if len(found) != 1:
        known = [name for name, _ in tensors(returned)]
        raise UsageError(KEY, asked, f"does not name one tensor; the network returns {returns}", known)
    (entry,) = found.items()
    if not entry[1].is_floating_point() or not entry[1].ndim or entry[1].shape[0] != count:
        shape = _shape(entry[1], count)
        raise UsageError(KEY, asked, f"has no numbers for each picture: {shape} {entry[1].dtype} of {returns}")
    return entry


def logits_key(returned: object, count: int, wanted: int | None = None) -> str | None:
    """Return the key of the logits of ``count`` pictures; None where the network returns none.

    An entry called ``logits`` is taken. Else the first tensor is taken that has one row of numbers for each picture,
    (N, classes) with any further sides of 1, and whose name is not in :data:`NO_LOGITS`. A tensor with ``wanted``
    numbers in a row goes before the others; names that begin with ``aux`` go behind, and so do tensors (N,).
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
    """Return all tensors that may be logits for ``count`` pictures, by their keys."""
    found = _with_rows(returned, count)
    return {
        key: tensor
        for key, tensor in found
        if row_width(tensor, count) is not None and not NO_LOGITS.intersection(key.split("."))
    }


def doubtful(returned: object, count: int, output: Output, wanted: int | None) -> list[str]:
    """Return the keys of other entries that may be the logits too; none where the choice was clear."""
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
    """Return the number of values that a tensor has for each picture, if they form one row; else None.

    In a row at most one side is longer than 1: (N, K), (N, 1, K) and (N, K, 1, 1) have K values, (N,) has 1; (N, T, D)
    and (N, C, H, W) have no rows.
    """
    if tensor.ndim == 0 or tensor.shape[0] != count or not tensor.is_floating_point():
        return None
    sides = [side for side in tensor.shape[1:] if side != 1]
    if len(sides) > 1 or 0 in sides:
        return None
    return sides[0] if sides else 1


def _with_rows(returned: object, count: int) -> list[tuple[str, Tensor]]:
    """Return key and tensor of the floating-point tensors with one entry per picture; none of a detector's results."""
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
    """Yield key and tensor of all tensors in what a network returns, in order; the key of a bare tensor is ``""``."""
    if isinstance(returned, Tensor):
        yield "", returned
        return
    if depth == 0:
        return
    for name, part in parts(returned).items():
        for inner, tensor in tensors(part, depth - 1):
            yield f"{name}.{inner}" if inner else name, tensor


def parts(value: object) -> dict[str, object]:
    """Return by name what a mapping, a dataclass, a (named) tuple, a list or another object holds.

    A generator counts as empty: to look into it would run it.
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
    """Return the value at a key, which joins names or numbers of entries by dots; None where there is none."""
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
    """Return in words what a network returned: ``logits (N, 10), features (N, 512)``."""
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
