"""Targets from what a person writes: selections of classes or units, and every spelling of one target."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from operator import index as exact_integer
from typing import cast

from vital_exp.errors import UsageError
from vital_exp.targets.class_names import ClassNames, as_integer
from vital_exp.targets.unit import DIRECTIONS, TOKENS, Target
from vital_exp.values import whole_number

_NUMBER = r"([0-9]{1,9})"
_RANGE = re.compile(rf"\s*{_NUMBER}\s*-\s*{_NUMBER}\s*")
_TOKENS = "|".join(TOKENS)
_ENDS = "".join(sorted({word[-1] for word in TOKENS}))  # letters that may stand before a facet or a variation
_VARIATION = re.compile(rf"(?<=[0-9{_ENDS}])_v([1-9][0-9]{{0,8}})$")
_FACET = re.compile(rf"(?:#|(?<=[0-9{_ENDS}])_f)([0-9]{{1,4}})$")
_CHANNEL = re.compile(rf"(.+):{_NUMBER}(?:@({_TOKENS}))?", re.DOTALL)
_POSITION = re.compile(rf"(.+):{_NUMBER}@\s*{_NUMBER}\s*,\s*{_NUMBER}\s*", re.DOTALL)
_SAFE_UNIT = re.compile(rf"({'|'.join(('channel', *DIRECTIONS))})-(.+)-{_NUMBER}(?:-({_TOKENS}))?")
_SAFE_NEURON = re.compile(rf"neuron-(.+)-{_NUMBER}-{_NUMBER}-{_NUMBER}")
_SAFE_CLASS = re.compile(rf"class-{_NUMBER}")

# The plural of each kind of direction, for messages.
NAMES = {"direction": "directions", "concept": "concepts", "sae": "features", "text": "prompts"}

_SPELLINGS = (
    'is not a target; write "class:207", "class:golden retriever", "layer4.2:1935" (a channel), '
    '"layer4.2:1935@7,7" (a position), "blocks.5:7@cls" (a token), "layer4.2:1935#0" (a facet) or a '
    'name of the run folder such as "channel-layer4.2-1935"'
)


def class_targets(
    index: int | str | Iterable[int | str],
    class_names: ClassNames,
    variations: int = 1,
    available: Sequence[int] | None = None,
) -> list[Target]:
    """Return the class targets that ``index`` selects, labelled, in its order and without duplicates.

    Args:
        index: a class number, a name, "0-999", "0-4,7,9-11", "all", or a list of these. Digits are always a number.
        class_names: the names of the network's classes.
        variations: the number of targets per class; targets of one class follow one another.
        available: the classes that "all" means, such as the classes with references; None: every class.

    Raises:
        UsageError: unknown or ambiguous name, number out of range, nothing selected, fewer than one variation.

    Examples:
        >>> from vital_exp.targets.class_names import ClassNames
        >>> from vital_exp.targets.selection import class_targets
        >>> names = ClassNames(["cat", "dog", "golden fish"])
        >>> [target.label for target in class_targets("0-1", names)]
        ['cat', 'dog']
        >>> [target.name for target in class_targets(["Golden-Fish", 0], names, variations=2)]
        ['class-2', 'class-2_v2', 'class-0', 'class-0_v2']
    """
    whole_number("target.variations", variations, 1, allowed="must be at least 1")
    items = [index] if isinstance(index, str) or not isinstance(index, Iterable) else list(index)
    classes = list(dict.fromkeys(number for item in items for number in _classes(item, class_names, available)))
    if not classes:
        raise UsageError("target.index", index, "selects no class")
    return [
        Target("class", number, variation=variation, label=class_names.label(number))
        for number in classes
        for variation in range(1, variations + 1)
    ]


def _classes(item: object, class_names: ClassNames, available: Sequence[int] | None) -> Iterable[int]:
    """Yield the classes of one item of a selection."""
    if isinstance(item, str):
        return _spelled_classes(item, class_names, available)
    try:
        number = exact_integer(item)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or isinstance(item, bool):
        allowed = 'a number, a name, "0-999", "all" or a list of these'
        raise UsageError("target.index", item, f"is not a class; give {allowed}")
    return [class_names.check(number)]


def _spelled_classes(text: str, class_names: ClassNames, available: Sequence[int] | None) -> Iterator[int]:
    """Yield the classes of "all", a name, or numbers, ranges and names with commas between them."""
    if text.strip().lower() == "all":
        everything = range(len(class_names)) if available is None else sorted(available)
        yield from (class_names.check(number) for number in everything)
        return
    # A name may contain a comma ("tench, Tinca tinca").
    parts = [text] if class_names.lookup(text) else text.split(",")
    for part in parts:
        yield from _span(part, class_names)


def unit_targets(
    kind: str,
    layer: str,
    index: int | str | Iterable[int | str],
    units: int,
    position: tuple[int, int] | None = None,
    variations: int = 1,
    tokens: str | None = None,
) -> list[Target]:
    """Return the targets in a hidden layer that ``index`` selects, in its order and without duplicates.

    Args:
        kind: ``"channel"``, ``"neuron"`` or one of ``DIRECTIONS``.
        layer: module name.
        index: a number, "0-63", "0-4,7", "all", or a list of these.
        units: the number of the layer's channels, or of the directions.
        position: (row, column) of a neuron.
        variations: the number of targets per unit; targets of one unit follow one another.
        tokens: one of ``TOKENS``; None for all positions.

    Raises:
        UsageError: not a number, a number out of range, nothing selected, fewer than one variation.

    Examples:
        >>> from vital_exp.targets.selection import unit_targets
        >>> [target.name for target in unit_targets("channel", "layer4.2", "0-2", units=64)]
        ['channel-layer4.2-0', 'channel-layer4.2-1', 'channel-layer4.2-2']
    """
    names = ClassNames.numbered(units)
    try:
        chosen = class_targets(index, names, variations)
    except UsageError as error:
        kinds = NAMES[kind] if kind in DIRECTIONS else f"channels of {layer}"
        problem = f'is not one of the {units} {kinds}, 0 to {units - 1}; "0-63", "all" and lists select several'
        raise error if error.key == "target.variations" else UsageError("target.index", error.value, problem) from None
    return [Target(kind, unit.index, layer, position, unit.variation, tokens=tokens) for unit in chosen]


def _span(text: str, class_names: ClassNames) -> Iterable[int]:
    """Return the classes of a number, a range "0-999" or a name."""
    if match := _RANGE.fullmatch(text):
        first, last = int(match[1]), int(match[2])
        if first > last:
            raise UsageError("target.index", text, f"is an empty range; did you mean {last}-{first}?")
        return range(class_names.check(first), class_names.check(last) + 1)
    return [_class_number(text, class_names, "target.index")]


def _class_number(text: str, class_names: ClassNames, key: str) -> int:
    """Return the class of a number or a name; digits are always a number, even if a class is called "7"."""
    number = as_integer(text)
    return class_names.find(text, key) if number is None else class_names.check(number, key)


def parse_target(spelling: str | Target, class_names: ClassNames | None) -> Target:
    """Return the target of any of its spellings; class targets carry their label.

    Args:
        spelling: "class:207", "class:golden retriever", "layer4.2:1935" (a channel), "layer4.2:1935@7,7" (a neuron),
            "blocks.5:7@cls" (a channel of the class token), a safe name of the run folder ("class-207",
            "channel-layer4.2-1935", "neuron-layer4.2-1935-7-7", "channel-blocks.5-7-cls"), any of these with "#1" or
            "_f1" for a facet and "_v2" for a variation at its end, or a Target, which passes through. A safe name holds
            "_" in place of any character of the layer's name except letters, digits, ".", "_" and "-", so that the
            target of such a safe name has another layer name.
        class_names: the names of the network's classes; None where they do not matter or do not exist: every class
            target then has the index 0.

    Raises:
        UsageError: the text is no such spelling, or the network does not have the class.

    Examples:
        >>> from vital_exp.targets.selection import parse_target
        >>> parse_target("layer4.2:1935@7,7", None).position
        (7, 7)
        >>> parse_target("channel-layer4.2-1935_v2", None).variation
        2
        >>> parse_target("layer4.2:1935#1", None).name
        'channel-layer4.2-1935_f1'
    """
    if isinstance(spelling, Target):
        return spelling
    if not isinstance(spelling, str):
        raise UsageError("targets", spelling, _SPELLINGS)
    text = spelling.strip()
    variation = _VARIATION.search(text)
    body, number = (text[: variation.start()], int(variation[1])) if variation else (text, 1)
    facet = None if _is_class_name(body, class_names) else _FACET.search(body)
    unit = body[: facet.start()] if facet else body
    target = _class_target(unit, number, class_names) or _layer_target(unit, number)
    if target is None:
        raise UsageError("targets", spelling, _SPELLINGS)
    return replace(target, facet=int(facet[1])) if facet else target


def _is_class_name(body: str, class_names: ClassNames | None) -> bool:
    """Whether all of "class:..." names a class: a name may end like a facet ("unit #2")."""
    return class_names is not None and body.startswith("class:") and bool(class_names.lookup(body[len("class:") :]))


def _class_target(body: str, variation: int, class_names: ClassNames | None) -> Target | None:
    """Return the target of "class:207", "class:name" or "class-207", None for another kind of spelling."""
    if class_names is None:
        return Target("class", 0) if body.startswith("class:") or _SAFE_CLASS.fullmatch(body) else None
    if body.startswith("class:"):
        index = _class_number(body.removeprefix("class:"), class_names, "targets")
    elif match := _SAFE_CLASS.fullmatch(body):
        index = class_names.check(int(match[1]), "targets")
    else:
        return None
    return Target("class", index, variation=variation, label=class_names.label(index))


def _layer_target(body: str, variation: int) -> Target | None:
    """Return the target of "layer:3", "layer:3@7,7" or a hidden unit's safe name, None for another spelling."""
    if match := _POSITION.fullmatch(body) or _SAFE_NEURON.fullmatch(body):
        layer, index, row, column = cast("tuple[str, str, str, str]", match.groups())
        return Target("neuron", int(index), layer, (int(row), int(column)), variation)
    if match := _CHANNEL.fullmatch(body):
        return Target("channel", int(match[2]), match[1], variation=variation, tokens=match[3])
    if match := _SAFE_UNIT.fullmatch(body):
        return Target(match[1], int(match[3]), match[2], variation=variation, tokens=match[4])
    return None
