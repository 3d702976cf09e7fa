"""An activation atlas of a layer (Carter et al., Distill 2019): a grid over a 2-D map of activation vectors.

The direction of a cell is the mean of its vectors; ``target=direction`` makes a picture of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from vital_exp.errors import UsageError
from vital_exp.images.output import as_image, to_uint8
from vital_exp.models.channels import as_rgb
from vital_exp.models.network import VisionNetwork, model_space
from vital_exp.models.precision import exact
from vital_exp.values import one_of, whole_number
from vital_exp.whole_files import whole_path

IMAGES_PER_PASS = 16
PROJECTIONS = ("pca", "tsne")
TRIMMED = 0.01  # share of vectors beyond each border of the map: outliers must not squeeze the others into one cell


@dataclass(frozen=True)
class ActivationAtlas:
    """The cells of a layer's map that hold enough vectors.

    Attributes:
        layer: the layer's name.
        grid: number of cells along each side.
        cells: (row, column) of each of the K cells, row 0 at the top.
        counts: number of vectors in each cell.
        directions: (K, C), the mean vector of each cell, not whitened.
    """

    layer: str
    grid: int
    cells: list[tuple[int, int]]
    counts: list[int]
    directions: Tensor

    def save(self, path: Path) -> Path:
        """Write the directions for ``target=direction target.vectors=path``; the row of a cell is its index."""
        cells = torch.tensor(self.cells)
        with whole_path(path) as temporary:
            save_file({"directions": self.directions.contiguous(), "cells": cells}, temporary, {"layer": self.layer})
        return path

    def sheet(self, pictures: Tensor, side: int = 96) -> Image.Image:
        """Return a sheet of the cells' pictures (K, C, H, W) in [0, 1], each at its cell's place, ``side`` px wide."""
        page = Image.new("RGB", (self.grid * side, self.grid * side), "white")
        for (row, column), picture in zip(self.cells, pictures, strict=True):
            tile = as_image(to_uint8(as_rgb(picture))).convert("RGB").resize((side, side))
            page.paste(tile, (column * side, row * side))
        return page


@torch.no_grad()
def activation_vectors(network: VisionNetwork, layer: str, images: Tensor, seed: int = 0) -> Tensor:
    """Return a layer's activation at one random position of each image (N, C, H, W) in [0, 1], (N, C)."""
    taps, numbers, found = network.taps([layer], "layer"), torch.Generator().manual_seed(seed), []
    for part in images.split(IMAGES_PER_PASS):
        values = exact(taps(model_space(part, network))[0][layer]).flatten(2).float().cpu()  # (N, C, P)
        places = torch.randint(values.shape[2], (len(values),), generator=numbers)
        found.append(values[torch.arange(len(values)), :, places])
    return torch.cat(found)


def activation_atlas(
    network: VisionNetwork,
    layer: str,
    images: Tensor,
    *,
    grid: int = 8,
    least: int = 2,
    projection: str = "pca",
    seed: int = 0,
) -> ActivationAtlas:
    """Return the atlas of a layer.

    Args:
        network: the frozen network.
        layer: the layer's name.
        images: (N, C, H, W) in [0, 1]; each gives one vector.
        grid: number of cells along each side.
        least: the least number of vectors of a cell.
        projection: ``"pca"``, or ``"tsne"`` (scikit-learn's), which is nearer to the UMAP of the published atlases.
        seed: of the random positions and of t-SNE.

    Raises:
        UsageError: no such layer or projection, or no cell with enough vectors.
    """
    whole_number("grid", grid, 1)
    whole_number("least", least, 1)
    vectors = activation_vectors(network, layer, images, seed)
    return atlas_of_vectors(layer, vectors, grid=grid, least=least, projection=projection, seed=seed)


def atlas_of_vectors(
    layer: str, vectors: Tensor, *, grid: int = 8, least: int = 2, projection: str = "pca", seed: int = 0
) -> ActivationAtlas:
    """Return the atlas of a layer's activation vectors (N, C); for the other arguments see :func:`activation_atlas`."""
    places = cells_of(projected(vectors, projection, seed), grid)
    inside: dict[tuple[int, int], list[int]] = {}
    for number, place in enumerate(places):
        inside.setdefault(place, []).append(number)
    cells = sorted(place for place, own in inside.items() if len(own) >= least)
    means = [vectors[inside[place]].mean(dim=0) for place in cells]
    kept = [number for number, mean in enumerate(means) if mean.any()]  # a cell of zeros has no direction
    if not kept:
        raise UsageError("least", least, f"no cell of {grid} x {grid} holds so many of {len(vectors)} vectors")
    cells = [cells[number] for number in kept]
    return ActivationAtlas(
        layer, grid, cells, [len(inside[cell]) for cell in cells], torch.stack([means[number] for number in kept])
    )


def projected(vectors: Tensor, projection: str, seed: int = 0) -> NDArray[np.float64]:
    """Project vectors (N, C) to two dimensions, (N, 2)."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    one_of("projection", projection, PROJECTIONS)
    if projection == "pca":
        found: NDArray[np.float64] = PCA(2, random_state=seed).fit_transform(vectors.double().numpy())
        return found
    perplexity = min(30.0, max(1.0, (len(vectors) - 1) / 3))
    placed: NDArray[np.float64] = TSNE(2, perplexity=perplexity, random_state=seed).fit_transform(vectors.numpy())
    return placed


def cells_of(places: NDArray[np.float64], grid: int) -> Sequence[tuple[int, int]]:
    """Return the cell (row, column) of each place (N, 2); outliers belong to the cells at the border."""
    low, high = np.quantile(places, [TRIMMED, 1 - TRIMMED], axis=0)
    shares = (places - low) / np.maximum(high - low, np.finfo(np.float64).tiny)
    columns, rows = np.clip((shares * grid).astype(int), 0, grid - 1).T
    return [(grid - 1 - int(row), int(column)) for row, column in zip(rows, columns, strict=True)]
