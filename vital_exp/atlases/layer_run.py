"""The units of one layer: facets, pictures, images and measures, some units at a time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from vital_exp.atlases.measures import IMAGES, Clarities, Correspondence, strongest
from vital_exp.atlases.pictures import LayerPictures
from vital_exp.atlases.request import UNITS_AT_ONCE, AtlasRequest, Part
from vital_exp.atlases.store import DONE, FAILED, MINED, Entry, FacetRow, Store, UnitRow
from vital_exp.atlases.turns import FIRST, Claims, alone
from vital_exp.atlases.windows import Windows
from vital_exp.errors import UsageError
from vital_exp.images.output import read_picture, resized
from vital_exp.mining.index import Index
from vital_exp.models.network import VisionNetwork
from vital_exp.progress_bars import hidden
from vital_exp.references.faceted import FacetedReferences
from vital_exp.setup.request import Request
from vital_exp.targets.unit import Target
from vital_exp.visualization.ranks import Ranks
from vital_exp.visualization.run import collect_now_and_then

SECONDS_BETWEEN_LOOKS = 0.5  # at units that other jobs make

logger = logging.getLogger(__name__)


class LayerRun:
    """The units of one layer: facets, pictures, images and measures.

    Args:
        asked: network, images, units.
        part: the layer's units.
        store: the atlas's data.
        index: the mining index of the layer.
        windows: writes the images of the layer's units.
        ranks: the processes that share the pictures; rank 0 writes the rest.
    """

    def __init__(
        self, asked: AtlasRequest, part: Part, store: Store, index: Index, windows: Windows, ranks: Ranks
    ) -> None:
        self.asked, self.part, self.store, self.index, self.windows = asked, part, store, index, windows
        self.out, self.ranks = store.folder, ranks

    def run(
        self, judge: Callable[[], VisionNetwork | None], publish: Callable[[Store], None], wait: bool = True
    ) -> bool:
        """Make the units that are not done, some at a time, and no unit that another job makes meanwhile.

        Args:
            judge: returns the network that measures correspondence; None: it is not measured.
            publish: is called whenever some units are finished.
            wait: whether to wait for units that other jobs make, and to make those that they leave.

        Returns:
            Whether other jobs still make units of the layer.
        """
        self._busy: list[list[int]] = []
        waiting = self.ranks.broadcast(self._waiting(self.part.units, retry=not wait))
        if not waiting:
            return False
        self.pictures = LayerPictures(self.asked, self.part, self.out, self.index.path, self.ranks)
        self.clarities = Clarities(self.asked.network, self.part, self.out)
        self.correspondence = Correspondence(judge(), self.index, self.asked.folder, self.part)
        leads = self.ranks.rank == 0
        if leads:
            self.pictures.forget([unit for unit in self.part.refresh if unit in waiting])
        disable = hidden(self.asked.config.progress and leads)
        with tqdm(total=len(self.part.units), initial=len(self.part.units) - len(waiting), desc=self.part.layer,
                  unit="unit", disable=disable, dynamic_ncols=True) as bar:  # fmt: skip
            collected = time.monotonic()
            for units in self._taken(wait) if leads else self._of_rank_0():
                self._make(units)
                collected = collect_now_and_then(collected)
                bar.update(len(units))
                publish(self.store)
        self.pictures.close()
        if leads:
            with alone(self.out, f"redundancy {self.part.layer}"):  # the job that comes last writes that of all units
                self.store.update(self.part.layer, {"redundancy": dict(self.clarities.redundancies())})
        return bool(self._busy)

    def _waiting(self, units: Sequence[int], retry: bool) -> list[int]:
        """Return which of some units are to be made; those that failed where ``retry``, refreshed ones always."""
        statuses = self.store.statuses(self.part.layer)
        left = (MINED, FAILED, None) if retry else (MINED, None)
        return [unit for unit in units if statuses.get(unit) in left or unit in self.part.refresh]

    def _of_rank_0(self) -> Iterator[list[int]]:
        """Yield the units that rank 0 takes, some at a time."""
        while (units := self.ranks.broadcast(None)) is not None:
            yield units

    def _taken(self, wait: bool) -> Iterator[list[int]]:
        """Take units that are not done, some at a time, and yield them on every rank.

        Which units are made together does not depend on which are done, or on other jobs: pictures of one batch can
        depend on one another in their last bits.
        """
        claims = Claims(self.out, self.part.layer)
        left: list[list[int]] = [list(units) for units in _chunks(self.part.units, UNITS_AT_ONCE)]
        try:
            while left:
                self._busy = []
                for chunk in left:
                    units = self._claimed(claims, chunk)
                    if waiting := self._waiting(units, retry=not wait):
                        yield self.ranks.broadcast(waiting)
                    claims.give_back([*units, FIRST])
                    if len(units) < len(chunk):
                        self._busy.append([unit for unit in chunk if unit not in units])
                if not wait:
                    break
                if self._busy == left:
                    time.sleep(SECONDS_BETWEEN_LOOKS)
                left = self._busy
            self.ranks.broadcast(None)
        finally:
            claims.close()

    def _claimed(self, claims: Claims, chunk: Sequence[int]) -> list[int]:
        """Return which units of a chunk this job has taken.

        The first pictures of a layer settle the batch size of all. Until it is recorded one job makes pictures, the
        first that are to be made.
        """
        if self.asked.makes_pictures and not self.pictures.begun and (self._busy or not claims.take([FIRST])):
            return []
        return claims.take(chunk)

    def _make(self, units: Sequence[int]) -> None:
        """Make some units; where they cannot be made together, each by itself."""
        try:
            request = self.pictures.request(units)
        except UsageError as error:
            if len(units) > 1:
                for unit in units:
                    self._make([unit])
            else:
                self._fail(units[0], str(error))
            return
        results = self.pictures.make(request) if self.asked.makes_pictures else {}
        if self.ranks.rank > 0:
            return
        maps = self.windows.maps([(self.part.layer, unit) for unit in units])
        for unit in units:
            own = [target for target in request.targets if target.index == unit]
            try:
                self.store.write(self._entry(unit, own, request, results, maps))
            except UsageError as error:
                self._fail(unit, str(error))

    def _fail(self, unit: int, problem: str) -> None:
        if self.ranks.rank == 0:
            logger.warning("%s:%d failed: %s", self.part.layer, unit, problem)
            (row,) = self.store.units(self.part.layer, unit)
            self.store.write(Entry(replace(row, status=FAILED, error=problem)))

    def _entry(
        self, unit: int, targets: Sequence[Target], request: Request, results: dict[str, dict[str, Any]], maps: Any
    ) -> Entry:
        (row,) = self.store.units(self.part.layer, unit)
        facets = [self._facet(target, row, request, results.get(target.name)) for target in targets]
        made = [results[target.name] for target in targets if target.name in results]
        problems = [str(result["error"]) for result in made if result["status"] == "failed"]
        status = FAILED if problems and len(problems) == len(made) else DONE
        natural = strongest(self.index, self.asked.folder, self.part.layer, unit, IMAGES)
        pairs = zip(targets, facets, strict=True)
        looks = [self._corresponds(target, facet, request, natural) for target, facet in pairs]
        known = [value for value in looks if value is not None]
        row = replace(
            row,
            status=status,
            error=problems[0] if problems else None,
            coherence=facets[0].coherence if facets else None,
            correspondence=sum(known) / len(known) if known else None,
            **self.clarities.of(unit, natural),
        )
        images = self.windows.write(self.part.layer, unit, maps, _facets_of_images(targets, request))
        return Entry(row, facets, images)

    def _facet(self, target: Target, row: UnitRow, request: Request, result: dict[str, Any] | None) -> FacetRow:
        own = FacetRow(self.part.layer, target.index, target.facet or 0)
        if isinstance(request.references, FacetedReferences) and target.facet is not None:
            found = request.references.describe(target)
            own = replace(own, share=found["share"], coherence=found["coherence"], members=len(found["members"]))
        if result is None or result["status"] == "failed":
            return own
        picture = self.pictures.path / result["image"]
        masked = picture.with_name(f"{picture.stem}_masked.png")
        activation, most = result["activation"], row.maximum
        return replace(
            own,
            picture=picture.relative_to(self.out).as_posix(),
            masked=masked.relative_to(self.out).as_posix(),
            activation=activation,
            activation_ratio=activation / most if activation is not None and most and most > 0 else None,
            probability=self._probability(target, picture),
            seconds=result["seconds"],
        )

    @torch.no_grad()
    def _probability(self, target: Target, picture: Path) -> float | None:
        network = self.asked.network
        if target.kind != "class" or network.head.kind == "none":
            return None
        shown = resized(read_picture(picture)[None].to(network.device), network.preprocessing.size)
        logits = network.output.tensor(network.returned(shown), 1)
        return float(network.head.probabilities(logits)[0, target.index])

    def _corresponds(self, target: Target, facet: FacetRow, request: Request, natural: list[Any]) -> float | None:
        if facet.picture is None:
            return None
        own = list(request.references.images(target)) if target.facet is not None else natural
        return self.correspondence.of(target.index, self.out / facet.picture, own)


def _facets_of_images(targets: Sequence[Target], request: Request) -> dict[str, int]:
    """Return the facet of each image that is a member of one, by its path."""
    references = request.references
    if not isinstance(references, FacetedReferences):
        return {}
    return {
        str(name): target.facet
        for target in targets
        if target.facet is not None
        for name in references.describe(target)["members"]
    }


def _chunks(units: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(units), size):
        yield units[start : start + size]
