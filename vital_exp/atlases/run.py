"""Makes the atlas of a network: layers are mined together, then units are made and written one after another.

An interrupted atlas goes on. Layers that are added later are mined by themselves, into a folder of their own.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from vital_exp.atlases.cells import cell_layers, make_cells
from vital_exp.atlases.edges import find_edges
from vital_exp.atlases.layer_run import LayerRun
from vital_exp.atlases.measures import Labels, mined_row, statistics
from vital_exp.atlases.mined_layers import LayersMining
from vital_exp.atlases.neighbours import neighbour_blocks
from vital_exp.atlases.places import method_of, places
from vital_exp.atlases.profiles import UNITS_AT_ONCE as BLOCK
from vital_exp.atlases.profiles import Profile
from vital_exp.atlases.remake import commands
from vital_exp.atlases.request import AUTO, AtlasRequest
from vital_exp.atlases.site import write_site
from vital_exp.atlases.store import FAILED, KEY, MINED, Entry, LayerRow, Store, UnitRow
from vital_exp.atlases.trust import circuit_targets, linked, make_circuits
from vital_exp.atlases.turns import alone
from vital_exp.atlases.windows import Windows
from vital_exp.errors import UsageError
from vital_exp.evaluation.score import NotComputed
from vital_exp.mining.index import Index
from vital_exp.mining.meta import describe_images, images_difference, network_difference
from vital_exp.mining.patches import grid
from vital_exp.models.identity import identity_of
from vital_exp.models.layers import unit_shapes
from vital_exp.models.network import VisionNetwork
from vital_exp.naming.words import clip_and_words, unit_words
from vital_exp.references.decoding import printable
from vital_exp.runs.provenance import version_of
from vital_exp.visualization.ranks import Ranks

CORRUPT_SHOWN = 3
SECONDS_BETWEEN_PAGES = 30.0  # while the atlas grows

logger = logging.getLogger(__name__)


@dataclass
class AtlasRun:
    """The making of one atlas.

    Attributes:
        asked: network, images, units.
        out: the folder.
        ranks: the processes that share the pictures; rank 0 writes the rest.
        given: the arguments of vital-atlas, which the commands on the units' pages repeat.
    """

    asked: AtlasRequest
    out: Path
    ranks: Ranks
    given: Sequence[str] = ()

    def run(self) -> Store:
        """Make the units that the atlas does not have yet, and return its data.

        Raises:
            UsageError: the folder cannot be written, or holds an atlas of another network or of other images; a
                circuit of something that is not in the atlas.
        """
        circuit_targets(self.asked)  # mistakes before anything is mined
        cell_layers(self.asked)
        store = self.ranks.in_turn(self._opened)
        if self._leads:
            with alone(self.out):
                for layer in self.asked.parts:
                    self._mined_units(store, layer)
                self._name_by_words(store)
                self._relate(store)
                self._publish(store)
        if self._leads:
            busy = self._make_layers(store, list(self.asked.parts), wait=False)
            self._make_layers(store, busy, wait=True)
            self.ranks.broadcast(None)
            self._finish(store)
        else:
            while (told := self.ranks.broadcast(None)) is not None:
                self._make_units(store, *told)
        return store

    def _make_layers(self, store: Store, layers: Sequence[str], wait: bool) -> list[str]:
        """Make the units of layers on every rank; return the layers of which other jobs still make units.

        Jobs share the units of a layer. A job that makes units again has the layer for itself.
        """
        busy = []
        for layer in layers:
            exclusive = bool(self.asked.parts[layer].refresh)
            with alone(self.out, f"layer {layer}", wait, exclusive) as held:
                if not held or self._make_units(store, *self.ranks.broadcast([layer, wait])):
                    busy.append(layer)
        return busy

    def _make_units(self, store: Store, layer: str, wait: bool) -> bool:
        """Make units of a layer; return whether other jobs still make some."""
        index = self.index(store, layer)
        run = LayerRun(self.asked, self.asked.parts[layer], store, index, self.windows(layer, index), self.ranks)
        return run.run(lambda: self.judge, self.publish_now_and_then, wait)

    def _finish(self, store: Store) -> None:
        """Make circuits, link them and audits, and write the whole site."""
        with alone(self.out):
            make_circuits(self.asked, self.out)
            make_cells(self.asked, self.out)
            units = {row.layer: list(store.statuses(row.layer)) for row in store.layers()}
            finished = not any(store.count(row.layer, MINED) for row in store.layers())
            store.set_meta({**linked(self.out, units), "finished": finished})
            self._publish(store, everything=True)

    @property
    def _leads(self) -> bool:
        return self.ranks.rank == 0

    # Mining

    def _opened(self) -> Store:
        """Return the data of the atlas once all layers are mined; rank 0 mines."""
        store = Store(self.out)
        if not self._leads:
            return store
        with alone(self.out):  # another job may be about to make the file
            if store.path.is_file():
                self._check_same(Store.open(self.out).meta())
            Store.create(self.out, {})
            known: dict[str, str] = store.meta().get("indices", {})
            mining = LayersMining(self.asked, self.out, partial(self._begin, store))
            known |= mining.run([layer for layer in self.asked.parts if layer not in known])
            store.set_meta({**self._meta(store, known), "finished": False})
            store.write_layers(self._layer_rows(known))
        return store

    def _check_same(self, old: dict[str, Any]) -> None:
        """Refuse the atlas of another network or of other images, finished or not."""
        if "mined" not in old:
            return
        mined = old["mined"]
        text = network_difference(mined, identity_of(self.asked.network))
        text = text or images_difference(mined, describe_images(self.asked.folder))
        if text:
            state = "a finished" if old.get("finished") else "an unfinished"
            raise UsageError(KEY, self.out, f"holds {state} atlas of {text}; choose another folder")

    def _begin(self, store: Store, meta: dict[str, object]) -> None:
        """Record network and images before the first layer is mined."""
        if "mined" not in store.meta():
            store.set_meta({"network": self.asked.network.name, "mined": meta})

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
            "commands": {**store.meta().get("commands", {}), **commands(asked, self.given)},
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
        """Write what mining has found of the units of a layer."""
        part, config = self.asked.parts[layer], self.asked.config
        known = set(store.statuses(layer)) - set(part.refresh)
        waiting = [unit for unit in part.units if unit not in known]
        if not waiting:
            return
        index, profile = self.index(store, layer), Profile.open(self.out, layer, KEY)
        labels, named = Labels.of(self.asked.folder, self.asked.network), config.naming.labels in (AUTO, True)
        windows = self.windows(layer, index)
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
        waiting = {layer: sorted(store.statuses(layer)) for layer in self.asked.parts}
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

    def windows(self, layer: str, index: Index) -> Windows:
        """Return the writer of the images of a layer's units."""
        units = self.asked.all_units([layer])
        return Windows(index, self.asked.folder, units, self.out, min(int(self.asked.config.shown), self.asked.k))

    # What relates units to one another

    def _relate(self, store: Store) -> None:
        """Write which layers lead to which; and neighbours and maps of the layers that lack them."""
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
            units = sorted(store.statuses(row.layer))
            if [row.layer, units] in related:
                continue
            own = set(units)
            for block, rows in neighbour_blocks(self.out, row.layer, edges):
                store.write_neighbours(row.layer, block, (one for one in rows if one.unit in own))
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
            with alone(self.out, wait=False) as held:
                if held:  # else another job writes it
                    self._publish(store)

    @cached_property
    def judge(self) -> VisionNetwork | None:
        """The network that measures correspondence; None where there is none, or its weights are not here."""
        from vital_exp.evaluation.weights import network_if_there

        if self.asked.judge is None:
            return None
        try:
            found = network_if_there(self.asked.judge, self.asked.config.cache, download=False, key="judge")
        except NotComputed as error:
            raise UsageError("judge", self.asked.judge, str(error).replace(", or download=true", "")) from None
        return found.to(self.asked.network.device)


def told_corrupt(store: Store) -> list[str]:
    """Return a line for each mining that found images that could not be read."""
    told = set()
    for place in set(store.meta()["indices"].values()):
        index = Index.open(store.folder / place, KEY)
        shown = ", ".join(f"{printable(path)}: {why}" for path, why in list(index.corrupt.items())[:CORRUPT_SHOWN])
        if shown:
            told.add(f"{len(index.corrupt)} of {index.meta['images']} images could not be read ({shown})")
    return sorted(told)
