"""The command that makes a unit's pictures again, as the unit's page shows it: paths are cut to their last part."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence

from vital_exp.atlases.request import AtlasRequest, Part
from vital_exp.reporting.share import PathNames

KEPT = re.compile(r"\+*(model[.=@]|seed=|steps=|trainer\.)")  # keys that vital-visualize has too
PLAIN = re.compile(r"[A-Za-z][\w.-]*")  # a value that needs no quotes
UNIT = "{unit}"  # in place of the number


def commands(asked: AtlasRequest, given: Sequence[str]) -> dict[str, str]:
    """Return the command of each layer's units, with ``{unit}`` for the number; none where no pictures are made.

    Args:
        asked: network, images, units.
        given: the arguments of vital-atlas.
    """
    if not asked.makes_pictures:
        return {}
    names, shared = PathNames(), [*_shared(asked, given)]
    found = {}
    for layer, part in asked.parts.items():
        words = [named(word, names) for word in (*shared, *_target(part), *map(str, asked.config.overrides))]
        found[layer] = f"vital-visualize {shlex.join(words)}".replace(shlex.quote(UNIT), UNIT)
        found[layer] = found[layer].replace(shlex.quote(f"target.index={UNIT}"), f"target.index={UNIT}")
    return found


def _shared(asked: AtlasRequest, given: Sequence[str]) -> Iterator[str]:
    """Yield what the commands of all layers have in common."""
    config = asked.config
    yield from (one for one in given if KEPT.match(one))
    if config.images:
        yield f"references.root={config.images}"
    if config.loader:
        yield f"references.loader={config.loader}"
    yield f"method={config.pictures}"
    if config.facets != "auto":
        yield f"references.facets={config.facets}"


def _target(part: Part) -> Iterator[str]:
    """Yield what names a unit of a layer."""
    yield f"target={part.kind}"
    if part.kind != "class":
        yield f"target.layer={part.layer}"
    yield f"target.index={UNIT}"
    yield from part.overrides


def named(word: str, names: PathNames) -> str:
    """Return ``key=value`` with the last part of each path in the value."""
    key, sign, value = word.partition("=")
    quote = value[:1] if value[:1] in ("'", '"') and value[-1:] == value[:1] else ""
    inner = value[len(quote) : len(value) - len(quote)]
    shown = names.in_value(inner)
    quote = "" if PLAIN.fullmatch(shown) else quote
    return f"{key}{sign}{quote}{shown}{quote}"
