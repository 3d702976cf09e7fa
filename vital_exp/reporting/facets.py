"""Facets on pages: the pictures of one unit stand together, and words say what share of its images each is of."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vital_exp.reporting.pages import format_number, in_words
from vital_exp.values import number_or_none

Result = Mapping[str, Any]  # a line of results.jsonl


@dataclass(frozen=True)
class UnitResults:
    """The results of one unit.

    Attributes:
        name: of the unit.
        title: its label, or its name in words.
        results: its facets, the clearest first, each with its variations; or a single picture of all of it.
        by_facet: whether they are of facets.
    """

    name: str
    title: str
    results: list[Result]
    by_facet: bool

    @property
    def words(self) -> str:
        """How many facets the unit has, and how many of them are here."""
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
    """Facets are numbered, the clearest first; equal places stay in their order."""
    return number_or_none(result.get("facet")) or 0.0, number_or_none(result.get("variation")) or 1.0


def _unit(result: Result) -> str:
    name = str(result["target"])
    return re.sub(r"_f\d+(_v\d+)?$", "", name) if is_facet(result) else name


def is_facet(result: Result) -> bool:
    """Whether a result is of a facet."""
    return number_or_none(result.get("facet")) is not None


def labelled(result: Result) -> str:
    """Return what a picture is of: its label, and which facet; the target in words where it has no label."""
    label = str(result.get("label") or "")
    return f"{label}, {facet_title(result)}" if label and is_facet(result) else label or in_words(str(result["target"]))


def facet_count(result: Result) -> int:
    """Return how many facets the unit of a result has; 0 where that is not recorded."""
    return int(number_or_none(result.get("facets")) or 0)


def facet_title(result: Result) -> str:
    """Return what a facet is called beside others of its unit: facet 0, variation 2."""
    variation = number_or_none(result.get("variation")) or 1
    return f"facet {format_number(result.get('facet'))}" + (f", variation {variation:.0f}" if variation > 1 else "")


def facet_words(result: Result) -> str:
    """Return a facet's share and coherence in words; empty where the result is not of a facet, or says neither."""
    if not is_facet(result):
        return ""
    share, coherence = (number_or_none(result.get(key)) for key in ("share", "coherence"))
    whose = "the class's images" if result.get("layer") is None else "the unit's images"
    parts = [] if share is None else [f"all of {whose}" if share == 1 else f"{100 * share:.0f}\u00a0% of {whose}"]
    parts += [] if coherence is None else [f"coherence {coherence:.2f}"]
    return ", ".join(parts)


def facet_members(result: Result) -> list[str]:
    """Return the names of a facet's members, the nearest to its centre first."""
    members = result.get("members")
    if not is_facet(result) or not isinstance(members, list):
        return []
    return [f"image {one}" if isinstance(one, int) else str(one) for one in members]
