"""Mining against brute force: every activation computed and sorted by numpy."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tests.tiny import tiny_net
from vital_exp.images.output import to_uint8
from vital_exp.mining.images import ImageFolder
from vital_exp.mining.index import Index, Row
from vital_exp.mining.mine import mine
from vital_exp.mining.patches import PatchSettings, enlarged
from vital_exp.models.loading import ModelConfig, wrap
from vital_exp.models.network import VisionNetwork
from vital_exp.references.drawn import draw

IMAGES, SIDE = 30, 32
LAYERS = ("bn1", "layer1")
PATCH = PatchSettings(size=12, overlap=0.5)


@pytest.fixture(scope="module")
def network() -> VisionNetwork:
    return wrap(tiny_net(), ModelConfig(size=SIDE))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree of drawn images, one of them twice, and two files that are no images."""
    root = tmp_path_factory.mktemp("photos")
    for number in range(IMAGES):
        path = root / f"{number % 3}" / ("deep" if number % 2 else ".") / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        drawn = draw(number % 10, 0 if number < 20 else 1, seed=0)  # 10 to 19 show what 0 to 9 show
        Image.fromarray(to_uint8(drawn).permute(1, 2, 0).numpy()).save(path)
    (root / "0" / "broken.png").write_text("no picture")
    (root / "2" / "torn.jpg").write_bytes(b"\xff\xd8\xff")
    return root


def brute_force(network: VisionNetwork, picture: Tensor, pooling: str = "max") -> dict[str, np.ndarray]:
    """Every channel's pooled activation for one picture, without Taps or hooks."""
    module = network.module
    assert isinstance(module, nn.Module)
    with torch.no_grad():
        first = module.bn1(module.conv1(network.preprocessing.normalise(picture[None])))  # type: ignore[operator]
        second = module.layer1(first.relu())  # type: ignore[operator]
    flat = {"bn1": first.flatten(2)[0].numpy(), "layer1": second.flatten(2)[0].numpy()}
    return {layer: maps.max(1) if pooling == "max" else maps.mean(1) for layer, maps in flat.items()}


def readable(folder: ImageFolder) -> list[str]:
    return [path for path in folder.paths if Path(path).name not in ("broken.png", "torn.jpg")]


def flat(rows: list[Row]) -> list[tuple[object, ...]]:
    return [(row.rank, row.image, row.box) for row in rows]


def all_rows(index: Index) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(index.path)) as connection:
        return connection.execute("SELECT * FROM units").fetchall()


@pytest.mark.parametrize("pooling", ["max", "mean"])
def test_top_and_bottom_are_those_of_a_sort_of_everything(
    pooling: str, network: VisionNetwork, photos: Path, tmp_path: Path
) -> None:
    index = mine(network, LAYERS, photos, k=7, out=tmp_path, pooling=pooling, batch_size=4, patch=None)
    folder = ImageFolder(photos, network.preprocessing)
    paths = readable(folder)
    values = [brute_force(network, folder.load(path), pooling) for path in paths]
    for layer in LAYERS:
        table = np.stack([one[layer] for one in values])  # (images, C)
        for channel in range(table.shape[1]):
            # lexsort: by value, and images that tie in their order
            order = np.lexsort((np.arange(len(paths)), -table[:, channel].round(5)))[:7]
            rows = index.top(layer, channel)
            assert [row.rank for row in rows] == [1, 2, 3, 4, 5, 6, 7]
            assert [row.image for row in rows] == [paths[place] for place in order]
            assert [row.activation for row in rows] == pytest.approx(list(table[order, channel]), abs=1e-5)
            order = np.lexsort((np.arange(len(paths)), table[:, channel].round(5)))[:7]
            rows = index.bottom(layer, channel, 3)
            assert [row.image for row in rows] == [paths[place] for place in order[:3]]
            assert {row.side for row in rows} == {"bottom"}
            assert {row.box for row in rows} == {None}
    assert index.units() == [(layer, c) for layer, n in zip(LAYERS, (8, 16), strict=True) for c in range(n)]


def windows(side: int) -> list[tuple[int, int, int, int]]:
    """All windows of 12 px, six apart, of a picture of 32 px, the last at the border; by hand."""
    starts = (0, 6, 12, 18, side - 12)
    return [(x, y, x + 12, y + 12) for y in starts for x in starts]


def test_patches_are_the_best_windows_of_the_top_images(network: VisionNetwork, photos: Path, tmp_path: Path) -> None:
    index = mine(network, LAYERS, photos, k=5, out=tmp_path, patch=PATCH, batch_size=60)
    folder = ImageFolder(photos, network.preprocessing)
    best: dict[tuple[str, str], list[tuple[float, tuple[int, int, int, int]]]] = {}
    for path in readable(folder):
        picture = folder.load(path)
        tried = [brute_force(network, enlarged(picture, box)) for box in windows(SIDE)]
        for layer in LAYERS:
            table = np.stack([one[layer] for one in tried])  # (windows, C)
            best[layer, path] = [(float(t.max()), windows(SIDE)[int(t.round(5).argmax())]) for t in table.T]
    for layer, channels in zip(LAYERS, (8, 16), strict=True):
        for channel in range(channels):
            top = sorted(row.image for row in index.top(layer, channel))
            expected = sorted(top, key=lambda path: -round(best[layer, path][channel][0], 5))  # stable
            rows = index.patches(layer, channel)
            assert [row.image for row in rows] == expected
            for row in rows:
                value, box = best[layer, row.image][channel]
                assert row.activation == pytest.approx(value, abs=1e-5)
                assert row.box == box


def test_the_search_over_the_strongest_position_tries_the_windows_that_hold_it(
    network: VisionNetwork, photos: Path, tmp_path: Path
) -> None:
    settings = PatchSettings(12, 0.5, "strongest")
    index = mine(network, "bn1", photos, k=5, out=tmp_path, patch=settings, batch_size=7)
    folder = ImageFolder(photos, network.preprocessing)
    module = network.module
    for channel in range(8):
        for row in index.patches("bn1", channel):
            picture = folder.load(row.image)
            with torch.no_grad():
                maps = module.bn1(module.conv1(network.preprocessing.normalise(picture[None])))  # type: ignore[operator]
            y, x = np.unravel_index(int(maps[0, channel].argmax()), maps.shape[-2:])
            y, x = (y + 0.5) * 2, (x + 0.5) * 2  # a map of half the picture's side
            holding = [box for box in windows(SIDE) if box[0] <= x < box[2] and box[1] <= y < box[3]]
            assert holding
            values = [brute_force(network, enlarged(picture, box))["bn1"][channel] for box in holding]
            assert row.activation == pytest.approx(max(values), abs=1e-5)
            assert row.box in holding


@pytest.mark.parametrize("search", ["all", "strongest"])
def test_the_result_does_not_depend_on_the_batch_size_or_the_workers(
    search: str, network: VisionNetwork, photos: Path, tmp_path: Path
) -> None:
    settings = PatchSettings(12, 0.5, search)
    made = [
        mine(
            network.double(), LAYERS, photos, k=6, out=tmp_path / str(size), patch=settings, batch_size=size, workers=w
        )
        for size, w in ((1, 0), (7, 2), (64, 0))
    ]
    network.float()
    tables = [all_rows(index) for index in made]
    for table in tables[1:]:
        for row, same in zip(table, tables[0], strict=True):
            assert row[:6] == same[:6]
            assert row[6] == pytest.approx(same[6], abs=1e-6)
            assert row[7:] == same[7:]
