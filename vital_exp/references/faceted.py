"""References by facet: of the images that drive a unit most, the images of one facet."""

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
    """Stores the facets of units between runs."""

    def read(self, target: Target, settings: Mapping[str, object]) -> list[Facet] | None:
        """Return the stored facets; None where there are none. Nothing is computed."""
        ...

    def write(self, target: Target, settings: Mapping[str, object], facets: Sequence[Facet]) -> None:
        """Store the facets of a unit."""
        ...


class FacetedReferences(References):
    """References by facet; a target without a facet has the references of its unit.

    Args:
        source: the source of the images.
        facets: the number of facets of each unit, or ``"auto"``.
        count: references of a facet, at most.
        seed: the seed of the clustering.
        embedding: maps images to the vectors that are clustered.
        store: keeps facets between runs; None: they are kept in memory alone.
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
        self._known: dict[Target, list[Facet]] = {}
        self._candidates: dict[Target, list[Candidate]] = {}

    def images(self, target: Target) -> Iterator[Tensor]:
        """Yield the images of a target's facet, the nearest to the facet's centre first; see :class:`References`.

        Raises:
            UsageError: the unit has no such facet.
        """
        if target.facet is None:
            yield from self.source.images(target)
            return
        candidates = self._competing(target.unit)
        for place in self.facet(target).members:
            yield candidates[place].load()

    def fingerprint(self, target: Target) -> str:
        """Return a hexadecimal hash that changes when the target's images change."""
        source = self.source.fingerprint(replace(target, facet=None))
        if target.facet is None:
            return source
        competition = self.source.competition(target.unit)
        return hashlib.sha256(f"{source} {competition} {self.facet(target).members}".encode()).hexdigest()

    def class_indices(self) -> list[int] | None:
        """Return the classes that have images, ascending; None when the images serve any target."""
        return self.source.class_indices()

    @property
    def class_names(self) -> ClassNames | None:
        """The class names that the source knows; None where the network's own names are used."""
        return self.source.class_names

    def largest_activation(self, target: Target) -> float | None:
        """Return the unit's largest activation among the mined images; None for references that are not mined."""
        return self.source.largest_activation(target)

    def facet(self, target: Target) -> Facet:
        """Return the facet of a target.

        Raises:
            UsageError: the target names no facet, or a number that its unit does not have.
        """
        facets = self.facets(target)
        if target.facet is None or target.facet >= len(facets):
            known = "one facet, 0" if len(facets) == 1 else f"{len(facets)} facets, 0 to {len(facets) - 1}"
            raise UsageError("targets", target.name, f"{target.unit.name} has {known}")
        return facets[target.facet]

    def facets(self, target: Target) -> list[Facet]:
        """Return the facets of a target's unit, the clearest first; the first call for a unit clusters its images.

        Raises:
            UsageError: too few images compete.
        """
        if (known := self.known(target)) is not None:
            return known
        unit = target.unit
        facets = self._cluster(unit)
        if self.store:
            self.store.write(unit, self._settings(unit), facets)
        self._known[unit] = facets
        return facets

    def known(self, target: Target) -> list[Facet] | None:
        """Return the facets of a target's unit from memory or the store; None otherwise. Nothing is computed."""
        unit = target.unit
        if unit not in self._known and self.store and (stored := self.store.read(unit, self._settings(unit))):
            self._known[unit] = stored
        return self._known.get(unit)

    def expanded(self, targets: Iterable[Target], find: bool = True) -> list[Target]:
        """Return the targets with each unit replaced by its facets, the clearest first; facets stay as they are.

        Args:
            targets: units or facets.
            find: whether facets that are not known are computed; if not, their units stay.

        Raises:
            UsageError: no such facet; too few images compete.
        """
        expanded: list[Target] = []
        for target in targets:
            facets = self.facets(target) if find else self.known(target)
            if facets is None:
                expanded.append(target)
            elif target.facet is not None:
                self.facet(target)  # raises if the unit has no such facet
                expanded.append(target)
            else:
                expanded += [replace(target, facet=number) for number in range(len(facets))]
        self.embeddings.forget()
        return list(dict.fromkeys(expanded))

    def found(self) -> dict[str, list[dict[str, object]]]:
        """Return the facets of all units that are known so far, by the units' names, ready for JSON."""
        return {unit.name: [asdict(facet) for facet in facets] for unit, facets in self._known.items()}

    def adopt(self, targets: Iterable[Target], found: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        """Take over the facets of these targets from another process's :meth:`found`."""
        for unit in dict.fromkeys(target.unit for target in targets):
            if unit.name in found:
                self._known[unit] = [_from_json(entry) for entry in found[unit.name]]

    def describe(self, target: Target) -> dict[str, Any]:
        """Return a facet's share and coherence, the names of its members, and the number of its unit's facets."""
        facet, candidates = self.facet(target), self._competing(target.unit)
        members = [candidates[place].name for place in facet.members]
        numbers = {"share": round(facet.share, 4), "coherence": round(facet.coherence, 4)}
        return {**numbers, "members": members, "facets": len(self.facets(target))}

    def _settings(self, unit: Target) -> dict[str, object]:
        clustering = {"facets": self.wanted, "count": self.count, "seed": self.seed}
        embedding = self.embeddings.embedding.identity(unit)
        return {**clustering, "embedding": embedding, **self.source.competition(unit)}

    def _competing(self, unit: Target) -> list[Candidate]:
        if unit not in self._candidates:
            self._candidates[unit] = self.source.candidates(unit)
        return self._candidates[unit]

    def _cluster(self, unit: Target) -> list[Facet]:
        places, embeddings = self._embedded(unit)
        competing = self._competing(unit)
        if self.wanted == AUTO and len(places) < 2 * LEAST_MEMBERS:
            text = f"{unit.name}: one facet, since {len(places)} images compete and two facets need {2 * LEAST_MEMBERS}"
            warnings.warn(text, ReferenceWarning, stacklevel=3)
        elif self.wanted != AUTO:
            check_enough(self.wanted, len(places), f"images of {unit.name} compete")
        strengths = [competing[place].strength for place in places]
        facets = find_facets(embeddings, self.wanted, self.count, self.seed, strengths)
        return [replace(facet, members=tuple(places[member] for member in facet.members)) for facet in facets]

    def _embedded(self, unit: Target) -> tuple[list[int], Tensor]:
        """Return the places of a unit's readable images, and their embeddings (n, D)."""
        embeddings, corrupt = self.embeddings.of(unit, self._competing(unit))
        if not embeddings:
            raise UsageError(KEY, self.wanted, f"none of the {len(corrupt)} images of {unit.name} can be read")
        if corrupt:
            shown = ", ".join(corrupt[:CORRUPT_SHOWN])
            text = f"{unit.name}: {len(corrupt)} corrupt among the images that compete: {shown}"
            warnings.warn(text, ReferenceWarning, stacklevel=4)
        return list(embeddings), torch.stack(list(embeddings.values()))


def main_facet(references: References, target: Target) -> Target:
    """Return the clearest facet of a unit where references are by facet, else the target itself."""
    return replace(target, facet=0) if isinstance(references, FacetedReferences) else target


def _from_json(entry: Mapping[str, Any]) -> Facet:
    return Facet(entry["share"], entry["coherence"], tuple(entry["members"]))


class FacetFiles:
    """Facets in a folder of the cache: one file for each unit and settings of the clustering."""

    def __init__(self, cache_dir: Path) -> None:
        self.folder = cache_dir / FOLDER

    def read(self, target: Target, settings: Mapping[str, object]) -> list[Facet] | None:
        """Return the stored facets; None where the file is missing or damaged."""
        try:
            content = json.loads(self._path(target, settings).read_text())
            return [_from_json(entry) for entry in content]
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, target: Target, settings: Mapping[str, object], facets: Sequence[Facet]) -> None:
        """Store the facets of a unit."""
        path = self._path(target, settings)
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            json.dump([asdict(facet) for facet in facets], file)

    def _path(self, target: Target, settings: Mapping[str, object]) -> Path:
        key = json.dumps([target.name, settings], sort_keys=True)
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()}.json"
