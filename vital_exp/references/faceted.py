"""References by facet: of the images that a unit answers to most, those of one of the things it answers to."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from vital_exp.errors import UsageError
from vital_exp.references.base import Candidate, Competing, References
from vital_exp.references.embeddings import Embedding, Embeddings
from vital_exp.references.facets import AUTO, KEY, LEAST_MEMBERS, Facet, check_enough, find_facets
from vital_exp.references.folder import ReferenceWarning
from vital_exp.targets.class_names import ClassNames
from vital_exp.targets.unit import Target
from vital_exp.whole_files import whole_file

FOLDER = "facets"  # in the cache
CORRUPT_SHOWN = 5


class FacetStore(Protocol):
    """Keeps the facets of units."""

    def read(self, target: Target, settings: Mapping[str, object]) -> list[Facet] | None:
        """Return what is kept; None for nothing. Nothing is computed."""
        ...

    def write(self, target: Target, settings: Mapping[str, object], facets: Sequence[Facet]) -> None:
        """Keep the facets of a unit."""
        ...


class FacetedReferences(References):
    """References of the facets of units; a target without a facet has those of its unit.

    Args:
        source: the images.
        facets: how many of each unit, or ``"auto"``.
        count: references of a facet, at most.
        seed: of the clustering.
        embedding: what images are clustered by.
        store: where facets are kept; None: in memory.
    """

    def __init__(
        self,
        source: Competing,
        facets: str | int,
        count: int,
        seed: int,
        embedding: Embedding,
        store: FacetStore | None = None,
    ) -> None:
        self.source, self.wanted, self.count, self.seed = source, facets, count, seed
        self.embeddings, self.store = Embeddings(embedding), store
        self._found: dict[Target, list[Facet]] = {}
        self._candidates: dict[Target, list[Candidate]] = {}

    def images(self, target: Target) -> Iterator[Tensor]:
        """Yield the images of a target's facet, the nearest to its centre first; see :class:`References`.

        Raises:
            UsageError: there is no such facet.
        """
        if target.facet is None:
            yield from self.source.images(target)
            return
        candidates = self._competing(target.unit)
        for place in self.facet(target).members:
            yield candidates[place].load()

    def fingerprint(self, target: Target) -> str:
        """Return a hash that changes when the images of the target do."""
        own = self.source.fingerprint(replace(target, facet=None))
        if target.facet is None:
            return own
        competition = self.source.competition(target.unit)
        return hashlib.sha256(f"{own} {competition} {self.facet(target).members}".encode()).hexdigest()

    def class_indices(self) -> list[int] | None:
        """Return the classes that have images, ascending; None when the images serve any target."""
        return self.source.class_indices()

    @property
    def class_names(self) -> ClassNames | None:
        """The source's names of classes, if it has such."""
        return self.source.class_names

    def largest_activation(self, target: Target) -> float | None:
        """Return the unit's largest activation by natural images, if the source knows it."""
        return self.source.largest_activation(target)

    def facet(self, target: Target) -> Facet:
        """Return the facet of a target.

        Raises:
            UsageError: the unit has fewer.
        """
        found = self.facets(target)
        if target.facet is None or target.facet >= len(found):
            has = "one facet, 0" if len(found) == 1 else f"{len(found)} facets, 0 to {len(found) - 1}"
            raise UsageError("targets", target.name, f"{target.unit.name} has {has}")
        return found[target.facet]

    def facets(self, target: Target) -> list[Facet]:
        """Return the facets of a target's unit, the clearest first; they are found when first asked for.

        Raises:
            UsageError: too few images compete.
        """
        if (known := self.known(target)) is not None:
            return known
        unit = target.unit
        found = self._find(unit)
        if self.store:
            self.store.write(unit, self._settings(unit), found)
        self._found[unit] = found
        return found

    def known(self, target: Target) -> list[Facet] | None:
        """Return the facets of a target's unit if they were found before; None otherwise. Nothing is computed."""
        unit = target.unit
        if unit not in self._found and self.store:
            kept = self.store.read(unit, self._settings(unit))
            if kept:
                self._found[unit] = kept
        return self._found.get(unit)

    def expanded(self, targets: Iterable[Target], find: bool = True) -> list[Target]:
        """Return each target's facets in place of it, the clearest first; a target that is a facet stays.

        Args:
            targets: units or facets.
            find: whether facets that are not known are found; else their units stay.

        Raises:
            UsageError: no such facet; too few images compete.
        """
        made: list[Target] = []
        for target in targets:
            found = self.facets(target) if find else self.known(target)
            if found is None:
                made.append(target)
            elif target.facet is not None:
                self.facet(target)
                made.append(target)
            else:
                made += [replace(target, facet=number) for number in range(len(found))]
        self.embeddings.forget()
        return list(dict.fromkeys(made))

    def found(self) -> dict[str, list[dict[str, object]]]:
        """Return the facets of all units that are known so far, by the units' names, ready for JSON."""
        return {unit.name: [asdict(facet) for facet in facets] for unit, facets in self._found.items()}

    def adopt(self, targets: Iterable[Target], found: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        """Take over what :meth:`found` returned elsewhere, for these targets."""
        for unit in dict.fromkeys(target.unit for target in targets):
            if unit.name in found:
                self._found[unit] = [_from_json(one) for one in found[unit.name]]

    def describe(self, target: Target) -> dict[str, Any]:
        """Return a facet's share of the strongest images, its coherence, its members' names, how many its unit has."""
        facet, candidates = self.facet(target), self._competing(target.unit)
        members = [candidates[place].name for place in facet.members]
        numbers = {"share": round(facet.share, 4), "coherence": round(facet.coherence, 4)}
        return {**numbers, "members": members, "facets": len(self.facets(target))}

    def _settings(self, unit: Target) -> dict[str, object]:
        own = {"facets": self.wanted, "count": self.count, "seed": self.seed}
        return {**own, "embedding": self.embeddings.embedding.identity(unit), **self.source.competition(unit)}

    def _competing(self, unit: Target) -> list[Candidate]:
        if unit not in self._candidates:
            self._candidates[unit] = self.source.candidates(unit)
        return self._candidates[unit]

    def _find(self, unit: Target) -> list[Facet]:
        places, embeddings = self._embedded(unit)
        competing = self._competing(unit)
        if self.wanted == AUTO and len(places) < 2 * LEAST_MEMBERS:
            text = f"{unit.name}: one facet, for {len(places)} images compete and two need {2 * LEAST_MEMBERS}"
            warnings.warn(text, ReferenceWarning, stacklevel=3)
        elif self.wanted != AUTO:
            check_enough(self.wanted, len(places), f"images of {unit.name} compete")
        found = find_facets(
            embeddings, self.wanted, self.count, self.seed, [competing[place].strength for place in places]
        )
        return [replace(facet, members=tuple(places[member] for member in facet.members)) for facet in found]

    def _embedded(self, unit: Target) -> tuple[list[int], Tensor]:
        """Return the places of the images of a unit that can be read, and their embeddings (n, D)."""
        found, corrupt = self.embeddings.of(unit, self._competing(unit))
        if not found:
            raise UsageError(KEY, self.wanted, f"none of the {len(corrupt)} images of {unit.name} can be read")
        if corrupt:
            shown = ", ".join(corrupt[:CORRUPT_SHOWN])
            text = f"{unit.name}: {len(corrupt)} corrupt among the images that compete: {shown}"
            warnings.warn(text, ReferenceWarning, stacklevel=4)
        return list(found), torch.stack(list(found.values()))


def main_facet(references: References, target: Target) -> Target:
    """Return the clearest facet of a unit, where references are by facet; else the target itself."""
    return replace(target, facet=0) if isinstance(references, FacetedReferences) else target


def _from_json(one: Mapping[str, Any]) -> Facet:
    return Facet(one["share"], one["coherence"], tuple(one["members"]))


class FacetFiles:
    """Facets in a folder of the cache, a file for each unit and all that its facets depend on."""

    def __init__(self, cache_dir: Path) -> None:
        self.folder = cache_dir / FOLDER

    def read(self, target: Target, settings: Mapping[str, object]) -> list[Facet] | None:
        """Return what is kept; None where there is nothing, or it is damaged."""
        try:
            content = json.loads(self._path(target, settings).read_text())
            return [_from_json(one) for one in content]
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, target: Target, settings: Mapping[str, object], facets: Sequence[Facet]) -> None:
        """Keep the facets of a unit."""
        path = self._path(target, settings)
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            json.dump([asdict(facet) for facet in facets], file)

    def _path(self, target: Target, settings: Mapping[str, object]) -> Path:
        key = json.dumps([target.name, settings], sort_keys=True)
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()}.json"
