"""Facets on pages: pictures of one unit stand together, each with the share of the unit's images in its facet."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vital_exp.reporting.pages import format_number
from vital_exp.targets.words import in_words
from vital_exp.values import number_or_none

Result = Mapping[str, Any]  # a line of results.jsonl


@dataclass(frozen=True)
class UnitResults:
    """The results of one unit.

    Attributes:
        name: the unit's name.
        title: the unit's label, or its name in words.
        results: a line of results.jsonl per facet (the clearest first) and variation; without facets, as they come.
        by_facet: whether the results are of facets.
    """

    name: str
    title: str
    results: list[Result]
    by_facet: bool

    @property
    def words(self) -> str:
        """The number of the unit's facets, and the number of those with a result where it is smaller."""
        here = len({result.get("facet") for result in self.results})
        total = max(here, *map(facet_count, self.results))
        words = "one facet" if total == 1 else f"{total} facets"
        return words if here == total else f"{here} of {words}"


def by_unit(results: Sequence[Result]) -> list[UnitResults]:
    """Return results unit by unit, in the order of the units' first results."""
    found: dict[str, list[Result]] = {}
    for result in results:
        found.setdefault(_unit(result), []).append(result)
    return [_together(name, own) for name, own in found.items()]


def _together(name: str, results: list[Result]) -> UnitResults:
    by_facet = is_facet(results[0])
    ordered = sorted(results, key=_order) if by_facet else results
    return UnitResults(name, str(results[0].get("label") or in_words(name)), ordered, by_facet)


def _order(result: Result) -> tuple[float, float]:
    """The number of the facet (0 is the clearest), then of the variation."""
    return number_or_none(result.get("facet")) or 0.0, number_or_none(result.get("variation")) or 1.0


def _unit(result: Result) -> str:
    name = str(result["target"])
    return re.sub(r"_f\d+(_v\d+)?$", "", name) if is_facet(result) else name


def is_facet(result: Result) -> bool:
    """Whether a result is of a facet."""
    return number_or_none(result.get("facet")) is not None


def labelled(result: Result) -> str:
    """Return a picture's label with its facet; without a label, its target in words."""
    label = str(result.get("label") or "")
    return f"{label}, {facet_title(result)}" if label and is_facet(result) else label or in_words(str(result["target"]))


def facet_count(result: Result) -> int:
    """Return the number of facets of a result's unit; 0 where it is not recorded."""
    return int(number_or_none(result.get("facets")) or 0)


def facet_title(result: Result) -> str:
    """Return the title of a facet among others of its unit: "facet 0, variation 2"."""
    variation = number_or_none(result.get("variation")) or 1
    return f"facet {format_number(result.get('facet'))}" + (f", variation {variation:.0f}" if variation > 1 else "")


def facet_words(result: Result) -> str:
    """Return a facet's share and coherence in words; empty without a facet, or where neither is recorded."""
    if not is_facet(result):
        return ""
    share, coherence = (number_or_none(result.get(key)) for key in ("share", "coherence"))
    whose = "the class's images" if result.get("layer") is None else "the unit's images"
    parts = [] if share is None else [f"all of {whose}" if share == 1 else f"{100 * share:.0f}\u00a0% of {whose}"]
    parts += [] if coherence is None else [f"coherence {coherence:.2f}"]
    return ", ".join(parts)


def facet_members(result: Result) -> list[str]:
    """Return the names of a facet's images, the nearest to its centre first."""
    members = result.get("members")
    if not is_facet(result) or not isinstance(members, list):
        return []
    return [f"image {one}" if isinstance(one, int) else str(one) for one in members]
