"""Facets and pictures of an atlas's units, by the pipeline of vital-visualize: one run folder for each layer."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from vital_exp.atlases.request import EMBEDDED, AtlasRequest, Part
from vital_exp.atlases.store import safe_name
from vital_exp.atlases.turns import alone
from vital_exp.config import plain
from vital_exp.run_folders import RESULTS
from vital_exp.runs.folder import RunFolder
from vital_exp.setup.facets import FoundFacets
from vital_exp.setup.request import Request
from vital_exp.visualization.ranks import Ranks, of_all_ranks
from vital_exp.visualization.run import Visualization
from vital_exp.whole_files import whole_file

PICTURES = "pictures"
PROVENANCE = "provenance.json"
FACETS_BY = "vital_fourier"  # if no pictures are made: the method whose references are clustered into facets


class LayerPictures:
    """The pictures of one layer's units, made some units at a time.

    Args:
        asked: network, images, units.
        part: the layer's units.
        out: the folder of the atlas.
        index: the mining index of the layer.
        ranks: the processes that share the pictures.
    """

    def __init__(self, asked: AtlasRequest, part: Part, out: Path, index: Path, ranks: Ranks) -> None:
        self.asked, self.part, self.out, self.index, self.ranks = asked, part, out, index, ranks
        self.path = out / PICTURES / safe_name(part.layer)
        self._folder: RunFolder | None = None

    def request(self, units: Sequence[int]) -> Request:
        """Find the facets of some units, and return the request that makes their pictures.

        Raises:
            UsageError: on every rank, why these units have no references or facets.
        """
        return of_all_ranks(self.ranks, lambda found: self._request(units, found))

    def _request(self, units: Sequence[int], found: FoundFacets | None) -> Request:
        ask = partial(Request.of, self.asked.network, [self.part.target(unit) for unit in units], found=found)
        return made_with(self.asked, ask, [*self._references(), *self.part.overrides])

    def _references(self) -> list[str]:
        config = self.asked.config
        if self.part.kind != "class":
            return [f"references.index='{self.index.resolve()}'", f"references.facets={config.facets}"]
        if config.model.source == EMBEDDED and not config.images:
            return ["references=embedded"]
        return [f"references.root='{self.asked.folder.root.resolve()}'"]

    def make(self, request: Request) -> dict[str, dict[str, Any]]:
        """Make the pictures that are not there yet; return the line of each target's result, by its name.

        Raises:
            UsageError: the folder holds pictures of another configuration.
        """
        if self._folder is None:
            self._folder = self.ranks.in_turn(lambda: self._opened(request))
        run = Visualization(request, folder=self._folder, ranks=self.ranks, keep=False)
        return {result["target"]: result for result in run.make().results}

    def _opened(self, request: Request) -> RunFolder:
        given = self.path, request.config, request.overrides
        if self.ranks.rank > 0:
            return RunFolder(*given, joins=True)
        with alone(self.out, f"pictures {self.part.layer}"):
            return RunFolder(*given, shares=True)

    @property
    def begun(self) -> bool:
        """Whether the settings that all pictures share, their batch size too, are recorded."""
        return (self.path / PROVENANCE).is_file()

    def forget(self, units: Sequence[int]) -> None:
        """Drop the results of some units, so that their pictures are made again."""
        if not units or not (self.path / RESULTS).is_file():
            return
        lines = (self.path / RESULTS).read_text(encoding="utf-8").splitlines()
        with whole_file(self.path / RESULTS) as file:
            file.writelines(f"{line}\n" for line in lines if json.loads(line).get("index") not in units)

    def close(self) -> None:
        """Let other jobs write into the run folder."""
        if self._folder is not None:
            self._folder.close()


def made_with(asked: AtlasRequest, ask: Callable[..., Request], overrides: Sequence[str]) -> Request:
    """Return the request that makes pictures with the method, seed and steps of an atlas.

    Args:
        asked: network, images, units.
        ask: ``Request.of`` with network and targets.
        overrides: keys that name references and targets.
    """
    config = asked.config
    given = [f"trainer.accelerator={config.trainer.accelerator}", f"cache_dir='{config.cache_dir}'"]
    given += ["progress=false", "logger=none", "evaluation=none", *overrides, *map(str, config.overrides)]
    request = ask(
        method=str(config.pictures) if asked.makes_pictures else FACETS_BY,
        seed=int(config.seed),
        steps=None if config.steps is None else int(config.steps),
        overrides=given,
        local_rank=asked.local_rank,
    )
    # All pictures share a run folder, whose configuration names the network as it was asked for.
    shared = request.config.with_keys(target__index="all", model=plain(config)["model"])
    return replace(request, config=shared)
