"""The atlas of a network: mined in one pass, then written unit by unit; an interrupted one goes on.

Layers that are added later are mined by themselves, into a folder of their own.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from vital_exp.atlases.edges import find_edges
from vital_exp.atlases.measures import IMAGES, Clarities, Correspondence, Labels, mined_row, statistics, strongest
from vital_exp.atlases.neighbours import neighbour_rows
from vital_exp.atlases.pictures import LayerPictures
from vital_exp.atlases.places import method_of, places
from vital_exp.atlases.profiles import UNITS_AT_ONCE as BLOCK
from vital_exp.atlases.profiles import Profile, ProfileWriter
from vital_exp.atlases.request import AUTO, UNITS_AT_ONCE, AtlasRequest, Part
from vital_exp.atlases.site import write_site
from vital_exp.atlases.store import DONE, FAILED, KEY, MINED, Entry, FacetRow, LayerRow, Store, UnitRow
from vital_exp.atlases.trust import circuit_targets, linked, make_circuits
from vital_exp.atlases.windows import Windows
from vital_exp.errors import UsageError
from vital_exp.evaluation.score import NotComputed
from vital_exp.images.output import read_picture, resized
from vital_exp.mining.index import Index
from vital_exp.mining.meta import describe_images, images_difference, network_difference
from vital_exp.mining.mine import Mining
from vital_exp.mining.patches import grid
from vital_exp.models.identity import identity_of
from vital_exp.models.layers import unit_shapes
from vital_exp.models.network import VisionNetwork
from vital_exp.naming.words import clip_and_words, unit_words
from vital_exp.references.decoding import printable
from vital_exp.references.faceted import FacetedReferences
from vital_exp.runs.provenance import version_of
from vital_exp.setup.request import Request
from vital_exp.targets.unit import Target
from vital_exp.visualization.ranks import Ranks

MINING = "mining"
CORRUPT_SHOWN = 3
SECONDS_BETWEEN_PAGES = 30.0  # while the atlas grows

logger = logging.getLogger(__name__)


@dataclass
class AtlasRun:
    """One atlas: what is asked for, and where.

    Attributes:
        asked: network, images, units.
        out: the folder.
        ranks: the processes that share the pictures; rank 0 writes the rest.
        command: what remakes a unit, with {layer} and {unit} to be filled in.
    """

    asked: AtlasRequest
    out: Path
    ranks: Ranks
    command: str = ""

    def run(self) -> Store:
        """Make what is not there yet.

        Raises:
            UsageError: the folder cannot be written, or holds an atlas of another network or of other images; a
                circuit of something that is not in the atlas.
        """
        circuit_targets(self.asked)  # mistakes before anything is mined
        store = self.ranks.in_turn(self._opened)
        for layer in self.asked.parts:
            self._mined_units(store, layer)
        if self._leads:
            self._name_by_words(store)
            self._relate(store)
            self._publish(store)
        for part in self.asked.parts.values():
            _LayerRun(self, store, part).run()
        if self._leads:
            make_circuits(self.asked, self.out)
            units: dict[str, list[int]] = {}
            for layer, unit in store.statuses():
                units.setdefault(layer, []).append(unit)
            store.set_meta({**linked(self.out, units), "finished": True})
            self._publish(store, everything=True)
        return store

    @property
    def _leads(self) -> bool:
        return self.ranks.rank == 0

    # Mining

    def _opened(self) -> Store:
        """Return the store, of all layers that are mined; rank 0 mines."""
        store = Store(self.out)
        old = Store.open(self.out).meta() if store.path.is_file() else {}
        if old.get("network"):
            self._check_same(old)
        known: dict[str, str] = old.get("indices", {})
        new = [layer for layer in self.asked.parts if layer not in known]
        if not self._leads:
            return store
        store = Store.create(self.out, {})
        if new:
            known = {**known, **dict.fromkeys(new, self._mine(store, new))}
        store.set_meta({**self._meta(store, known), "finished": False})
        store.write_layers(self._layer_rows(known))
        return store

    def _check_same(self, old: dict[str, Any]) -> None:
        """Refuse the atlas of another network or of other images, finished or not."""
        mined = old["mined"]
        text = network_difference(mined, identity_of(self.asked.network))
        text = text or images_difference(mined, describe_images(self.asked.folder))
        if text:
            state = "a finished" if old.get("finished") else "an unfinished"
            raise UsageError(KEY, self.out, f"holds {state} atlas of {text}; choose another folder")

    def _mine(self, store: Store, layers: Sequence[str]) -> str:
        """Mine layers in one pass; return the folder of their index, relative to the atlas."""
        asked, config = self.asked, self.asked.config
        units = asked.units(layers)
        counts = {layer: len(units.channels[layer]) for layer in layers}
        writer = ProfileWriter(self.out, counts, len(asked.folder.paths))
        counted = (config.batch_size, config.workers, config.progress, config.save_every)
        mining = Mining(units, asked.folder, asked.k, None, *counted, watch=writer)
        if "mined" not in store.meta():
            store.set_meta({"network": asked.network.name, "mined": mining.meta})
        place = f"{MINING}/{mining.key}"
        with torch.no_grad():
            mining.run(self.out / place)
        return place

    def index(self, store: Store, layer: str) -> Index:
        """Return the index of a layer."""
        return Index.open(self.out / store.meta()["indices"][layer], KEY)

    def _meta(self, store: Store, indices: dict[str, str]) -> dict[str, Any]:
        asked, config = self.asked, self.asked.config
        names = asked.network.class_names
        size = asked.network.preprocessing.size
        planned = {**store.meta().get("planned", {}), **{layer: len(part.units) for layer, part in asked.parts.items()}}
        return {
            "network": asked.network.name,
            "images": len(asked.folder.paths),
            "folder": str(asked.folder.root.resolve()),
            "input": list(size),
            "indices": indices,
            "method": str(config.pictures),
            "recipe": list(map(str, config.overrides)),
            "seed": int(config.seed),
            "planned": planned,
            "command": self.command,
            "classes": None if names is None else [names.label(number) for number in range(len(names))],
            "versions": {name: version_of(name) for name in ("vital-exp", "torch", "umap-learn")},
        }

    def _layer_rows(self, indices: dict[str, str]) -> list[LayerRow]:
        rows = []
        order = list(unit_shapes(self.asked.network))
        for layer, part in self.asked.parts.items():
            meta = Index.open(self.out / indices[layer], KEY).meta
            _, height, width = grid(meta["maps"][layer], self.asked.network.preprocessing.size)
            rows.append(
                LayerRow(layer, order.index(layer), part.kind, part.count, height, width, meta["fields"][layer])
            )
        return rows

    def _mined_units(self, store: Store, layer: str) -> None:
        """Write what is known of the units of a layer right after mining."""
        if not self._leads:
            return
        part, config = self.asked.parts[layer], self.asked.config
        refresh = {(layer, unit) for unit in part.refresh}
        known = {unit for unit in store.statuses() if unit not in refresh}
        waiting = [unit for unit in part.units if (layer, unit) not in known]
        if not waiting:
            return
        index, profile = self.index(store, layer), Profile.open(self.out, layer, KEY)
        labels, named = Labels.of(self.asked.folder, self.asked.network), config.naming.labels in (AUTO, True)
        windows = self.windows(store, layer, index)
        for start in range(0, part.count, BLOCK):
            own = [unit for unit in waiting if start <= unit < start + BLOCK]
            if not own:
                continue
            found = statistics(layer, profile, labels, start, start + BLOCK, named)
            for unit in own:
                try:
                    row = mined_row(layer, unit, index, found.rows[unit], MINED)
                    images = windows.rows(layer, unit)
                except UsageError as error:
                    row, images = UnitRow(layer, unit, FAILED, str(error)), []
                store.write(Entry(row, (), images, None, found.classes[unit]))

    def _name_by_words(self, store: Store) -> None:
        """Name units by the word that CLIP finds most like their strongest images, where that is asked for."""
        done = store.meta().get("named", {})
        waiting = {layer: sorted(unit for at, unit in store.statuses() if at == layer) for layer in self.asked.parts}
        waiting = {layer: units for layer, units in waiting.items() if done.get(layer) != units}
        if not self.asked.config.naming.words or not waiting:
            return
        clip, words = clip_and_words(self.asked.config, self.asked.network, "naming.words", True)
        named: dict[tuple[str, int], list[str]] = {}
        for place in dict.fromkeys(store.meta()["indices"][layer] for layer in waiting):
            named |= unit_words(Index.open(self.out / place, KEY), self.asked.folder, clip, words)
        for layer, units in waiting.items():
            names = {unit: named[layer, unit][0] for unit in units if (layer, unit) in named}
            store.update(layer, {"name": dict(names), "name_score": dict.fromkeys(names)})
        store.set_meta({"named": {**done, **waiting}})

    def windows(self, store: Store, layer: str, index: Index) -> Windows:
        """Return what writes the images of a layer's units."""
        units = self.asked.units([layer])
        return Windows(index, self.asked.folder, units, self.out, min(int(self.asked.config.shown), self.asked.k))

    # What relates units to one another

    def _relate(self, store: Store) -> None:
        """Write which layers lead to which, neighbours and maps, as far as they are not written."""
        layers, method = store.layers(), str(self.asked.config.map)
        names = [row.layer for row in layers if row.kind in ("channel", "class")]
        edges = find_edges(self.asked.network, names)
        feeds = {row.layer: tuple(edge.end for edge in edges if edge.source == row.layer) for row in layers}
        told = {f"{edge.source}->{edge.end}": edge.by for edge in edges}
        if store.meta().get("edges") != told:
            store.set_meta({"edges": told, "related": []})
        store.write_layers([replace(row, feeds=feeds[row.layer]) for row in layers])
        related = store.meta()["related"]
        for row in layers:
            units = sorted(unit for layer, unit in store.statuses() if layer == row.layer)
            if [row.layer, units] in related:
                continue
            store.write_neighbours(row.layer, neighbour_rows(self.out, row.layer, edges))
            xs, ys = places(Profile.open(self.out, row.layer, KEY), int(self.asked.config.seed), method).T.tolist()
            store.update(row.layer, {"map_x": dict(enumerate(xs)), "map_y": dict(enumerate(ys))})
            related = [one for one in related if one[0] != row.layer] + [[row.layer, units]]
            store.set_meta({"related": related, "map": {one.layer: method_of(method, one.units) for one in layers}})

    # Pages

    def _publish(self, store: Store, everything: bool = False) -> None:
        """Write the site."""
        write_site(store.folder, everything=everything)
        self._published = time.monotonic()

    def publish_now_and_then(self, store: Store) -> None:
        """Write the site if that was not done for a while."""
        if self._leads and time.monotonic() - self._published > SECONDS_BETWEEN_PAGES:
            self._publish(store)

    @cached_property
    def judge(self) -> VisionNetwork | None:
        """The network that measures correspondence; None where there is none, or its weights are not here."""
        from vital_exp.evaluation.weights import network_if_there
        from vital_exp.setup.parts import cache_dir

        if self.asked.judge is None:
            return None
        try:
            found = network_if_there(self.asked.judge, cache_dir(self.asked.config), download=False, key="judge")
        except NotComputed as error:
            raise UsageError("judge", self.asked.judge, str(error).replace(", or download=true", "")) from None
        return found.to(self.asked.network.device)


class _LayerRun:
    """The units of one layer: facets, pictures, images and measures.

    Args:
        run: the atlas.
        store: its data.
        part: the layer's units.
    """

    def __init__(self, run: AtlasRun, store: Store, part: Part) -> None:
        self.atlas, self.store, self.part = run, store, part
        self.asked, self.out, self.ranks = run.asked, run.out, run.ranks

    def run(self) -> None:
        """Make the units that are not done, some at a time."""
        statuses = {unit: status for (layer, unit), status in self.store.statuses().items() if layer == self.part.layer}
        waiting = [unit for unit in self.part.units if statuses.get(unit) != DONE]
        waiting = self.ranks.broadcast(waiting)
        if not waiting:
            return
        self.index = self.atlas.index(self.store, self.part.layer)
        self.pictures = LayerPictures(self.asked, self.part, self.out, self.index.path, self.ranks)
        self.windows = self.atlas.windows(self.store, self.part.layer, self.index)
        self.clarities = Clarities(self.asked.network, self.part, self.out)
        self.correspondence = Correspondence(self.atlas.judge, self.index, self.asked.folder, self.part)
        if self.ranks.rank == 0:
            self.pictures.forget([unit for unit in self.part.refresh if unit in waiting])
        hidden = None if self.asked.config.progress and self.ranks.rank == 0 else True
        with tqdm(total=len(self.part.units), initial=len(self.part.units) - len(waiting), desc=self.part.layer,
                  unit="unit", disable=hidden, dynamic_ncols=True) as bar:  # fmt: skip
            for units in _chunks(waiting, UNITS_AT_ONCE):
                self._make(units)
                bar.update(len(units))
                self.atlas.publish_now_and_then(self.store)
        self.pictures.close()
        if self.ranks.rank == 0:
            self.store.update(self.part.layer, {"redundancy": dict(self.clarities.redundancies())})

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


def told_corrupt(store: Store) -> list[str]:
    """Return a line for each mining that found images that could not be read."""
    told = set()
    for place in set(store.meta()["indices"].values()):
        index = Index.open(store.folder / place, KEY)
        shown = ", ".join(f"{printable(path)}: {why}" for path, why in list(index.corrupt.items())[:CORRUPT_SHOWN])
        if shown:
            told.add(f"{len(index.corrupt)} of {index.meta['images']} images could not be read ({shown})")
    return sorted(told)
