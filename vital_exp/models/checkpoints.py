"""Find a network's weights in a checkpoint file, which may hold more, and load them strictly."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from vital_exp.errors import UsageError
from vital_exp.weights_files import read_tensors
from vital_exp.weights_places import KEY

PLACE_KEY = "model.checkpoint_key"
COUNTER = "num_batches_tracked"
# Words that name a copy of the trained network: averages over steps, teachers (DINO), the slow encoder of MoCo
# ("encoder_k") and BYOL ("target").
COPIES = frozenset(
    ("ema", "avg", "average", "averaged", "swa", "polyak", "shadow", "teacher", "momentum", "target", "slow", "k", "m")
)
ROOT = "."  # the value of model.checkpoint_key for the top level of the file
SHOWN = 3  # names shown when a checkpoint belongs to another network
PLACES_SHOWN = 8  # places shown of a file

logger = logging.getLogger(__name__)


def load_checkpoint(module: nn.Module, path: Path | str, key: str | int | None = None) -> None:
    """Load the weights of a .safetensors or weights-only torch file into ``module``, strictly.

    The file may hold more than the network. The weights are taken from the one place, a dotted path or prefix of any
    depth, under which every name of the network is found with its shape. Where several places fit, the network itself
    is taken, not an average or a teacher of it. The rest of the file is left out, and a line of the log names it. The
    file may lack a prefix that all names of the network share, such as a wrapper's. Weights are converted to the
    module's precision.

    Args:
        module: the network.
        path: the file.
        key: another place than this rule takes: ``"ema"``, ``"state_dict.model"``; ``"."``: the top level of the file.

    Raises:
        UsageError: no such file or place, a file that would execute code, the weights of another network, or several
            places that fit with different weights.
    """
    state = module.state_dict()
    search = _Search(
        {name: value for name, value in state.items() if isinstance(value, Tensor)}, read_tensors(path), path
    )
    place, others = search.choose(None if key is None else str(key))
    weights = search.weights(place)
    search.tell(place, others)
    module.load_state_dict({**state, **weights}, strict=True)


@dataclass(frozen=True)
class _Place:
    """A place in a file: names begin with ``prefix`` there where the network's own names begin with ``wrapper``."""

    prefix: str
    wrapper: str = ""

    @property
    def name(self) -> str:
        return self.prefix.rstrip(".") or ROOT

    def of(self, name: str) -> str:
        """Return the name in the file of a tensor that the network calls ``name``."""
        return self.prefix + name[len(self.wrapper) :]


@dataclass(frozen=True)
class _Search:
    """A search for the tensors ``own`` of a network among the tensors ``found`` in a file."""

    own: Mapping[str, Tensor]
    found: Mapping[str, Tensor]
    path: Path | str

    @cached_property
    def tied(self) -> list[tuple[str, ...]]:
        """The names that a file must hold, grouped by tensor: of tied weights a file may have one name alone."""
        groups: dict[object, list[str]] = {}
        for name, value in self.own.items():
            if not name.endswith(COUNTER):  # checkpoints from before torch 0.4 and exported networks lack counters
                alone = value.is_meta or not value.numel()
                groups.setdefault(name if alone else (value.data_ptr(), value.shape, value.stride()), []).append(name)
        return [tuple(names) for names in groups.values()]

    @cached_property
    def wrappers(self) -> list[str]:
        """The dotted prefixes that all names of the network share, the empty one first."""
        first, *others = [name.split(".") for name in self.own] or [[""]]
        shared = 0
        while shared < len(first) and all(name[: shared + 1] == first[: shared + 1] for name in others):
            shared += 1
        deep = max(name.count(".") for name in self.own) if self.own else 0
        return ["".join(f"{part}." for part in first[:length]) for length in range(min(shared, deep - 1) + 1)] or [""]

    def choose(self, key: str | None) -> tuple[_Place, list[_Place]]:
        """Return the network's place, and the places of its averages and teachers."""
        asked = None if key is None else self._asked(key)
        for wrapper in self.wrappers:
            counts = self._counts(wrapper, shapes=True)
            places = [_Place(prefix, wrapper) for prefix, count in counts.items() if count == len(self.tied)]
            if asked is not None:
                places = [place for place in places if any(place.prefix.startswith(one) for one in asked)]
                places = [place for place in places if place.prefix in asked] or places
            if places:
                return self._plain(places)
        raise self._other_network(key, asked)

    def _asked(self, key: str) -> list[str]:
        """Return the prefixes that a place named by the user can mean."""
        there = {prefix for name in self.found for prefix, _ in _splits(name)}
        wanted = "" if key == ROOT else f"{key.strip('.')}."
        asked = [wanted] if wanted in there else sorted(one for one in there if one.endswith(f".{wanted}"))
        if not asked:
            names = sorted((prefix.rstrip(".") for prefix in there if prefix), key=lambda name: (name.count("."), name))
            raise UsageError(
                PLACE_KEY, key, f"no such place in {self.path}, which holds {_some(names, PLACES_SHOWN)}", names
            )
        return asked

    def _counts(self, wrapper: str, shapes: bool) -> dict[str, int]:
        """Return how many of :attr:`tied` each prefix of the file has; with ``shapes`` their shapes must fit."""
        numbers = {name[len(wrapper) :]: (group, name) for group, names in enumerate(self.tied) for name in names}
        seen: dict[str, set[int]] = {}
        for full, value in self.found.items():
            for prefix, rest in _splits(full):
                group, name = numbers.get(rest, (-1, ""))
                if name and (not shapes or value.shape == self.own[name].shape):
                    seen.setdefault(prefix, set()).add(group)
        return {prefix: len(groups) for prefix, groups in seen.items()}

    def _plain(self, places: list[_Place]) -> tuple[_Place, list[_Place]]:
        """Return the place that is no average or teacher of the network, and the places that are."""
        shared = _shared([place.prefix.split(".") for place in places])
        plain = [place for place in places if not _is_copy(place.prefix.split(".")[shared:])] or places
        chosen = min(plain, key=lambda place: (place.prefix.count("."), place.prefix))
        if any(not self._same(chosen, place) for place in plain):
            names = [place.name for place in places]
            raise UsageError(KEY, self.path, f"several networks there fit; name one by {PLACE_KEY}: {', '.join(names)}")
        return chosen, [place for place in places if place not in plain]

    def _same(self, one: _Place, other: _Place) -> bool:
        pairs = ((self.found.get(one.of(name)), self.found.get(other.of(name))) for name in self.own)
        return all(a is b or (a is not None and b is not None and torch.equal(a, b)) for a, b in pairs)

    def weights(self, place: _Place) -> dict[str, Tensor]:
        """Return the network's tensors from a place, in the network's precision.

        Raises:
            UsageError: the place has unknown tensors in the network's modules, numbers of another kind, or different
                values for tied weights.
        """
        self._check_unknown(place)
        weights = {name: self.found[place.of(name)] for name in self.own if place.of(name) in self.found}
        for name, value in weights.items():
            self._check_kind(name, value)
        for names in self.tied:
            there = [name for name in names if name in weights]
            if any(not torch.equal(weights[there[0]], weights[name]) for name in there[1:]):
                problem = f"has different values for {' and '.join(there)}, which are one tensor in the network"
                raise UsageError(KEY, self.path, problem)
            weights |= {name: weights[there[0]] for name in names if name not in weights}
        return {name: value.to(self.own[name].dtype) for name, value in weights.items()}

    def _check_unknown(self, place: _Place) -> None:
        """Refuse unknown names inside the network's modules; unknown modules are no part of the network.

        An unknown tensor outside all modules is refused where the network itself has tensors outside its modules.
        """
        inner = self.wrappers[-1]
        rests = {name[len(inner) :] for name in self.own}
        modules = {rest.split(".")[0] for rest in rests if "." in rest}
        bare = len(modules) and any("." not in rest for rest in rests)
        prefix = place.of(inner)
        there = {full[len(prefix) :]: value for full, value in self.found.items() if full.startswith(prefix)}
        unknown = [
            name
            for name, value in there.items()
            if name not in rests and (name.split(".")[0] in modules if "." in name else bare and value.ndim)
        ]
        if unknown:
            unknown.sort(key=lambda name: name.endswith(COUNTER))
            raise UsageError(KEY, self.path, f"the weights of another network: has unknown {_some(unknown, SHOWN)}")

    def _check_kind(self, name: str, value: Tensor) -> None:
        own = self.own[name]
        same = own.is_floating_point() == value.is_floating_point() and own.is_complex() == value.is_complex()
        same = same or (value.is_floating_point() and not own.is_complex() and torch.equal(value, value.round()))
        scaled = value.is_floating_point() and value.element_size() == 1  # eight bits need a scale
        if not same or value.layout != torch.strided or (scaled and value.dtype != own.dtype):
            kinds = f"{_kind(value)} in {name} where the network has {_kind(own)}"
            raise UsageError(KEY, self.path, f"holds {kinds}: quantised or packed weights cannot be loaded")

    def _other_network(self, key: str | None, asked: Sequence[str] | None) -> UsageError:
        """Return the error of a file that lacks the network: the differences at the place that has most of it."""
        counts = {
            _Place(prefix, wrapper): count
            for wrapper in self.wrappers
            for prefix, count in self._counts(wrapper, shapes=False).items()
            if asked is None or any(prefix.startswith(one) for one in asked)
        }
        best = max(
            counts,
            key=lambda place: (counts[place], -_is_copy(place.prefix.split(".")), -len(place.prefix)),
            default=None,
        )
        place = best or _Place(asked[0] if asked else _common_prefix(self.found))
        where = "" if not place.prefix else f" (under {place.name})"
        problem = f"the weights of another network{where}: {'; '.join(self._differences(place))}"
        return UsageError(KEY, self.path, problem) if key is None else UsageError(PLACE_KEY, key, problem)

    def _differences(self, place: _Place) -> Iterator[str]:
        there = {
            full[len(place.prefix) :]: value for full, value in self.found.items() if full.startswith(place.prefix)
        }
        rests = {name[len(place.wrapper) :]: value for name, value in self.own.items()}
        lacking = [names[0] for names in self.tied if not any(place.of(name) in self.found for name in names)]
        unknown = sorted((name for name in there if name not in rests), key=lambda name: name.endswith(COUNTER))
        shapes = [
            f"{name} {tuple(there[name].shape)} instead of {tuple(value.shape)}"
            for name, value in rests.items()
            if name in there and there[name].shape != value.shape
        ]
        for what, names in (("lacks", lacking), ("has unknown", unknown), ("has", shapes)):
            if names:
                yield f"{what} {_some(names, SHOWN)}"

    def tell(self, place: _Place, others: Sequence[_Place]) -> None:
        """Name in one line of the log the parts of the file that were left out, if any."""
        used = {place.of(name) for name in self.own}
        above = {prefix for name in used for prefix, _ in _splits(name)}
        beside: dict[str, None] = {}
        for full in self.found:
            if full not in used and not any(full.startswith(other.prefix) for other in others):
                beside[next((prefix.rstrip(".") for prefix, _ in _splits(full) if prefix not in above), full)] = None
        if not beside and not others:
            return
        parts = [f"the network is at {place.name}"]
        if others:
            names = ", ".join(other.name for other in others)
            parts.append(f"copies of it at {names} ({PLACE_KEY}={others[0].name} takes that one)")
        parts += [f"left out: {_some(list(beside), PLACES_SHOWN)}"] if beside else []
        logger.warning("%s=%s: %s", KEY, self.path, "; ".join(parts))


def _splits(name: str) -> Iterator[tuple[str, str]]:
    """Yield a dotted name cut in two: before its first letter, and after each dot."""
    yield "", name
    for dot in re.finditer(r"\.", name):
        yield name[: dot.end()], name[dot.end() :]


def _shared(names: Sequence[Sequence[str]]) -> int:
    """Return how many first parts the names share; 0 where they do not differ."""
    return next((i for i, parts in enumerate(zip(*names, strict=False)) if len(set(parts)) > 1), 0)


def _is_copy(parts: Sequence[str]) -> bool:
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", " ".join(parts).replace("_", " "))
    return any(word.lower() in COPIES for word in words)


def _common_prefix(found: Mapping[str, Tensor]) -> str:
    """Return the dotted prefix that all names of a file share."""
    names = [name.split(".") for name in found]
    return "".join(f"{part}." for part in names[0][: _shared(names)])


def _kind(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.") if value.layout == torch.strided else str(value.layout)


def _some(names: Sequence[str], count: int) -> str:
    return f"{', '.join(names[:count])}{' ...' if len(names) > count else ''}"
