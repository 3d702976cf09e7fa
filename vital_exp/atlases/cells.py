"""The activation atlas of a layer: a grid over a map of activation vectors, with a picture for each cell.

A unit is one axis of the layer's activations; the map shows whole vectors (docs/methods/activation_atlas.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vital_exp.atlases.cells_data import FOUND, cells_folder
from vital_exp.atlases.pictures import made_with
from vital_exp.atlases.request import AtlasRequest
from vital_exp.concepts.activation_atlas import ActivationAtlas, activation_vectors, atlas_of_vectors
from vital_exp.config import plain
from vital_exp.errors import UsageError
from vital_exp.references.decoding import CorruptImageError
from vital_exp.runs.folder import RunFolder
from vital_exp.setup.request import Request
from vital_exp.targets.unit import OUTPUT, Target
from vital_exp.visualization.run import Visualization
from vital_exp.whole_files import write_json

KEY = "activation_atlas"
DIRECTIONS = "directions.safetensors"
GRID, LEAST = 8, 2  # cells along a side; vectors that a cell needs
MOST_VECTORS = 20000  # with more images, every n-th image gives a vector
IMAGES_AT_ONCE = 64  # decoded


def cell_layers(asked: AtlasRequest) -> list[str]:
    """Return the layers whose activation atlases are asked for.

    Raises:
        UsageError: a layer that is not in the atlas, the classes, or an atlas without pictures.
    """
    given = plain(asked.config)[KEY]
    layers = [] if given is None else [given] if isinstance(given, (str, int)) else list(given)
    possible = [layer for layer in asked.parts if layer != OUTPUT]
    for layer in map(str, layers):
        if layer not in possible:
            raise UsageError(
                KEY, layer, f"a hidden layer of this atlas: {', '.join(possible) or 'there is none'}", possible
            )
    if layers and not asked.makes_pictures:
        raise UsageError(KEY, layers, "each cell is a picture, and method=none makes none")
    return list(map(str, layers))


@dataclass(frozen=True)
class Cells:
    """The activation atlas of one layer, in ``out/cells/<layer>``.

    Attributes:
        asked: network, images.
        layer: its name.
        out: the folder of the atlas.
    """

    asked: AtlasRequest
    layer: str
    out: Path

    @property
    def path(self) -> Path:
        """The folder: a run folder of vital-visualize that holds the directions too."""
        return cells_folder(self.out, self.layer)

    def make(self) -> None:
        """Find the cells and make the pictures that are not there yet; write cells.json last.

        Raises:
            UsageError: no cell holds enough vectors; no references.
        """
        if (self.path / FOUND).is_file():
            return
        vectors = torch.cat(list(self._vectors()))
        found = atlas_of_vectors(self.layer, vectors, grid=GRID, least=LEAST, seed=int(self.asked.config.seed))
        self.path.mkdir(parents=True, exist_ok=True)
        found.save(self.path / DIRECTIONS)
        request = self._request(len(found.cells))
        folder = RunFolder(self.path, request.config, request.overrides)
        made = Visualization(request, folder=folder, keep=False).make().results
        folder.close()
        images = {result["index"]: result["image"] for result in made if result["status"] == "done"}
        write_json(self.path / FOUND, self._told(found, vectors, images))

    def _vectors(self) -> Iterator[Tensor]:
        """Yield an activation vector of each image that can be read."""
        folder, seed = self.asked.folder, int(self.asked.config.seed)
        paths = folder.paths[:: -(-len(folder.paths) // MOST_VECTORS)]
        for start in range(0, len(paths), IMAGES_AT_ONCE):
            views = []
            for path in paths[start : start + IMAGES_AT_ONCE]:
                try:
                    views.append(folder.load(path))
                except CorruptImageError:
                    continue
            if views:
                pictures = torch.stack(views).to(self.asked.network.device)
                yield activation_vectors(self.asked.network, self.layer, pictures, seed + start)

    def _request(self, count: int) -> Request:
        given = [f"references.root='{self.asked.folder.root.resolve()}'", "references.facets=1"]
        given.append(f"target.vectors='{(self.path / DIRECTIONS).resolve()}#directions'")
        targets = [Target("direction", number, self.layer) for number in range(count)]
        return made_with(self.asked, partial(Request.of, self.asked.network, targets), given)

    def _told(self, found: ActivationAtlas, vectors: Tensor, images: dict[int, str]) -> dict[str, Any]:
        """Return what the page shows of each cell: place, vectors, picture, and the channel that stands out most."""
        spread = vectors.std(dim=0).clamp(min=1e-6)
        most = ((found.directions - vectors.mean(dim=0)) / spread).argmax(dim=1).tolist()
        cells = zip(found.cells, found.counts, most, strict=True)
        place = self.path.relative_to(self.out).as_posix()
        return {
            "grid": found.grid,
            "vectors": len(vectors),
            "cells": [
                {
                    "row": row,
                    "column": column,
                    "vectors": count,
                    "channel": channel,
                    "picture": f"{place}/{images[number]}",
                }
                for number, ((row, column), count, channel) in enumerate(cells)
                if number in images
            ],
        }


def make_cells(asked: AtlasRequest, out: Path) -> None:
    """Make the activation atlases that are asked for and not there yet."""
    for layer in cell_layers(asked):
        Cells(asked, layer, out).make()
