"""What an atlas's pages load: shards, parts and thumbnails, written only where units changed."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.synthetic_atlas import write_atlas
from vital_exp.atlases.measure_words import MAP_COLUMNS, WORDS, measures
from vital_exp.atlases.site import FORMAT, write_site
from vital_exp.atlases.site_data import PART, SHARD, input_size, layer_folders, reading, rounded
from vital_exp.atlases.store import DONE, MEASURES, STRONGEST, Entry, FacetRow, ImageRow, NeighbourRow, UnitRow
from vital_exp.atlases.thumbnails import COLUMNS, IMAGES, PICTURE, SPRITE, made_thumbnails, thumbnail_path

MOST = 2_000_000  # bytes of any file that a page loads


def script(folder: Path, key: str) -> Any:
    """The value that a script hands to the page."""
    text = (folder / f"data/{key}.js").read_text(encoding="utf-8")
    head = f"vitalAtlas.add({json.dumps(key)},"
    assert text.startswith(head)
    assert text.endswith(");\n")
    return json.loads(text[len(head) : -3])


def times(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_the_data_are_those_of_the_store(tmp_path: Path) -> None:
    store = write_atlas(tmp_path, {"conv1": 40, "layer1.0": 50})
    write_site(tmp_path)
    layers = script(tmp_path, "entrance")["layers"]
    assert [(one["layer"], one["done"], one["mined"], one["failed"]) for one in layers] == [
        ("conv1", 38, 1, 1),
        ("layer1.0", 46, 2, 2),
    ]
    units = store.units("layer1.0")
    found = script(tmp_path, "layer1.0/measures-0")
    assert found["measures"]["clarity"] == [None if one.clarity is None else rounded(one.clarity) for one in units]
    assert found["status"] == "".join(one.status[0] for one in units)
    assert script(tmp_path, "layer1.0/names-0")["names"] == [one.name or "" for one in units]
    shard = script(tmp_path, f"layer1.0/{40 // SHARD}")
    assert list(map(int, shard)) == [one.unit for one in units if one.unit // SHARD == 40 // SHARD]
    images = store.images("layer1.0", 40)
    assert [one["file"] for one in shard["40"]["images"]] == [one.file for one in images]
    assert shard["40"]["classes"] == [[one.name, rounded(one.value)] for one in store.classes("layer1.0", 40)]
    names = {("conv1", one.unit): one.name or "" for one in store.units("conv1")}
    fed = [one for one in shard["40"]["neighbours"] if one[0] == "input"]
    assert fed
    assert all(name == names[layer, unit] for _, layer, unit, _, name, _ in fed)
    assert all(path.stat().st_size < MOST for path in tmp_path.rglob("*") if path.name != "atlas.sqlite")


def test_pages_of_an_atlas_name_no_folder_of_this_machine(tmp_path: Path) -> None:
    write_atlas(tmp_path, {"conv1": 3})
    write_site(tmp_path)
    texts = [
        path.read_text(encoding="utf-8") for path in tmp_path.rglob("*") if path.suffix in (".js", ".html", ".css")
    ]
    assert not [text for text in texts if "/somewhere" in text or str(tmp_path) in text]


def test_only_what_changed_is_written_again(tmp_path: Path) -> None:
    store = write_atlas(tmp_path, {"conv1": 5, "layer1.0": 70})
    write_site(tmp_path)
    before = times(tmp_path)
    write_site(tmp_path)
    assert {name for name, time in times(tmp_path).items() if before.get(name) != time} == {"data/entrance.js"}
    store.write(Entry(UnitRow("layer1.0", 9, DONE)))  # was mined
    write_site(tmp_path)
    changed = {name for name, time in times(tmp_path).items() if before.get(name) != time}
    own = {"0.js", "0.webp", "names-0.js", "measures-0.js", "exported.json"}
    assert changed == {"atlas.sqlite", "data/entrance.js", *(f"data/layer1.0/{name}" for name in own)}
    store.update("layer1.0", {"name": {1: "new"}})  # no status changes
    write_site(tmp_path, everything=True)
    assert script(tmp_path, "layer1.0/names-0")["names"][1] == "new"


def test_data_of_another_format_are_written_again(tmp_path: Path) -> None:
    write_atlas(tmp_path, {"conv1": 3})
    write_site(tmp_path)
    exported = tmp_path / "data/conv1/exported.json"
    for text in (json.dumps({"format": FORMAT - 1, "units": {"0": DONE}}), "[]", "broken"):
        exported.write_text(text)
        (tmp_path / "data/conv1/0.js").unlink()
        write_site(tmp_path)
        assert len(script(tmp_path, "conv1/0")) == 3


def test_units_far_apart_are_in_parts_of_their_own(tmp_path: Path) -> None:
    store = write_atlas(tmp_path, {"conv1": 0})
    store.write(*(Entry(UnitRow("conv1", unit, DONE, clarity=0.5)) for unit in (3, PART + 1)))
    write_site(tmp_path)
    assert script(tmp_path, "entrance")["layers"][0]["parts"] == [0, 1]
    assert script(tmp_path, "conv1/names-1")["units"] == [PART + 1]
    assert list(script(tmp_path, f"conv1/{(PART + 1) // SHARD}")) == [str(PART + 1)]


def test_numbers_that_are_none_are_left_out(tmp_path: Path) -> None:
    store = write_atlas(tmp_path, {"conv1": 0})
    store.write(Entry(UnitRow("conv1", 0, DONE, clarity=float("inf"), mean=1 / 3)))
    write_site(tmp_path)
    assert script(tmp_path, "conv1/measures-0")["measures"] == {"clarity": [None], "mean": [0.3333]}
    assert [one["key"] for one in script(tmp_path, "entrance")["measures"]] == ["clarity", "mean"]


def picture(path: Path, colours: tuple[str, str], size: tuple[int, int] = (200, 100)) -> str:
    """A picture whose left half has the first colour, the right half the second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made = Image.new("RGB", size, colours[0])
    made.paste(colours[1], (size[0] // 2, 0, *size))
    made.save(path)
    return path.name


def middle(path: Path) -> tuple[int, ...]:
    with Image.open(path) as image:
        return tuple(np.asarray(image.convert("RGB"))[image.height // 2, image.width // 2].tolist())


def test_thumbnails_show_the_first_picture_and_the_windows_of_the_strongest_images(tmp_path: Path) -> None:
    store = write_atlas(tmp_path, {"conv1": 0})
    facets = [FacetRow("conv1", 33, 0), FacetRow("conv1", 33, 1, picture=picture(tmp_path / "p.png", ("red", "red")))]
    file = picture(tmp_path / "i.png", ("red", "blue"))
    images = [ImageRow("conv1", 33, STRONGEST, 1, "i", 1.0, file=file, box=(112, 0, 224, 224))]  # the right half
    store.write(Entry(UnitRow("conv1", 33, DONE), facets, images))
    write_site(tmp_path)
    assert made_thumbnails(tmp_path, "conv1", 33) == PICTURE + IMAGES
    for what, colour in ((PICTURE, (255, 0, 0)), (IMAGES, (0, 0, 255))):
        assert middle(thumbnail_path(tmp_path, "conv1", 33, what)) == pytest.approx(colour, abs=12)
    with Image.open(tmp_path / "data/conv1/1.webp") as sprite:
        assert sprite.size == (COLUMNS * SPRITE, SHARD // COLUMNS * SPRITE)
        tile = np.asarray(sprite.convert("RGBA"))[SPRITE // 2, [SPRITE // 2, SPRITE + SPRITE // 2]]
    assert tile[0, 3] == 0  # unit 32 is not there
    assert tile[1].tolist() == pytest.approx([255, 0, 0, 255], abs=12)


def test_a_missing_and_a_broken_picture_cost_only_their_thumbnail(tmp_path: Path) -> None:
    store = write_atlas(tmp_path, {"conv1": 0})
    (tmp_path / "broken.png").write_bytes(b"no picture")
    for unit, name in enumerate(("broken.png", "missing.png", picture(tmp_path / "p.png", ("red", "red")))):
        store.write(Entry(UnitRow("conv1", unit, DONE), [FacetRow("conv1", unit, 0, picture=name)]))
    write_site(tmp_path)
    assert script(tmp_path, "conv1/measures-0")["made"] == "001"


def test_a_newer_picture_has_a_new_thumbnail(tmp_path: Path) -> None:
    store = write_atlas(tmp_path, {"conv1": 0})
    for colour in ("red", "blue"):
        name = picture(tmp_path / "p.png", (colour, colour))
        store.write(Entry(UnitRow("conv1", 0, DONE), [FacetRow("conv1", 0, 0, picture=name)]))
        write_site(tmp_path, everything=True)
    assert middle(thumbnail_path(tmp_path, "conv1", 0, PICTURE)) == pytest.approx((0, 0, 255), abs=12)


def test_units_of_an_autoencoder_are_called_features(tmp_path: Path) -> None:
    store = write_atlas(tmp_path, {"conv1": 2, "layer1.0": 2})
    store.write_layers([replace(store.layers()[1], kind="sae")])
    write_site(tmp_path)
    assert [one["kind"] for one in script(tmp_path, "entrance")["layers"]] == ["channel", "feature"]


def test_folders_of_layers_are_safe_and_never_shared(tmp_path: Path) -> None:
    rows = [{"layer": name, "position": place} for place, name in enumerate(("a/b", "a_b", "A_B", "..", "net.é"))]
    found = layer_folders(rows)
    assert list(found.values()) == ["a_b", "a_b-1", "A_B-2", "layer", "net._"]


def test_a_neighbour_of_a_layer_outside_the_atlas_is_known_to_be_outside(tmp_path: Path) -> None:
    store = write_atlas(tmp_path, {"conv1": 0})
    beside = [NeighbourRow("conv1", 0, "input", 1, "stem", 4, 0.5)]
    store.write(Entry(UnitRow("conv1", 0, DONE), neighbours=beside))
    write_site(tmp_path)
    assert script(tmp_path, "conv1/0")["0"]["neighbours"] == [["input", "stem", 4, 0.5, "", -1]]


@pytest.mark.parametrize(
    ("value", "size"), [(None, []), (64, [64, 64]), ([3, 32, 48], [32, 48]), ([224, 160], [224, 160])]
)
def test_the_input_s_size_is_read_from_a_number_or_a_shape(value: Any, size: list[int]) -> None:
    assert input_size({} if value is None else {"input": value}) == size


def test_every_measure_of_the_store_has_words() -> None:
    assert {one.key for one in measures()} == set(MEASURES) - set(MAP_COLUMNS)
    assert set(WORDS) == set(MEASURES) - set(MAP_COLUMNS)


def test_an_atlas_is_read_while_it_is_written(tmp_path: Path) -> None:
    store = write_atlas(tmp_path, {"conv1": 3}, finished=False)
    with reading(tmp_path) as reader:
        assert len(reader.statuses("conv1")) == 3
        store.write(Entry(UnitRow("conv1", 50, DONE)))
        assert len(reader.statuses("conv1")) == 4
        with pytest.raises(sqlite3.OperationalError):
            reader.connection.execute("DELETE FROM units")
