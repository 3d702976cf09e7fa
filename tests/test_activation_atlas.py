"""An activation atlas: cells of a 2-D map, the mean vector of each, pictures by direction."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.tiny import tiny_net
from vital_exp import load_model
from vital_exp.concepts import activation_atlas as module
from vital_exp.concepts.activation_atlas import activation_atlas, activation_vectors, cells_of, projected
from vital_exp.errors import UsageError
from vital_exp.models.network import VisionNetwork
from vital_exp.targets.directions import load_directions


@pytest.fixture(scope="module")
def own() -> VisionNetwork:
    return load_model(tiny_net(), size=16)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(24, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_a_vector_is_an_activation_at_one_position(own: VisionNetwork, images: Tensor) -> None:
    found = activation_vectors(own, "layer1", images)
    with torch.no_grad():
        body = own.module
        maps = body.layer1(body.relu(body.bn1(body.conv1(own.preprocessing.normalise(images)))))  # type: ignore[operator]
    for vector, image in zip(found, maps.flatten(2), strict=True):
        assert (image.T - vector).abs().amax(dim=1).min() < 1e-5
    assert torch.equal(found, activation_vectors(own, "layer1", images))


def test_cells_are_places_of_the_map() -> None:
    places = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [0.4, 0.9]])
    assert list(cells_of(places, 2)) == [(1, 0), (0, 0), (1, 1), (0, 1), (0, 0)]


def test_the_map_is_that_of_the_singular_vectors() -> None:
    vectors = torch.randn(30, 6, generator=torch.Generator().manual_seed(1))
    found = projected(vectors, "pca")
    centred = (vectors - vectors.mean(dim=0)).double().numpy()
    twin = centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T
    np.testing.assert_allclose(np.abs(found), np.abs(twin), atol=1e-6)


def test_directions_are_the_means_of_cells(own: VisionNetwork, images: Tensor, tmp_path: Path) -> None:
    for projection in module.PROJECTIONS:
        atlas = activation_atlas(own, "layer1", images, grid=3, least=2, projection=projection)
        vectors = activation_vectors(own, "layer1", images)
        places = list(cells_of(projected(vectors, projection), 3))
        for cell, count, direction in zip(atlas.cells, atlas.counts, atlas.directions, strict=True):
            inside = torch.tensor([place == cell for place in places])
            assert count == int(inside.sum()) >= 2
            torch.testing.assert_close(direction, vectors[inside].mean(dim=0))
    torch.testing.assert_close(load_directions(str(atlas.save(tmp_path / "a.safetensors"))), atlas.directions)
    sheet = atlas.sheet(torch.rand(len(atlas.cells), 3, 8, 8), side=8)
    assert sheet.size == (24, 24)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"layer": "layr1"}, "layer=layr1"),
        ({"projection": "umap"}, "projection=umap: one of pca, tsne"),
        ({"grid": 0}, "grid=0"),
        ({"least": 99}, "least=99: no cell"),
    ],
)
def test_mistakes(own: VisionNetwork, images: Tensor, options: dict[str, object], problem: str) -> None:
    asked = {"layer": "layer1", **options}
    with pytest.raises(UsageError) as mistake:
        activation_atlas(own, images=images, **asked)  # type: ignore[arg-type]
    assert problem in str(mistake.value)
