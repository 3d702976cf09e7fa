"""Mining against brute force: every activation computed and sorted by numpy."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.utils import save_image

from tests.tiny import image_folder, tiny_net
from vital_exp import load_model
from vital_exp.config import compose_config
from vital_exp.configuration import ReferenceKeys
from vital_exp.errors import UsageError
from vital_exp.images.output import to_uint8
from vital_exp.images.randomness import RandomStreams
from vital_exp.mining import state as states
from vital_exp.mining.images import ImageFolder
from vital_exp.mining.index import Index
from vital_exp.mining.mine import mine
from vital_exp.mining.patches import PatchSettings, enlarged, windows_over
from vital_exp.mining.references import MinedReferences
from vital_exp.mining.spectrum import FolderSpectrum, magnitude_spectrum, references_magnitude
from vital_exp.mining.state import MiningState
from vital_exp.mining.top import TopK
from vital_exp.mining.units import Units
from vital_exp.mining.windows import place_of, window_around
from vital_exp.models.loading import wrap
from vital_exp.models.model_config import ModelConfig
from vital_exp.models.network import Preprocessing, VisionNetwork
from vital_exp.references.drawn import draw
from vital_exp.references.folder import ReferenceWarning
from vital_exp.setup.mined import _candidates, mined_references
from vital_exp.setup.parts import pictures_of
from vital_exp.targets.unit import Target

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


def brute_force(network: VisionNetwork, pictures: Tensor, pooling: str = "max") -> dict[str, np.ndarray]:
    """Every channel's pooled activation for pictures (N, 3, H, W), (N, C), without Taps or hooks."""
    module: Any = network.module
    with torch.no_grad():
        first = module.bn1(module.conv1(network.preprocessing.normalise(pictures)))
        second = module.layer1(first.relu())
    flat = {"bn1": first.flatten(2).numpy(), "layer1": second.flatten(2).numpy()}
    return {layer: maps.max(2) if pooling == "max" else maps.mean(2) for layer, maps in flat.items()}


def readable(folder: ImageFolder) -> list[str]:
    return [path for path in folder.paths if Path(path).name not in ("broken.png", "torn.jpg")]


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
    values = brute_force(network, torch.stack([folder.load(path) for path in paths]), pooling)
    for layer in LAYERS:
        table = values[layer]  # (images, C)
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
        tried = brute_force(network, torch.stack([enlarged(picture, box) for box in windows(SIDE)]))
        for layer in LAYERS:
            table = tried[layer]  # (windows, C)
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
            values = brute_force(network, torch.stack([enlarged(picture, box) for box in holding]))["bn1"][:, channel]
            assert row.activation == pytest.approx(values.max(), abs=1e-5)
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


# Going on.


class Interrupted(Exception):
    """What a test stops a mining with."""


def interrupt_after(saves: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a mining stop right after it has been saved so often."""
    original, counted = MiningState.save, []

    def save(self: MiningState, path: Path, meta: dict[str, object]) -> None:
        original(self, path, meta)
        counted.append(path)
        if len(counted) == saves:
            raise Interrupted

    monkeypatch.setattr(MiningState, "save", save)


# Of 32 files in batches of 4, saved every 8: the images pass saves 4 times and at its end, then come the patches.
@pytest.mark.parametrize("saves", [1, 3, 5, 8])
def test_an_interrupted_mining_goes_on_to_the_same_index(
    saves: int, network: VisionNetwork, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    coarse = PatchSettings(16, 0.0)
    settings: dict[str, Any] = {"k": 6, "patch": coarse, "batch_size": 4, "save_every": 8}
    whole = mine(network, LAYERS, photos, out=tmp_path / "whole", **settings)
    out = tmp_path / "interrupted"
    with monkeypatch.context() as patched:
        interrupt_after(saves, patched)
        with pytest.raises(Interrupted):
            mine(network, LAYERS, photos, out=out, **settings)
    assert [path.name for path in out.iterdir()] == [states.NAME]  # nothing that looks like an index
    with pytest.raises(UsageError, match=r"no index\.sqlite there"):
        Index.open(out)
    shown = count_images(monkeypatch)
    index = mine(network, LAYERS, photos, out=out, **settings)
    assert sum(shown) < IMAGES + IMAGES * len(coarse.windows(SIDE, SIDE))  # what was done is not done again
    assert all_rows(index) == all_rows(whole)
    assert index.corrupt == whole.corrupt
    assert [path.name for path in out.iterdir()] == ["index.sqlite"]


def count_images(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of pictures that the network is shown from now on."""
    original, shown = Units.maps, []

    def maps(self: Units, images: Tensor) -> dict[str, Tensor]:
        shown.append(len(images))
        return original(self, images)

    monkeypatch.setattr(Units, "maps", maps)
    return shown


def test_a_finished_index_is_not_made_again(
    network: VisionNetwork, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = mine(network, "layer1", photos, k=5, out=tmp_path, patch=PATCH)
    shown = count_images(monkeypatch)
    again = mine(network, "layer1", photos, k=5, out=tmp_path, patch=PATCH, batch_size=5)
    assert again.path == first.path
    assert shown == []


def test_a_damaged_state_is_made_again(network: VisionNetwork, photos: Path, tmp_path: Path) -> None:
    (tmp_path / states.NAME).write_bytes(b"torn")
    assert mine(network, "layer1", photos, k=5, out=tmp_path, patch=None).top("layer1", 0)


def test_without_a_folder_the_index_is_in_the_cache(network: VisionNetwork, photos: Path, tmp_path: Path) -> None:
    index = mine(network, "layer1", photos, k=3, patch=None, cache_dir=tmp_path)
    assert index.path == tmp_path / "mining" / index.meta["key"] / "index.sqlite"
    other = mine(network, "layer1", photos, k=4, patch=None, cache_dir=tmp_path)
    assert other.path != index.path
    assert mine(network, "layer1", photos, k=3, patch=None).path.is_relative_to(os.environ["VITAL_CACHE"])


# What the index says.


def test_corrupt_images_are_listed_and_never_rank(network: VisionNetwork, photos: Path, tmp_path: Path) -> None:
    index = mine(network, "layer1", photos, k=IMAGES + 2, out=tmp_path, patch=None)
    assert sorted(index.corrupt) == ["0/broken.png", "2/torn.jpg"]
    assert all(index.corrupt.values())
    for channel in range(16):
        ranked = [row.image for row in index.top("layer1", channel)]
        assert sorted(ranked) == readable(ImageFolder(photos, network.preprocessing))


def test_the_file_reads_as_it_documents(network: VisionNetwork, photos: Path, tmp_path: Path) -> None:
    index = mine(network, LAYERS, photos, k=4, out=tmp_path, channels="1-2,5", patch=PATCH)
    with closing(sqlite3.connect(index.path)) as connection:
        columns = [name for _, name, *_ in connection.execute("PRAGMA table_info(units)")]
        meta = {key: json.loads(value) for key, value in connection.execute("SELECT * FROM meta")}
        counts = connection.execute("SELECT side, region, COUNT(*), COUNT(x0) FROM units GROUP BY 1, 2").fetchall()
    assert columns == [
        "layer",
        "channel",
        "side",
        "region",
        "rank",
        "image",
        "activation",
        "x0",
        "y0",
        "x1",
        "y1",
        "position",
    ]
    units = 2 * 3 * 4
    assert sorted(counts) == [("bottom", "image", units, 0), ("top", "image", units, 0), ("top", "patch", units, units)]
    assert meta == index.meta
    assert meta["network"] == network.name
    assert meta["weights"] == network.weights_hash()
    assert meta["folder"] == str(photos.resolve())
    assert (meta["images"], meta["k"], meta["pooling"]) == (IMAGES + 2, 4, "max")
    assert meta["patch"] == {"size": 12, "overlap": 0.5, "search": "all"}
    assert meta["layers"] == [{"layer": layer, "channels": "1-2,5", "directions": None} for layer in LAYERS]
    assert index.units() == [(layer, channel) for layer in LAYERS for channel in (1, 2, 5)]
    assert index.largest_activation("bn1", 5) == index.top("bn1", 5)[0].activation


def test_a_file_name_that_is_no_text(network: VisionNetwork, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    try:
        Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
        (tmp_path / "a.png").rename(tmp_path / name)
    except OSError:
        pytest.skip("this file system takes text alone")
    index = mine(network, "layer1", tmp_path, k=1, out=tmp_path / "out", patch=None, channels=0)
    assert index.top("layer1", 0)[0].image == name


def test_values_that_are_no_numbers_never_rank() -> None:
    top = TopK(units=1, k=3)
    top.add(torch.tensor([[1.0], [torch.nan], [3.0]]), torch.arange(3))
    assert top.numbers.tolist() == [[2, 0, -1]]


def test_of_equal_values_the_first_stay() -> None:
    whole, parts = TopK(2, 4), TopK(2, 4)
    values = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0, 2.0, 1.0, 0.0]).expand(2, -1).T
    whole.add(values, torch.arange(8))
    for part in torch.arange(8).split(3):
        parts.add(values[part], part)
    assert whole.numbers.tolist() == parts.numbers.tolist() == [[5, 1, 2, 4]] * 2


def test_second_values_decide_between_equal_ones() -> None:
    stream = torch.Generator().manual_seed(0)
    values = torch.randint(3, (40, 5), generator=stream).float()
    seconds = torch.randint(4, (40, 5), generator=stream).float() - 2
    values[7] = torch.nan
    whole, parts = TopK(5, 12), TopK(5, 12)
    whole.add(values, torch.arange(40), seconds)
    for part in torch.arange(40).split(7):
        parts.add(values[part], part, seconds[part])
    for unit in range(5):
        keys = (np.arange(40), -seconds[:, unit].numpy(), -values[:, unit].nan_to_num(-9).numpy())
        expected = np.lexsort(keys)[:12].tolist()
        assert whole.numbers[unit].tolist() == parts.numbers[unit].tolist() == expected


def squares(folder: Path) -> Path:
    """Pictures with a square each, brighter than the bound of :func:`bounded` at all its pixels."""
    for name, brightness, side, corner in (("a", 0.7, 8, 0), ("b", 0.9, 4, 8), ("c", 0.8, 12, 2)):
        picture = torch.zeros(3, 16, 16)
        picture[:, corner : corner + side, corner : corner + side] = brightness
        save_image(picture, folder / f"{name}.png")
    return folder


def bounded(*activation: nn.Module) -> VisionNetwork:
    module = nn.Sequential(nn.Sequential(nn.Conv2d(3, 2, 1), *activation), nn.Identity())
    with torch.no_grad():
        module[0][0].weight.fill_(10.0)  # type: ignore[index, union-attr, operator]
    return load_model(module, size=16, mean=[0.0] * 3, std=[1.0] * 3)


@pytest.mark.parametrize("inplace", [False, True])
def test_images_that_drive_a_bounded_unit_as_far_as_it_goes_rank_by_what_is_cut_off(
    tmp_path: Path, inplace: bool
) -> None:
    index = mine(bounded(nn.ReLU6(inplace)), "0", squares(tmp_path), k=3, out=tmp_path / "out", patch=None)
    rows = index.top("0", 1)
    assert [(row.image, row.activation) for row in rows] == [("b.png", 6.0), ("c.png", 6.0), ("a.png", 6.0)]
    assert rows[0].position == 8 * 16 + 8


@pytest.mark.parametrize("last", [nn.Identity(), nn.ReLU()])
def test_what_is_not_cut_off_at_the_end_of_a_layer_ranks_by_means(tmp_path: Path, last: nn.Module) -> None:
    class Clamped(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.clamp(max=6)

    network = bounded(Clamped(), last)
    index = mine(network, "0", squares(tmp_path), k=3, out=tmp_path / "out", patch=None)
    assert [row.image for row in index.top("0", 0)] == ["c.png", "a.png", "b.png"]


def test_directions_are_mined_like_channels(network: VisionNetwork, photos: Path, tmp_path: Path) -> None:
    vectors = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    given = {"layer1": vectors}
    index = mine(network, "layer1", photos, k=5, out=tmp_path, directions=given, patch=None)
    folder = ImageFolder(photos, network.preprocessing)
    paths = readable(folder)
    with torch.no_grad():
        module: Any = network.module
        normalised = network.preprocessing.normalise(torch.stack([folder.load(path) for path in paths]))
        maps = module.layer1(module.bn1(module.conv1(normalised)).relu())
    values = np.einsum("nchw,kc->nkhw", maps.numpy(), vectors.numpy()).max((2, 3))
    for direction in range(3):
        order = np.lexsort((np.arange(len(paths)), -values[:, direction].round(5)))[:5]
        assert [row.image for row in index.top("layer1", direction)] == [paths[place] for place in order]


def test_tokens_are_positions_the_class_token_among_them(photos: Path, tmp_path: Path) -> None:
    import timm

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vit = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=3).eval()
    network = wrap(vit, ModelConfig(size=32))
    settings = PatchSettings(16, 0.5, "strongest")
    index = mine(network, "blocks.1", photos, k=4, out=tmp_path, channels="0-9", patch=settings)
    folder = ImageFolder(photos, network.preprocessing)
    paths = readable(folder)
    with torch.no_grad():
        normalised = network.preprocessing.normalise(torch.stack([folder.load(path) for path in paths]))
        tokens = vit.blocks(vit.norm_pre(vit._pos_embed(vit.patch_embed(normalised))))  # (N, 5, D)
    assert tokens.shape[1] == 5
    values = tokens.amax(1).numpy()
    for channel in range(10):
        order = np.lexsort((np.arange(len(paths)), -values[:, channel].round(5)))[:4]
        assert [row.image for row in index.top("blocks.1", channel)] == [paths[place] for place in order]
        assert len(index.patches("blocks.1", channel)) == 4


@pytest.mark.parametrize(
    ("shape", "position", "held"),
    [
        ((2, 2), 0, [0]),  # the centre of the upper left quarter, (4, 4), is in the first window alone
        ((2, 2), 3, [3]),
        ((1, 1), 0, [3]),  # the centre (8, 8): windows end before their x1 and y1
        ((5,), 0, [0, 1, 2, 3]),  # a class token is everywhere
        ((5,), 2, [1]),  # the second token after it: upper right
        ((1,), 0, [0, 1, 2, 3]),  # a vector has no places
    ],
)
def test_windows_over_a_position(shape: tuple[int, ...], position: int, held: list[int]) -> None:
    boxes = PatchSettings(8, 0.0).windows(16, 16)
    found = windows_over(torch.tensor(position), shape, boxes, (16, 16))
    assert found.nonzero().flatten().tolist() == held


def test_windows_end_at_the_border() -> None:
    assert PatchSettings(64, 0.5).windows(224, 224)[:2] == [(0, 0, 64, 64), (32, 0, 96, 64)]
    assert len(PatchSettings(64, 0.5).windows(224, 224)) == 36
    assert PatchSettings().side(224, 224) == 64
    assert PatchSettings(10, 0.0).windows(10, 25) == [(0, 0, 10, 10), (10, 0, 20, 10), (15, 0, 25, 10)]


# As references.


def references(index: Index, photos: Path, network: VisionNetwork, count: int, region: str) -> MinedReferences:
    folder = ImageFolder(photos, network.preprocessing)
    return MinedReferences(lambda: index, index.meta["key"], folder, count, region)


@pytest.fixture(scope="module")
def index(network: VisionNetwork, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Index:
    return mine(network, LAYERS, photos, k=6, out=tmp_path_factory.mktemp("index"), patch=PATCH)


@pytest.mark.parametrize("region", ["patch", "image"])
def test_references_drive_the_unit_as_the_index_says(
    region: str, index: Index, network: VisionNetwork, photos: Path
) -> None:
    mined = references(index, photos, network, 4, region)
    assert mined.class_indices() is None
    for target in (Target("channel", 3, "layer1"), Target("neuron", 5, "bn1", (2, 2))):
        images, rows = list(mined.images(target)), mined.rows(target)
        assert len(images) == len(rows) == 4
        for image, row in zip(images, rows, strict=True):
            assert image.shape == (3, SIDE, SIDE)
            assert 0 <= image.min() <= image.max() <= 1
            assert (row.box is None) == (region == "image")
            value = brute_force(network, image[None])[str(target.layer)][0, target.index]
            assert row.activation == pytest.approx(value, abs=1e-5)
        assert mined.largest_activation(target) == index.top(str(target.layer), target.index)[0].activation


def mined_by(config: list[str], network: VisionNetwork, photos: Path, cache: Path) -> MinedReferences:
    asked = [
        *("target=channel", "target.layer=layer1", "target.index=3", "references=mined", f"references.root={photos}"),
        *("references.count=2", f"references.patch.size={PATCH.size}", "progress=false"),
    ]
    return mined_references(compose_config([*asked, *config]), network, [Target("channel", 3, "layer1")], None, cache)


def test_windows_of_more_images_than_are_wanted_compete(
    index: Index, network: VisionNetwork, photos: Path, tmp_path: Path
) -> None:
    target, patches = Target("channel", 3, "layer1"), index.patches("layer1", 3, 2)
    own = mined_by(["references.candidates=6"], network, photos, tmp_path / "own")
    assert [(row.image, row.box) for row in own.rows(target)] == [(row.image, row.box) for row in patches]
    assert own.index.meta["k"] == index.meta["k"] == 6
    for asked, k in ((["references.candidates=1"], 2), (["references.region=image"], 2)):
        assert mined_by(asked, network, photos, tmp_path / asked[0]).index.meta["k"] == k
    with pytest.raises(UsageError, match=r"references\.candidates=0: a whole number of at least 1"):
        mined_by(["references.candidates=0"], network, photos, tmp_path)


@pytest.mark.parametrize(
    ("asked", "count", "images", "expected"),
    [("auto", 12, 40, 16), ("auto", 12, 300, 30), ("auto", 12, 50_000, 80), ("auto", 50, 100, 50), (7, 50, 40, 7)],
)
def test_how_many_images_compete(asked: object, count: int, images: int, expected: int) -> None:
    keys = ReferenceKeys("mined", count, 0, candidates=asked)  # type: ignore[arg-type]
    assert _candidates(keys, images) == expected


def test_the_fingerprint_of_references_tells_them_apart(index: Index, network: VisionNetwork, photos: Path) -> None:
    target, other = Target("channel", 3, "layer1"), Target("channel", 4, "layer1")
    prints = [
        references(index, photos, network, *options).fingerprint(target) for options in ((4, "patch"), (3, "patch"))
    ]
    prints.append(references(index, photos, network, 4, "image").fingerprint(target))
    prints.append(references(index, photos, network, 4, "patch").fingerprint(other))
    assert len(set(prints)) == 4
    assert references(index, photos, network, 4, "patch").fingerprint(target) == prints[0]


def test_fewer_references_than_asked_for_are_told(index: Index, network: VisionNetwork, photos: Path) -> None:
    mined = references(index, photos, network, 9, "patch")
    with pytest.warns(ReferenceWarning, match="6 references, fewer than"):
        assert len(list(mined.images(Target("channel", 3, "layer1")))) == 6


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (Target("class", 1), ("hidden units only",)),
        (Target("channel", 1, "layer2"), ("layer=layer2", "bn1, layer1", "did you mean layer1")),
        (Target("channel", 99, "layer1"), ("channel=99", "channels 0-15 were mined")),
        (Target("direction", 1, "layer1"), ("direction", "channels that were mined of layer1")),
    ],
)
def test_targets_that_were_not_mined(
    target: Target, words: tuple[str, ...], index: Index, network: VisionNetwork, photos: Path
) -> None:
    with pytest.raises(UsageError) as caught:
        list(references(index, photos, network, 4, "patch").images(target))
    assert all(word in str(caught.value) for word in words), str(caught.value)


# Windows around the strongest position.


@pytest.mark.parametrize("window", ["auto", 0.5, 10, 1.0])
def test_windows_lie_around_the_strongest_position(
    window: str | float, index: Index, network: VisionNetwork, photos: Path
) -> None:
    folder, module = ImageFolder(photos, network.preprocessing), network.module
    side = {"auto": index.meta["fields"]["bn1"], 0.5: 16, 10: 10, 1.0: SIDE}[window]
    for channel in range(8):
        rows = index.windows("bn1", channel, window=window)
        assert [(row.image, row.activation) for row in rows] == [
            (row.image, row.activation) for row in index.top("bn1", channel)
        ]
        for row in rows:
            with torch.no_grad():
                normalised = network.preprocessing.normalise(folder.load(row.image)[None])
                maps = module.bn1(module.conv1(normalised))  # type: ignore[operator]
            y, x = np.unravel_index(int(maps[0, channel].argmax()), maps.shape[-2:])
            assert row.position == y * maps.shape[-1] + x
            assert row.box is not None
            x0, y0, x1, y1 = row.box
            assert (x1 - x0, y1 - y0) == (side, side)
            assert 0 <= x0 < x1 <= SIDE
            assert 0 <= y0 < y1 <= SIDE
            centre = ((y + 0.5) * 2, (x + 0.5) * 2)  # a map of half the picture's side
            wanted = [min(max(c - side / 2, 0), SIDE - side) for c in centre]
            assert [y0, x0] == pytest.approx(wanted, abs=0.5)


def test_windows_cost_no_pass_over_the_images(
    network: VisionNetwork, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = count_images(monkeypatch)
    index = mine(network, LAYERS, photos, k=4, out=tmp_path, patch=None)
    mined = references(index, photos, network, 4, "window")
    for target in (Target("channel", 3, "layer1"), Target("neuron", 5, "bn1", (2, 2))):
        pictures, rows = list(mined.images(target)), mined.rows(target)
        folder = ImageFolder(photos, network.preprocessing)
        for picture, row in zip(pictures, rows, strict=True):
            assert row.box is not None
            assert torch.equal(picture, enlarged(folder.load(row.image), row.box))
    assert sum(shown) == IMAGES


def test_the_receptive_field_grows_with_depth_and_stays_within_the_theoretical_one(index: Index) -> None:
    first, second = (index.meta["fields"][layer] for layer in LAYERS)
    assert 1 <= first <= 3 + 1  # one convolution of 3, half a pixel off the middle of a position's part of the picture
    assert first < second <= 7 + 3  # a second one, on a map of half the side; 1.5 px off
    assert index.meta["maps"] == {"bn1": [16, 16], "layer1": [8, 8]}


def test_the_receptive_field_of_units_that_are_cut_off(network: VisionNetwork, photos: Path, tmp_path: Path) -> None:
    """Where a unit is strongest its own gradient is zero: every value there is the same."""
    torch.manual_seed(0)  # another channel must let a gradient through
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 5, padding=2), torch.nn.ReLU6())
    with torch.no_grad():
        module[0].bias[:4] = 100.0  # type: ignore[index]
    own = wrap(module, ModelConfig(size=SIDE))
    index = mine(own, "1", photos, k=2, out=tmp_path, patch=None, channels="0-3")
    assert index.largest_activation("1", 0) == 6
    assert 1 <= index.meta["fields"]["1"] <= 5


class Grey(torch.nn.Module):
    """A network that lets no gradient through, and one position at its end."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3)
        self.pool = torch.nn.AdaptiveAvgPool2d(1)

    def forward(self, pictures: Tensor) -> Tensor:
        """Return (N, 4)."""
        with torch.no_grad():
            return self.pool(self.conv(pictures)).flatten(1)


def test_without_a_gradient_the_side_of_windows_must_be_said(photos: Path, tmp_path: Path) -> None:
    own = wrap(Grey(), ModelConfig(size=SIDE))
    index = mine(own, ["conv", "pool"], photos, k=2, out=tmp_path, patch=None)
    assert index.meta["fields"] == {"conv": None, "pool": None}
    with pytest.raises(UsageError, match=r"references\.window=auto: .*receptive field is unknown: give a share or px"):
        index.windows("conv", 0)
    boxes = [row.box for row in index.windows("conv", 0, window=0.25)]
    assert [box is not None and box[2] - box[0] for box in boxes] == [8, 8]
    assert [row.box for row in index.windows("pool", 0)] == [None, None]  # one position: the whole image


@pytest.mark.parametrize(
    ("shape", "size", "position", "box"),
    [
        ((4, 4), (16, 16), 5, (4, 4, 8, 8)),  # centre (6, 6)
        ((4, 4), (16, 16), 0, (0, 0, 4, 4)),
        ((2, 4), (16, 32), 7, (26, 10, 30, 14)),  # centre (12, 28)
        ((17,), (16, 16), 0, None),  # a class token
        ((17,), (16, 16), 6, (4, 4, 8, 8)),
        ((9,), (16, 32), 0, None),  # a class token, and a grid of 2 x 4
        ((9,), (16, 32), 8, (26, 10, 30, 14)),
        ((36,), (16, 64), 0, (1, 1, 5, 5)),  # 6 x 6 is no grid of such a picture, 3 x 12 is: centre (2.67, 2.67)
        ((37,), (16, 16), 0, None),  # a class token
        ((35,), (16, 16), 9, None),  # no grid
        ((1,), (16, 16), 0, None),
        ((1, 1), (16, 16), 0, None),
    ],
)
def test_places_of_positions(
    shape: tuple[int, ...], size: tuple[int, int], position: int, box: tuple[int, ...] | None
) -> None:
    place = place_of(position, shape, size)
    assert (place and window_around(place, size, 4)) == box


@pytest.mark.parametrize("window", [33, 0, -1, 1.5, "wide", True, None])
def test_windows_that_there_are_not(window: Any, index: Index) -> None:
    words = "at most 32 px: the network's input is 32x32" if window == 33 else "auto, a share of the shorter side"
    with pytest.raises(UsageError, match=rf"references\.window=.*{words}"):
        index.windows("bn1", 0, window=window)


def test_windows_as_references_of_the_command(network: VisionNetwork, photos: Path, tmp_path: Path) -> None:
    target = Target("channel", 3, "layer1")
    found = {}
    for window in ("auto", "0.25", "12"):
        asked = ["references.region=window", f"references.window={window}"]
        own = mined_by(asked, network, photos, tmp_path / "own")
        found[own.fingerprint(target)] = {row.box and row.box[2] - row.box[0] for row in own.rows(target)}
        assert own.index.meta["patch"] is None
    assert list(found.values()) == [{own.index.meta["fields"]["layer1"]}, {8}, {12}]
    assert len(list((tmp_path / "own" / "mining").iterdir())) == 1  # mined once for all of them


# Another network, another folder.


def copied(photos: Path, to: Path) -> Path:
    return Path(shutil.copytree(photos, to, copy_function=shutil.copy2))


def test_an_index_knows_its_network_and_folder(network: VisionNetwork, photos: Path, tmp_path: Path) -> None:
    root = copied(photos, tmp_path / "photos")
    index = mine(network, "layer1", root, k=3, out=tmp_path / "out", patch=None)

    def message(other: VisionNetwork, folder: Path) -> str:
        with pytest.raises(UsageError) as caught:
            index.check(other, ImageFolder(folder, network.preprocessing))
        return str(caught.value)

    index.check(network, ImageFolder(root, network.preprocessing))
    index.check(network, ImageFolder(copied(photos, tmp_path / "moved"), network.preprocessing))  # the same files

    other = wrap(tiny_net(classes=5), ModelConfig(size=SIDE, name="other"))
    assert "another network (TinyNet, weights" in message(other, root)
    assert "now other, weights" in message(other, root)
    reseen = wrap(tiny_net(), ModelConfig(size=40))
    assert "preprocessing" in message(reseen, root)

    image_folder(tmp_path / "elsewhere", ["a"], count=4)
    assert f"another folder ({root}; now {tmp_path / 'elsewhere'})" in message(network, tmp_path / "elsewhere")

    os.utime(root / "0" / "00.png", (1, 1))
    assert "have changed since" in message(network, root)
    (root / "0" / "00.png").unlink()
    assert "held 32 then and holds 31 now" in message(network, root)


def test_a_folder_of_another_mining_is_refused(network: VisionNetwork, photos: Path, tmp_path: Path) -> None:
    mine(network, "layer1", photos, k=3, out=tmp_path, patch=None)
    before = (tmp_path / "index.sqlite").read_bytes()
    for change, words in (
        ({"k": 4}, "k (3 there, 4 now)"),
        ({"channels": "0-3"}, "layers (layer1 0-15 there, layer1 0-3 now)"),
        ({"pooling": "mean"}, "pooling (max there, mean now)"),
    ):
        settings: dict[str, Any] = {"k": 3, "out": tmp_path, "patch": None, **change}
        with pytest.raises(UsageError) as caught:
            mine(network, "layer1", photos, **settings)
        assert words in str(caught.value)
        assert "choose another folder" in str(caught.value)
    assert (tmp_path / "index.sqlite").read_bytes() == before


def test_an_unfinished_index_of_a_folder_that_changed_is_refused(
    network: VisionNetwork, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = copied(photos, tmp_path / "photos")
    with monkeypatch.context() as patched:
        interrupt_after(1, patched)
        with pytest.raises(Interrupted):
            mine(network, "layer1", root, k=3, out=tmp_path / "out", batch_size=4, save_every=8)
    (root / "new.png").write_bytes(b"")
    with pytest.raises(UsageError, match="unfinished index mined with other images"):
        mine(network, "layer1", root, k=3, out=tmp_path / "out", batch_size=4, save_every=8)


# Mistakes.


def test_an_image_that_broke_after_mining_is_told(network: VisionNetwork, photos: Path, tmp_path: Path) -> None:
    root = copied(photos, tmp_path / "photos")
    index = mine(network, "layer1", root, k=3, out=tmp_path / "out", patch=None)
    mined = references(index, root, network, 3, "image")
    broken = index.top("layer1", 0)[0].image
    (root / broken).write_text("no picture")
    with pytest.raises(UsageError, match="can no longer be read"):
        list(mined.images(Target("channel", 0, "layer1")))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layers": ["layer2"]}, ("layers=layer2", "did you mean layer1")),
        ({"layers": []}, ("layers=[]", "at least one")),
        ({"layers": ["bn1", "bn1"]}, ("layers=", "each named once")),
        ({"channels": 16}, ("channels=16", "16 channels of layer1, 0 to 15")),
        ({"channels": "3-99"}, ("channels=99", "0 to 15")),
        ({"k": 33}, ("k=33", "holds 32 images")),
        ({"k": 0}, ("k=0", "at least 1")),
        ({"batch_size": 0}, ("batch_size=0", "at least 1")),
        ({"workers": -1}, ("workers=-1", "at least 0")),
        ({"pooling": "sum"}, ("pooling=sum", "max, mean")),
        ({"patch": PatchSettings(33)}, ("patch.size=33", "1 to 32")),
        ({"patch": PatchSettings(8, 1.0)}, ("patch.overlap=1.0", "below 1")),
        ({"patch": PatchSettings(8, 0.5, "best")}, ("patch.search=best", "all, strongest")),
        ({"directions": {"layer1": torch.ones(2, 3)}}, ("directions=(2, 3)", "(K, 16)")),
        ({"directions": {"bn1": torch.ones(2, 8)}}, ("directions=bn1", "not among the mined layers")),
    ],
)
def test_mistakes(change: dict[str, Any], words: tuple[str, ...], network: VisionNetwork, photos: Path) -> None:
    arguments: dict[str, Any] = {"layers": ["layer1"], "images": photos, "k": 3, **change}
    with pytest.raises(UsageError) as caught:
        mine(network, **arguments)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_folders_that_cannot_be_mined(network: VisionNetwork, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    image_folder(tmp_path / "broken", ["a"], count=0, corrupt=3)
    for name, words in (
        ("nowhere", "does not exist"),
        ("file", "is no folder"),
        ("empty", "holds no images"),
        ("broken", "none of its 3 images can be read"),
    ):
        with pytest.raises(UsageError, match=words) as caught:
            mine(network, "layer1", tmp_path / name, k=1, patch=None)
        assert caught.value.key == "images"
    with pytest.raises(UsageError, match="is not an index of vital-mine"):
        Index.open(tmp_path / "file")


# The spectrum.


def test_the_spectrum_is_the_mean_magnitude_of_standardised_decorrelated_images() -> None:
    numbers = np.random.default_rng(0)
    images = [torch.from_numpy(numbers.random((3, 16, 16), dtype=np.float32)) for _ in range(5)]
    lucid = np.array([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]])
    matrix = lucid / np.linalg.norm(lucid, axis=0).max()
    mean, std = (np.array(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    expected = np.zeros((3, 16, 9))
    for image in images:
        plain = np.linalg.solve(matrix, ((image.numpy() - mean) / std).reshape(3, -1)).reshape(3, 16, 16)
        expected += np.abs(np.fft.rfft2(plain)) / 5
    made = magnitude_spectrum(iter(images), 16)
    assert made.shape == (3, 16, 9)
    np.testing.assert_allclose(made.numpy(), expected, rtol=1e-4)
    assert magnitude_spectrum(images, 8).shape == (3, 8, 5)
    with pytest.raises(ValueError, match="no images"):
        magnitude_spectrum([], 8)


# Real networks and images.


def test_the_spectrum_of_real_images_falls_as_the_published_one(data: Path, tmp_path: Path) -> None:
    """Sixty images fall from low to middle frequencies, in cycles per image, as the published spectrum of ImageNet."""
    few = tmp_path / "few"
    for folder in sorted((data / "data/imagenet-sample").iterdir())[:120:2]:
        shutil.copytree(folder, few / folder.name)
    path = FolderSpectrum.of(few, 128, "spectrum").write(tmp_path)
    ours, published = load_file(path)["magnitude"].numpy(), np.load(data / "data/maco_imagenet_spectrum.npy")

    def band(magnitude: np.ndarray, low: float, high: float) -> np.ndarray:
        side = magnitude.shape[1]
        cycles = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None]) * side
        return magnitude[:, (cycles >= low) & (cycles < high)].mean(1)

    fall = band(ours, 2, 6) / band(ours, 12, 24)  # (3,)
    assert fall == pytest.approx(band(published, 2, 6) / band(published, 12, 24), rel=0.15)


def test_maco_takes_the_spectrum_of_the_references(network: VisionNetwork, photos: Path, tmp_path: Path) -> None:
    def magnitude(*overrides: str) -> Tensor:
        config = compose_config(["method=maco", f"cache_dir={tmp_path}", "image.scale=1", *overrides])
        pictures = pictures_of(config, network, RandomStreams(0, ["class-1"]))
        return pictures.get_buffer("magnitude")

    folder = ImageFolder(photos, network.preprocessing)
    images = [folder.load(path) for path in readable(folder)]
    twin = magnitude_spectrum(images, SIDE)
    root = f"references.root={photos}"
    torch.testing.assert_close(magnitude("references=folder", root), twin)
    torch.testing.assert_close(magnitude("references=folder", root, "target.index=3"), twin)  # the same for all targets
    assert len(list((tmp_path / "spectra").iterdir())) == 1
    drawn = magnitude("references=embedded")
    assert torch.equal(drawn, magnitude("references=folder", root, "image.magnitude=embedded"))
    assert not torch.allclose(drawn, twin, rtol=0.1)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_text("no picture")
    with pytest.raises(UsageError, match=r"references.root=.*none of its 1 images can be read \(a.png"):
        references_magnitude(str(tmp_path / "broken"), SIDE, Preprocessing(), None, None, tmp_path)
