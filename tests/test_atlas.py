"""The atlas of a tiny network against brute force: every activation computed and compared by numpy."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import vital_exp
from tests.tiny import exit_code, image_folder, tiny_net
from vital_exp.atlases.compare import ASSIGNMENT, SAME, compare, match_units
from vital_exp.atlases.edges import find_edges
from vital_exp.atlases.layer_run import LayerRun
from vital_exp.atlases.measures import Clarities
from vital_exp.atlases.places import PCA, method_of, places
from vital_exp.atlases.profiles import Profile, most_alike
from vital_exp.atlases.request import AtlasRequest, Part
from vital_exp.atlases.run import AtlasRun
from vital_exp.atlases.store import DONE, FAILED, MEMBER, STRONGEST, Store
from vital_exp.atlases.windows import MEMBERS_SHOWN
from vital_exp.commands.atlas import main
from vital_exp.commands.hydra_app import MISTAKE, SOME_FAILED
from vital_exp.commands.mine import main as mine
from vital_exp.concepts.concepts import Concepts
from vital_exp.config import compose_config
from vital_exp.errors import UsageError
from vital_exp.mining.index import Index
from vital_exp.mining.joined import join_indices
from vital_exp.models.loading import wrap
from vital_exp.models.model_config import ModelConfig
from vital_exp.visualization.ranks import Ranks

CLASSES = ["cat", "dog", "fox", "owl"]
LAYERS = ["conv1", "layer1.0", "output"]
WIDTH = 4
SHORT = ("steps=2", "shown=5", "workers=0", "progress=false", "map=pca", "trainer.accelerator=cpu")
# Few images: references are fewer than asked for, and facets one.
pytestmark = pytest.mark.filterwarnings("ignore::vital_exp.references.folder.ReferenceWarning")
SIDE, COUNT = 32, 10  # px; images of each class


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos of four classes, and the network's code, weights and names."""
    root = tmp_path_factory.mktemp("place")
    image_folder(root / "photos", CLASSES, COUNT, side=SIDE)
    (root / "photos" / "cat" / "broken.png").write_text("no picture")
    (root / "net.py").write_text("from tests.tiny import tiny_net as build\n")
    save_file(tiny_net(width=WIDTH).state_dict(), root / "weights.safetensors")
    return root


def asked(place: Path, *more: str) -> list[str]:
    own = ["model=python", f"model.factory={place}/net.py:build", f"model.checkpoint={place}/weights.safetensors"]
    own += [
        f"model.arguments.width={WIDTH}",
        f"model.size={SIDE}",
        f"model.class_names=[{','.join(CLASSES)}]",
        f"cache_dir={place}/cache",
    ]
    photos = [] if any(one.startswith("images=") for one in more) else [f"images={place}/photos"]
    return [*own, *photos, *SHORT, *more]


def made(place: Path, out: Path, *more: str) -> Store:
    """Make an atlas, or go on with one."""
    config = compose_config(asked(place, *more), "atlas")
    return AtlasRun(AtlasRequest.of(config), out, Ranks(), asked(place, *more)).run()


@pytest.fixture(scope="module")
def store(place: Path) -> Store:
    return made(place, place / "atlas", f"layers=[{','.join(LAYERS)}]")


def activations(store: Store) -> dict[str, np.ndarray[Any, Any]]:
    """Every unit's largest activation by every image that can be read, (N, U), computed anew."""
    return {layer: values.max((2, 3)) for layer, values in activation_maps(store).items()}


def activation_maps(store: Store) -> dict[str, np.ndarray[Any, Any]]:
    """The activations (N, U, H, W) of every layer by every image that can be read."""
    network, found = tiny_net(width=WIDTH), {}
    folder = Path(store.meta()["folder"])
    paths = [path for path in sorted(folder.glob("*/*.png")) if path.stem != "broken"]
    pixels = torch.stack([torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) for path in paths]) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = (pixels - mean[:, None, None]) / std[:, None, None]
    with torch.no_grad():
        found["conv1"] = network.conv1(x)
        found["layer1.0"] = network.layer1[0](network.bn1(found["conv1"]).relu())
        found["layer1.0"] = found["layer1.0"].clone()
        found["output"] = network.fc(found["layer1.0"].relu().mean((2, 3)))[..., None, None]
    return {layer: values.double().numpy() for layer, values in found.items()}


def test_layers_in_the_order_of_the_network(store: Store) -> None:
    rows = {row.layer: row for row in store.layers()}
    assert list(rows) == LAYERS
    assert [(row.kind, row.units, row.height, row.width) for row in rows.values()] == [
        *(("channel", 4, 16, 16), ("channel", 8, 8, 8), ("class", 4, 1, 1))
    ]
    assert rows["conv1"].feeds == ("layer1.0",)
    assert rows["layer1.0"].feeds == ("output",)
    assert rows["output"].feeds == ()
    edges = store.meta()["edges"]
    assert edges == {"conv1->layer1.0": "weights", "layer1.0->output": "weights"}
    assert store.meta()["finished"] is True


@pytest.mark.parametrize("layer", LAYERS)
def test_profiles_and_statistics_are_those_of_all_activations(store: Store, layer: str) -> None:
    twin = activations(store)[layer]
    profile = Profile.open(store.folder, layer, "folder")
    assert len(profile.rows) == len(CLASSES) * COUNT
    assert profile.values.shape[0] == len(CLASSES) * COUNT + 1  # the broken one is NaN
    np.testing.assert_allclose(profile.block(0, len(profile)), twin, rtol=2e-3, atol=1e-3)
    for row in store.units(layer):
        own = twin[:, row.unit]
        known = [row.mean, row.deviation, row.density, row.maximum]
        np.testing.assert_allclose(
            np.array(known, dtype=float), [own.mean(), own.std(), (own > 0).mean(), own.max()], rtol=5e-3, atol=1e-3
        )
        assert sum(row.histogram["counts"]) == len(own)  # type: ignore[index]
        owners = np.repeat(CLASSES, COUNT)
        means = {name: own[owners == name].mean() for name in CLASSES}
        found = {one.name: one.value for one in store.classes(layer, row.unit)}
        assert list(found) == sorted(means, key=lambda name: -found[name])
        assert found == pytest.approx(means, rel=5e-3, abs=1e-3)


@pytest.mark.parametrize("layer", LAYERS)
def test_similar_units_are_those_that_correlate_most(store: Store, layer: str) -> None:
    with np.errstate(invalid="ignore"):
        twin = np.nan_to_num(np.corrcoef(activations(store)[layer].T))
    np.fill_diagonal(twin, -1)
    for row in store.units(layer):
        found = [one for one in store.neighbours(layer, row.unit) if one.kind == "similar"]
        assert [one.rank for one in found] == list(range(1, len(found) + 1))
        values = np.sort(twin[row.unit])[::-1][: len(found)]
        np.testing.assert_allclose([one.value for one in found], values, atol=5e-3)
        for one in found:
            assert twin[row.unit, one.other_unit] == pytest.approx(one.value, abs=5e-3)


def test_neighbours_by_weights_are_the_largest_weights(store: Store) -> None:
    network = tiny_net(width=WIDTH)
    kernel = network.layer1[0].weight.detach().double().square().sum((2, 3)).sqrt().numpy()  # type: ignore[operator, union-attr]
    inputs = [one for one in store.neighbours("layer1.0", 3) if one.kind == "input"]
    assert [one.other_unit for one in inputs] == np.argsort(-kernel[3]).tolist()
    np.testing.assert_allclose([one.value for one in inputs], np.sort(kernel[3])[::-1], rtol=1e-5)
    outputs = [one for one in store.neighbours("conv1", 2) if one.kind == "output"]
    assert [one.other_unit for one in outputs] == np.argsort(-kernel[:, 2])[:8].tolist()
    weights = network.fc.weight.detach().numpy()
    classes = [one for one in store.neighbours("output", 2) if one.kind == "input"]
    assert [one.other_unit for one in classes] == np.argsort(-np.abs(weights[2]))[:8].tolist()
    assert classes[0].value == pytest.approx(float(weights[2, classes[0].other_unit]))  # with its sign


def test_edges_of_a_network_with_branches() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.left, self.right = (nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))
            self.join, self.mixed = nn.Conv2d(4, 5, 1), nn.Conv2d(4, 4, 1, groups=2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            both = self.left(x).relu_() + self.right(x.flip(1)).relu()
            return self.mixed(self.join(both)[:, :4]).mean((2, 3))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = wrap(Branches().eval(), ModelConfig(size=8))
    found = {(one.source, one.end): one.by for one in find_edges(network, ["stem", "left", "right", "join", "mixed"])}
    assert found == {
        ("stem", "left"): "weights",
        ("stem", "right"): "activation",  # its channels come in another order
        ("left", "join"): "weights",
        ("right", "join"): "weights",
        ("join", "mixed"): "activation",  # groups, and other channels
    }


def test_units_are_done_with_pictures_images_and_measures(store: Store) -> None:
    rows = store.units()
    assert len(rows) == 4 + 8 + 4
    assert {row.status for row in rows} == {DONE}
    for row in rows:
        facets = store.facets(row.layer, row.unit)
        assert [one.facet for one in facets] == list(range(len(facets)))
        for facet in facets:
            for file, mode in ((facet.picture, "RGB"), (facet.masked, "RGBA")):
                with Image.open(store.folder / str(file)) as picture:
                    assert picture.mode == mode
            if row.maximum and row.maximum > 0:
                assert facet.activation_ratio == pytest.approx(facet.activation / row.maximum)  # type: ignore[operator]
            assert (facet.probability is not None) == (row.layer == "output")
            assert (facet.share is not None) == (row.layer != "output")
        assert row.coherence == facets[0].coherence
        assert row.clarity is not None
        assert -1 <= row.clarity <= 1.001
        assert row.polysemanticity is not None
        assert row.redundancy is not None
        assert row.redundancy <= 1.001
        assert row.correspondence is None  # without a judge
        assert 0 <= row.map_x <= 1  # type: ignore[operator]


def test_images_of_a_unit(store: Store) -> None:
    twin = activations(store)["layer1.0"]
    paths = [f"{name}/{number}.png" for name in CLASSES for number in range(COUNT)]
    for unit in range(8):
        rows = store.images("layer1.0", unit)
        best = [row for row in rows if row.kind == STRONGEST]
        assert [row.path for row in best] == [paths[place] for place in np.argsort(-twin[:, unit], kind="stable")[:5]]
        members = [row for row in rows if row.kind == MEMBER]
        assert len(rows) - len(members) == 10
        for facet in store.facets("layer1.0", unit):
            own = [row for row in (*best, *members) if row.facet == facet.facet]
            assert 0 < len(own) <= MEMBERS_SHOWN
            assert all(row.file and (store.folder / row.file).is_file() for row in own)
        assert not {row.path for row in members} & {row.path for row in best}
        facets = {row.facet for row in best} - {None}
        assert facets <= {facet.facet for facet in store.facets("layer1.0", unit)}
        for row in rows:
            with Image.open(store.folder / str(row.file)) as image:
                assert image.size == (192, 192)
            assert (row.overlay is None) == (row.kind != STRONGEST)
        with Image.open(store.folder / str(best[0].overlay)) as overlay:
            assert max(overlay.size) == 160
        x0, y0, x1, y1 = best[0].box or (0, 0, 0, 0)
        assert 0 < x1 - x0 == y1 - y0 <= SIDE


def test_the_site_is_there(store: Store) -> None:
    assert {"index.html", "layer.html", "unit.html"} <= {path.name for path in store.folder.iterdir()}
    shared = "vital-visualize model=python model.factory=net.py:build model.checkpoint=weights.safetensors"
    shared += f" model.arguments.width={WIDTH} model.size={SIDE} 'model.class_names=[cat,dog,fox,owl]' steps=2"
    shared += " trainer.accelerator=cpu references.root=photos method=vital_fourier"
    assert store.meta()["commands"] == {
        **{name: f"{shared} target=channel target.layer={name} target.index={{unit}}" for name in LAYERS[:2]},
        "output": f"{shared} target=class target.index={{unit}}",
    }
    assert store.meta()["planned"] == {"conv1": 4, "layer1.0": 8, "output": 4}


def test_an_atlas_in_python(store: Store) -> None:
    atlas = vital_exp.atlas(store.folder)
    pandas = pytest.importorskip("pandas")
    assert isinstance(atlas.units, pandas.DataFrame)
    assert len(atlas.units) == 16
    assert atlas.units.set_index(["layer", "unit"]).clarity.dtype == "float64"
    pictures = atlas.pictures("conv1", 3)
    assert len(pictures) == len(store.facets("conv1", 3))
    assert np.array(pictures[0]).std() > 0
    assert atlas.pictures("conv1", 3, masked=True)[0].mode == "RGBA"
    assert {row.kind for row in atlas.neighbours("conv1", 3)} == {"similar", "output"}
    assert [row.layer for row in atlas.layers] == LAYERS
    assert "16 of 16 units done" in repr(atlas)
    assert atlas._repr_html_().count("<img") == 12
    with pytest.raises(UsageError, match=r"^layer=conv2: the atlas has conv1, .* \(did you mean conv1"):
        atlas.pictures("conv2", 0)
    with pytest.raises(UsageError, match=r"^unit=99: of conv1 the atlas does not have it$"):
        atlas.neighbours("conv1", 99)
    with pytest.raises(UsageError, match=r"^folder=.*photos: no atlas.sqlite there"):
        vital_exp.atlas(store.folder.parent / "photos")


def files(out: Path) -> dict[str, int]:
    return {str(path.relative_to(out)): path.stat().st_mtime_ns for path in (out / "pictures").rglob("images/*.png")}


def test_wide_layers_are_mined_in_parts(
    place: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vital_exp.atlases.mined_layers.UNITS_PER_PASS", 3)
    out, joined, own = tmp_path / "atlas", [], ("pictures=none", f"layers=[{','.join(LAYERS)}]")

    def interrupted(*given: Any) -> Index:
        if joined:
            raise KeyboardInterrupt
        joined.append(given)
        return join_indices(*given)

    with monkeypatch.context() as patch:
        patch.setattr("vital_exp.atlases.mined_layers.join_indices", interrupted)
        with pytest.raises(KeyboardInterrupt):
            made(place, out, *own)
    before = mined_at(out)
    parts = made(place, out, *own)
    after = mined_at(out)
    assert len(after) == len(LAYERS)
    assert after.items() >= {name: file for name, file in before.items() if name in after}.items()
    assert len(after.keys() & before.keys()) == 1  # joined before the interruption, and not mined again
    for layer in LAYERS:
        whole, one = (Index.open(each.folder / each.meta()["indices"][layer]) for each in (store, parts))
        assert one.meta["fields"][layer] == whole.meta["fields"][layer]
        assert one.corrupt == whole.corrupt
        for unit in range(len(Profile.open(out, layer, "folder"))):
            assert one.top(layer, unit) == whole.top(layer, unit)
            assert one.bottom(layer, unit) == whole.bottom(layer, unit)
            assert one.histogram(layer, unit) == whole.histogram(layer, unit)
        values = [Profile.open(each.folder, layer, "folder").values for each in (store, parts)]
        assert np.array_equal(*values, equal_nan=True)


def mined_at(out: Path) -> dict[str, int]:
    """The file of each index of an atlas: one that is written again is another file."""
    return {path.parent.name: path.stat().st_ino for path in (out / "mining").glob("*/index.sqlite")}


def test_interrupted_resumed_extended_and_refreshed(
    place: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, own = tmp_path / "atlas", ("layers=[layer1.0]",)
    chunk, calls = LayerRun._make, []

    def interrupted(self: Any, units: Sequence[int]) -> None:
        if calls:
            raise KeyboardInterrupt
        calls.append(units)
        chunk(self, units)

    with monkeypatch.context() as patch:
        patch.setattr(LayerRun, "_make", interrupted)
        patch.setattr("vital_exp.atlases.layer_run.UNITS_AT_ONCE", 3)
        with pytest.raises(KeyboardInterrupt):
            made(place, out, *own, "units=0-4")
    half = Store(out)
    assert sorted(half.statuses("layer1.0").values()) == [DONE] * 3 + ["mined"] * 2
    assert half.meta()["finished"] is False
    before = files(out)
    made(place, out, *own, "units=0-4")
    assert {name: time for name, time in files(out).items() if name in before} == before  # nothing is made twice
    assert set(half.statuses("layer1.0").values()) == {DONE}
    made(place, out, *own)  # the other units are added
    assert half.count() == 8
    pictures = {one.picture for one in half.facets()}
    assert pictures == {one.picture for one in store.facets("layer1.0")}
    for name in pictures:  # the same as of an atlas that was never interrupted
        assert (out / str(name)).read_bytes() == (store.folder / str(name)).read_bytes()
    assert [row.clarity for row in half.units()] == [row.clarity for row in store.units("layer1.0")]
    before = files(out)
    made(place, out, *own, "refresh=3")
    changed = {name for name, time in files(out).items() if before[name] != time}
    assert {name.rpartition("-")[2].partition("_")[0] for name in changed} == {"3"}
    made(place, out, "layers=[conv1]", "pictures=none")  # another layer, mined by itself, without pictures
    assert [row.layer for row in half.layers()] == ["conv1", "layer1.0"]
    assert {one.picture for one in half.facets("conv1")} == {None}
    assert half.count() == 12
    assert half.meta()["edges"] == {"conv1->layer1.0": "weights"}


def test_units_are_named_by_words(place: Path, tmp_path: Path, tiny_clip: dict[str, Any]) -> None:
    (tmp_path / "words.txt").write_text("\n".join(CLASSES))
    keys = {**tiny_clip, "vocabulary": tmp_path / "words.txt"}
    clip = [f"naming.clip.{key}={value}" for key, value in keys.items()]
    found = made(place, tmp_path / "atlas", "layers=[conv1]", "pictures=none", "facets=1", "naming.words=true", *clip)
    assert {row.name for row in found.units()} <= set(CLASSES)
    assert {row.name_score for row in found.units()} == {None}
    assert {row.status for row in found.units()} == {DONE}


def test_a_unit_that_fails_says_why_and_the_others_go_on(
    place: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vital_exp.atlases.mined_layers.UNITS_PER_PASS", 2)  # so the three features are mined in parts
    stream = torch.Generator().manual_seed(0)
    encoder, bias = torch.randn(3, 8, generator=stream), torch.tensor([0.0, -1e6, 0.0])
    save_file({"encoder.weight": encoder, "encoder.bias": bias}, workplace / "sae.safetensors")
    more = ["sae=sae.safetensors", "autoencoder.format=plain", "autoencoder.activation=relu", "layers=[layer1.0]"]
    assert exit_code(main, *asked(place, *more, "judge=null", "hydra.run.dir=atlas")) == SOME_FAILED
    found = Store.open("atlas")
    statuses = [row.status for row in found.units()]
    assert statuses[1] == FAILED
    assert DONE in statuses
    assert "no image activates this feature" in str(found.units("layer1.0", 1)[0].error)
    assert found.layers()[0].kind == "sae"
    assert found.facets("layer1.0", 0)[0].picture is not None


def test_concepts_are_units(place: Path, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = [word for word in asked(place) if word.startswith(("model", "images", "workers", "progress", "cache_dir"))]
    found = ["concepts=pca", "concepts.count=3", "layers=[layer1.0]", "k=5", "hydra.run.dir=found"]
    assert exit_code(mine, *own, "trainer.accelerator=cpu", *found) == 0
    assert exit_code(main, *asked(place, "concepts=found", "facets=1", "judge=null", "hydra.run.dir=atlas")) == 0
    store = Store.open("atlas")
    (layer,) = store.layers()
    assert (layer.layer, layer.kind, layer.units) == ("layer1.0", "concept", 3)
    assert [row.status for row in store.units()] == [DONE] * 3
    assert all(row.picture for row in store.facets())
    directions = Concepts.open("found").factors.directions.double().numpy()
    maps = activation_maps(store)["layer1.0"]
    twin = np.einsum("nchw,kc->nkhw", maps, directions).max((2, 3))
    profile = Profile.open(store.folder, "layer1.0", "folder")
    np.testing.assert_allclose(profile.block(0, 3), twin, rtol=5e-3, atol=5e-3)
    command = "target=concept target.layer=layer1.0 target.index={unit} target.concepts=found"
    assert store.meta()["commands"]["layer1.0"].endswith(command)
    capsys.readouterr()
    assert exit_code(main, *asked(place, "concepts=found", "layers=[conv1]")) == MISTAKE
    assert "layers=['conv1']: the concepts of found are of layer1.0" in capsys.readouterr().err


def test_circuits_and_audits_are_linked_on_the_pages_of_their_units(
    place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    atlas, more = tmp_path / "atlas", ("layers=[conv1,layer1.0]", "units=0-1", "facets=1")
    made(place, atlas, *more)
    for name, run in (("own", atlas / "pictures" / "layer1.0"), ("other", tmp_path / "elsewhere")):
        audited = atlas / "audits" / name
        audited.mkdir(parents=True)
        content = {"check": "silent_units", "verdicts": ["nothing was led astray"], "runs": [str(run)]}
        (audited / "audit.json").write_text(json.dumps(content))
        (audited / "audit.csv").write_text("target,failed\nchannel-layer1.0-1,0.0\n")
    (atlas / "audits" / "torn").mkdir()
    (atlas / "audits" / "torn" / "audit.json").write_text("{")
    circuit = ("circuits=['layer1.0:0']", "overrides=['target.width=1']")
    with pytest.raises(UsageError, match="circuits"):
        made(place, tmp_path / "none", *more, "circuits=[output:0]")
    assert not (tmp_path / "none").exists()
    found = made(place, atlas, *more, *circuit)
    line = {"check": "silent units", "verdict": "nothing was led astray", "page": "audits/own/report.html"}
    assert found.meta()["audits"] == {"layer1.0/1": [line]}
    assert found.meta()["circuits"] == {"layer1.0/0": "circuits/layer1.0-0/circuit.html"}
    assert (atlas / "circuits/layer1.0-0/circuit.html").is_file()
    shard = next((atlas / "data").glob("layer1.0*/0.js")).read_text()
    assert "circuits/layer1.0-0/circuit.html" in shard
    assert "audits/own/report.html" in shard
    assert [name for name in ("other", "torn") if f"audits/{name}" in caplog.text] == ["other", "torn"]


def test_an_activation_atlas_has_a_picture_for_each_cell(place: Path, tmp_path: Path) -> None:
    out, own = tmp_path / "atlas", ("layers=[layer1.0]", "units=0", "facets=1", "activation_atlas=layer1.0")
    made(place, out, *own)
    found = json.loads((out / "cells/layer1.0/cells.json").read_text())
    assert found["vectors"] == len(CLASSES) * COUNT
    assert sum(cell["vectors"] for cell in found["cells"]) <= found["vectors"]
    assert all(cell["vectors"] >= 2 and 0 <= cell["channel"] < 8 for cell in found["cells"])
    pictures = {out / cell["picture"]: (out / cell["picture"]).stat().st_mtime_ns for cell in found["cells"]}
    assert len(pictures) == len(found["cells"]) > 1
    made(place, out, *own)
    assert all(path.stat().st_mtime_ns == time for path, time in pictures.items())  # made once
    assert '"cells":true' in (out / "data/entrance.js").read_text()
    assert all(f"thumbnails/layer1.0/cell-{n}.webp" in (out / "data/layer1.0/cells.js").read_text() for n in (0, 1))


MISTAKES = [
    (("layers=[layer9]",), "layers=layer9: no such layer in the network; list=layers prints them (did you mean"),
    (("layers=[conv1,conv1]",), "layers=['conv1', 'conv1']: different layers, at least one"),
    (("layers=[conv1]", "units=4"), "units=4: is not one of the 4 channels of conv1, 0 to 3"),
    (("layers=[conv1]", "refresh=x"), "refresh=x: is not one of the 4 channels"),
    (("images=nowhere",), "images=nowhere: does not exist; give a folder of images"),
    (("images=empty",), "images=empty: holds no image"),
    (("layers=[conv1]", "method=vitall"), "pictures=vitall: one of"),
    (("channels=0-3",), "channels=0-3: no such key (did you mean units?)"),
    (("map=tsne",), "map=tsne: one of auto, umap, pca"),
    (("facets=0",), "facets=0: must be auto, or a whole number"),
    (("shown=0",), "shown=0: a whole number of at least 1"),
    (("layers=[conv1]", "circuits=[layer1.0:2]"), "circuits=layer1.0:2: a channel or class of this atlas, conv1:"),
    (("layers=[conv1]", "circuits=[conv1:9]"), "circuits=conv1:9: a channel or class of this atlas"),
    (("layers=[conv1]", "circuits=[class:bat]"), "circuits=bat: "),
    (("layers=[conv1]", "activation_atlas=layer1.0"), "activation_atlas=layer1.0: a hidden layer of this atlas: conv1"),
    (("layers=[output]", "activation_atlas=output"), "activation_atlas=output: a hidden layer of this atlas: there is"),
    (("layers=[conv1]", "activation_atlas=conv1", "method=none"), "activation_atlas=['conv1']: each cell is a picture"),
    (("sae=a", "concepts=b"), "sae=a: either sae or concepts"),
    (("concepts=empty",), "concepts=empty: no concepts.safetensors there"),
    (("layers=[conv1]", "judge=nothing9"), "judge=nothing9: neither an option of the group model"),
    (("compare=[empty,empty]",), "compare=empty: no atlas.sqlite there; vital-atlas writes one"),
    (("compare=empty",), "compare=empty: two folders of atlases, [before,after]"),
    (("layers=[conv1]", "hydra.run.dir=file/atlas"), "hydra.run.dir="),
]


@pytest.mark.parametrize(("given", "told"), MISTAKES)
def test_mistakes_are_told_in_one_line(
    given: Sequence[str], told: str, place: Path, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (workplace / "empty").mkdir()
    (workplace / "file").write_text("")
    assert exit_code(main, *asked(place, *given)) == MISTAKE
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith(f"vital-atlas: {told}")
    assert not any("Traceback" in line for line in lines)


def test_the_folder_of_another_atlas_is_refused(
    place: Path, store: Store, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = f"hydra.run.dir={store.folder}"
    other = tiny_net(width=WIDTH)
    other.conv1.weight.data.mul_(1.5)
    save_file(other.state_dict(), workplace / "other.safetensors")
    given = [one for one in asked(place, "layers=[conv1]", here) if not one.startswith("model.checkpoint=")]
    assert exit_code(main, *given, "model.checkpoint=other.safetensors") == MISTAKE
    assert "holds a finished atlas of another network (" in capsys.readouterr().err
    image_folder(workplace / "more", CLASSES, 5, side=SIDE)
    assert exit_code(main, *asked(place, "layers=[conv1]", here, "images=more")) == MISTAKE
    assert f"holds a finished atlas of another folder ({place}/photos; now" in capsys.readouterr().err
    store.set_meta({"finished": False})
    assert exit_code(main, *asked(place, "layers=[conv1]", here, "images=more")) == MISTAKE
    assert "holds an unfinished atlas of another folder" in capsys.readouterr().err
    store.set_meta({"finished": True})


def test_a_dry_run_makes_nothing(place: Path, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(main, *asked(place, "layers=[conv1,output]", "units=0-2", "dry_run=true")) == 0
    told = capsys.readouterr().out
    assert "layers   conv1 (3 of 4 units), output (3 of 4 units)" in told
    assert "about 12 by vital_fourier, 2 steps" in told
    assert "for mining, then about" in told
    assert list(workplace.iterdir()) == []


# Profiles, maps, matching


def profile(values: np.ndarray[Any, Any]) -> Profile:
    return Profile(values.astype(np.float16), np.arange(len(values)))


def test_a_unit_that_never_changes_has_no_neighbours() -> None:
    values = np.random.default_rng(0).normal(size=(50, 4))
    values[:, 2] = 3.25
    found, _ = most_alike(profile(values), profile(values), 3, itself=True)
    assert found[2].tolist() == [0, 0, 0]


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=(40, 23))
    whole = most_alike(profile(values), profile(values), 5, itself=True)
    monkeypatch.setattr("vital_exp.atlases.profiles.UNITS_AT_ONCE", 4)
    parts = most_alike(profile(values), profile(values), 5, itself=True)
    torch.testing.assert_close(parts[0], whole[0])
    assert parts[1].equal(whole[1])


def test_redundancy_is_the_largest_cosine_to_another_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "profiles").mkdir()
    means = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)
    clarities = Clarities(
        wrap(tiny_net().eval(), ModelConfig(size=SIDE)), Part("a", "channel", 8, tuple(range(8))), tmp_path
    )
    there = [0, 1, 2, 4, 6, 7]
    for unit in there:
        clarities._keep(unit, torch.from_numpy(means[unit]))
    monkeypatch.setattr("vital_exp.atlases.measures.rows_at_once", lambda _width: 4)
    lengths = np.linalg.norm(means, axis=1)
    for unit, value in clarities.redundancies().items():
        twin = [means[unit] @ means[other] / lengths[unit] / lengths[other] for other in there if other != unit]
        assert value == pytest.approx(max(twin), rel=1e-5)
    assert list(clarities.redundancies()) == there


@pytest.mark.parametrize("units", [1, 2, 3, 12, pytest.param(40, marks=pytest.mark.slow)])  # UMAP compiles itself
@pytest.mark.filterwarnings("ignore")
def test_maps_are_the_same_for_a_seed(units: int) -> None:
    values = np.random.default_rng(0).normal(size=(60, units))
    values[:, : units // 2] += 5 * np.random.default_rng(1).normal(size=(60, 1))
    found = [places(profile(values), seed) for seed in (3, 3)]
    assert found[0].shape == (units, 2)
    assert np.array_equal(*found)
    assert found[0].min() >= 0
    assert found[0].max() <= 1
    assert method_of("pca", units) == PCA


def test_units_are_matched_one_to_one(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0)
    values = numbers.normal(size=(80, 6))
    order = np.array([3, 0, 5, 1, 2, 4])
    how, found = match_units(profile(values), profile(2 * values[:, order] + 1))
    assert how == ASSIGNMENT
    assert [at for at, _ in found] == np.argsort(order).tolist()
    assert [value for _, value in found] == pytest.approx([1] * 6, abs=1e-3)
    changed = values.copy()
    changed[:, 2] = numbers.normal(size=80)
    how, found = match_units(profile(values), profile(changed))
    assert how == SAME
    assert [at for at, _ in found] == list(range(6))
    assert min(range(6), key=lambda unit: found[unit][1] or 0) == 2
    _, found = match_units(profile(values), profile(values[:, :4]))
    assert [at for at, _ in found] == [0, 1, 2, 3, None, None]


def test_two_atlases_are_compared(
    place: Path, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tiny_net(width=WIDTH)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        nn.init.normal_(other.conv1.weight.data[2])
    save_file(other.state_dict(), tmp_path / "other.safetensors")
    given = [f"model.checkpoint={tmp_path}/other.safetensors", "layers=[conv1]", "pictures=none", "judge=null"]
    after = made(place, tmp_path / "after", *given)
    found = compare(store.folder, after.folder, tmp_path / "compared")
    assert found.matching == {"conv1": SAME}
    assert (found.matches[0].unit, found.matches[0].other_unit) == (2, 2)
    assert all(match.correlation > 0.999 for match in found.matches[1:])  # type: ignore[operator]
    assert found.page.is_file()
    with closing(sqlite3.connect(tmp_path / "compared" / "compare.sqlite")) as connection:
        first = connection.execute("SELECT layer, unit, change FROM matches WHERE rank = 1").fetchone()
        assert first[:2] == ("conv1", 2)
        assert connection.execute("SELECT COUNT(*) FROM matches").fetchone() == (4,)
    image_folder(tmp_path / "more", CLASSES, 5, side=SIDE)
    strange = made(place, tmp_path / "strange", *given, f"images={tmp_path}/more")
    with pytest.raises(UsageError, match=r"atlases of the same images are compared: .*photos and .*more$"):
        compare(store.folder, strange.folder, tmp_path / "compared")


def test_with_no_argument_units_of_all_layers_are_planned(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(main, "dry_run=true", "workers=0") == 0
    told = capsys.readouterr().out
    assert "output (10 units)" in " ".join(told.split())
    assert "units    60, 12 images of each on each side" in told
    assert "about 60 by vital_fourier, 100 steps" in told
