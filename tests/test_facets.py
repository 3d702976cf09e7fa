"""Facets: one picture for each of the things that a unit answers to."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from tests.processes import finish, start
from tests.test_gallery import Page
from tests.test_ranks import outside
from tests.tiny import command, exit_code, tiny_net
from vital_exp import evaluate, load_model, visualize
from vital_exp.circuits.tree import channel_relevance
from vital_exp.commands import mine as mine_command
from vital_exp.config import compose_config
from vital_exp.configuration import Configuration
from vital_exp.errors import UsageError
from vital_exp.evaluation.pictures import finished_targets
from vital_exp.images.output import to_uint8
from vital_exp.mining.index import Index
from vital_exp.models.network import VisionNetwork
from vital_exp.references.base import Candidate
from vital_exp.references.drawn import draw, draw_set
from vital_exp.references.embeddings import IMAGES_PER_PASS, Embeddings
from vital_exp.references.faceted import FacetedReferences
from vital_exp.references.facets import find_facets
from vital_exp.references.folder import FolderReferences, ReferenceWarning
from vital_exp.references.tensors import TensorReferences
from vital_exp.setup.facets import OwnEmbedding, faceted
from vital_exp.targets.class_names import ClassNames
from vital_exp.targets.selection import parse_target
from vital_exp.targets.unit import Target
from vital_exp.visualization.outcome import Pictures

SIZE = 32
SHORT = ["evaluation=none", "relevance=none", "batch_size=2", "references.count=4"]
STAR, MOON = 0, 6  # drawn classes that look unlike each other


def tiny() -> VisionNetwork:
    return load_model(tiny_net(), size=SIZE)


def two_kinds(count: int = 24) -> Tensor:
    """Dark images at even places, bright ones at odd places, (count, 3, H, W)."""
    noise = torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 0.2
    noise[1::2, 0] += 0.8
    return noise


def groups(sizes: list[int], width: int, apart: float, seed: int = 0) -> Tensor:
    """Gaussian clouds of these sizes around centres of their own, (n, width)."""
    stream = torch.Generator().manual_seed(seed)
    centres = torch.randn(len(sizes), width, generator=stream) * apart
    clouds = [centre + torch.randn(size, width, generator=stream) for centre, size in zip(centres, sizes, strict=True)]
    return torch.cat(clouds)


@pytest.mark.parametrize("width", [8, 64, 1280])
@pytest.mark.parametrize("sizes", [[20], [24, 12], [10, 20, 15]])
def test_clouds_are_told_apart_and_counted(sizes: list[int], width: int) -> None:
    vectors = groups(sizes, width, apart=4.0)
    found = find_facets(vectors, "auto", 9)
    assert sorted(round(facet.share * len(vectors)) for facet in found) == sorted(sizes)
    assert [facet.coherence for facet in found] == sorted((facet.coherence for facet in found), reverse=True)
    owner = np.repeat(np.arange(len(sizes)), sizes)
    unit = vectors.double().numpy() / np.linalg.norm(vectors.double().numpy(), axis=1, keepdims=True)
    for facet in found:
        (own,) = {int(owner[member]) for member in facet.members}
        places = np.flatnonzero(owner == own)
        centre = unit[places].mean(axis=0)
        assert list(facet.members) == places[np.argsort(-(unit[places] @ centre))][:9].tolist()
        cosines = unit[list(facet.members)] @ unit[list(facet.members)].T
        assert facet.coherence == pytest.approx(cosines[np.triu_indices(len(facet.members), 1)].mean())
    assert find_facets(vectors, "auto", 9) == found
    assert len(find_facets(vectors, 2, 9, seed=3)) == 2


@pytest.mark.parametrize("width", [3, 16, 300])
def test_one_cloud_is_one_facet(width: int) -> None:
    for seed in range(3):
        (facet,) = find_facets(groups([40], width, apart=3.0, seed=seed), "auto", 50)
        assert (facet.share, len(facet.members)) == (1.0, 40)


def test_images_with_little_in_common_are_several_facets() -> None:
    vectors = torch.randn(48, 100, generator=torch.Generator().manual_seed(0))
    found = find_facets(vectors, "auto", 6)
    assert 2 <= len(found) <= 48 // 8
    assert all(facet.share >= 8 / 48 for facet in found)
    assert min(facet.coherence for facet in found) > 0.02  # of all of them it is 0


def test_the_most_coherent_facet_is_first_however_small_and_a_few_images_are_last() -> None:
    stream = torch.Generator().manual_seed(0)
    centres = torch.eye(3, 50) * 10
    loose, tight, pair = (
        centre + spread * torch.randn(size, 50, generator=stream)
        for centre, spread, size in zip(centres, (2.0, 0.1, 0.0), (30, 10, 2), strict=True)
    )
    found = find_facets(torch.cat([loose, tight, pair]), 3, 9)
    assert [round(facet.share * 42) for facet in found] == [10, 30, 2]
    assert found[2].coherence > found[0].coherence  # of the pair: two images are one thing by chance


def test_a_coherent_facet_that_hardly_drives_the_unit_comes_last() -> None:
    stream = torch.Generator().manual_seed(0)
    loose, tight = (
        centre + spread * torch.randn(12, 50, generator=stream)
        for centre, spread in zip(torch.eye(2, 50) * 10, (0.6, 0.1), strict=True)
    )
    both = torch.cat([loose, tight])
    assert find_facets(both, 2, 9)[0].members[0] >= 12
    weak = [1.0] * 12 + [0.2] * 12
    assert find_facets(both, 2, 9, strengths=weak)[0].members[0] < 12


def test_images_that_are_all_alike() -> None:
    (facet,) = find_facets(torch.ones(20, 5), "auto", 4)
    assert (facet.coherence, facet.members) == (pytest.approx(1), (0, 1, 2, 3))
    assert find_facets(torch.zeros(20, 5), 1, 4)[0].share == 1
    with pytest.raises(UsageError, match="only 1 of the images that compete are different: at most 1"):
        find_facets(torch.ones(20, 5), 2, 4)


@pytest.mark.parametrize(
    ("spelling", "target"),
    [
        ("layer4.2:1935#1", Target("channel", 1935, "layer4.2", facet=1)),
        ("layer4.2:1935@7,7#0", Target("neuron", 1935, "layer4.2", (7, 7), facet=0)),
        ("channel-layer4.2-1935_f2", Target("channel", 1935, "layer4.2", facet=2)),
        ("sae-layer4.2-1935_f2_v3", Target("sae", 1935, "layer4.2", variation=3, facet=2)),
        ("class:heart#1", Target("class", 1, facet=1)),
        ("class:1#12", Target("class", 1, facet=12)),
        ("class-1_f0", Target("class", 1, facet=0)),
        ("class:unit #2", Target("class", 2)),  # the name of a class
        ("class:unit #2#1", Target("class", 2, facet=1)),
    ],
)
def test_spellings_of_facets(spelling: str, target: Target) -> None:
    names = ClassNames(["star", "heart", "unit #2"])
    assert parse_target(spelling, names) == target
    assert parse_target(target.name, names) == target


# Pictures.


def test_a_unit_stands_for_its_facets_and_each_can_be_asked_for() -> None:
    network, asked = tiny(), [*SHORT, "references.facets=2"]
    made = visualize(network, ["layer1:3", "layer1:5@1,1"], references=two_kinds(), steps=3, overrides=asked)
    units = ("channel-layer1-3", "neuron-layer1-5-1-1")
    assert [target.name for target in made.targets] == [f"{unit}_f{facet}" for unit in units for facet in (0, 1)]
    for result in made.results:
        assert (result["status"], result["share"], len(result["members"])) == ("done", 0.5, 4)
        assert len({member % 2 for member in result["members"]}) == 1  # all dark, or all bright
        assert 0.5 < result["coherence"] <= 1
    assert [result["facet"] for result in made.results] == [0, 1, 0, 1]
    assert not torch.equal(made.images[0], made.images[1])
    alone = visualize(network, "layer1:3#1", references=two_kinds(), steps=3, overrides=asked)
    assert torch.equal(alone.images[0], made.images[1])
    assert set(made.history["layer1:3#1"]) == set(made.history["channel-layer1-3_f0"])
    for spelling in ("layer1:3", "channel-layer1-3"):
        with pytest.raises(KeyError, match=f"{spelling} has 2 facets: channel-layer1-3_f0, channel-layer1-3_f1"):
            made.history[spelling]
    with pytest.raises(KeyError, match=r"^'layer1:4'$"):
        made.history["layer1:4"]
    # The picture of a facet is that of its members as references.
    still = ["image.init=mean", "transforms=none"]
    members = two_kinds()[made.results[1]["members"]]
    with pytest.raises(UsageError, match=r"references.facets=1: channel-layer1-3_f1 is a facet: auto, or at least 2"):
        visualize(network, "layer1:3#1", references=members, steps=1, overrides=SHORT)
    losses = visualize(network, "layer1:3", references=members, steps=1, overrides=[*SHORT, *still])
    of_facet = visualize(network, "layer1:3#1", references=two_kinds(), steps=1, overrides=[*asked, *still])
    assert of_facet.history["layer1:3#1"]["total"] == pytest.approx(losses.history["layer1:3"]["total"], rel=1e-5)


def test_facets_are_found_where_there_are_some_and_otherwise_there_is_one() -> None:
    asked, overrides = ["class:1"], [*SHORT[:1], "batch_size=2", "references.facets=auto"]
    two = visualize(tiny(), asked, references={"class:1": two_kinds(20)}, steps=1, overrides=overrides)
    assert [result["target"] for result in two.results] == ["class-1_f0", "class-1_f1"]
    assert [len(result["members"]) for result in two.results] == [10, 10]
    one = visualize(tiny(), asked, references=two_kinds(40)[::2], steps=1, overrides=overrides)
    assert [result["target"] for result in one.results] == ["class-1_f0"]
    assert one.history["class:1"] == one.history["class-1_f0"]
    today = visualize(tiny(), asked, references=two_kinds(20), steps=1, overrides=overrides[:2])
    assert [(result["target"], result["facet"], result["members"]) for result in today.results] == [
        ("class-1", None, None)
    ]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of drawn images; those of the first class are stars and moons."""
    root = tmp_path_factory.mktemp("photos")
    for number in range(36):
        name = ("first", "second")[number % 2]
        kind = (STAR, MOON)[number // 2 % 2] if name == "first" else 3
        (root / name).mkdir(exist_ok=True)
        drawn = to_uint8(draw(kind, number, seed=0)).permute(1, 2, 0).numpy()
        Image.fromarray(drawn).save(root / name / f"{kind}_{number:02d}.png")
    (root / "first" / "broken.png").write_text("no picture")
    return root


def test_facets_of_a_class_are_the_kinds_of_images_in_its_folder(photos: Path, tmp_path: Path) -> None:
    network = load_model("embedded_resnet", class_names=["first", "second", *map(str, range(8))])
    overrides = ["references.facets=2", "references.count=6", "evaluation=basic", f"cache_dir={tmp_path / 'cache'}"]
    with pytest.warns(ReferenceWarning):
        made = visualize(network, "class:first", references=photos, steps=1, overrides=overrides, out=tmp_path / "run")
    kinds = [{member.split("_")[0] for member in result["members"]} for result in made.results]
    assert sorted(map(sorted, kinds)) == [["first/0"], ["first/6"]]
    assert sum(result["share"] for result in made.results) == pytest.approx(1, abs=1e-3)
    assert len(list((tmp_path / "cache" / "facets").iterdir())) == 1
    assert finished_targets(tmp_path / "run") == made.targets
    page = Page(tmp_path / "run" / "report.html")
    assert len(page.all("li", class_="unit")) == 1
    shares = [f"{100 * result['share']:.0f}\xa0% of the class's images, coherence" for result in made.results]
    assert all(words in page.texts["p"] for words in shares)
    assert page.texts["h2"] == "firstfacet 0facet 1"
    assert all(member in page.texts["ol"] for result in made.results for member in result["members"])
    scored = evaluate(tmp_path / "run", model=network, metrics=["accuracy"])
    assert [row["target"] for row in scored.rows] == ["class-0_f0", "class-0_f1"]


HIDDEN = (
    *(
        "model=embedded_resnet",
        "target=channel",
        "target.layer=layer3",
        "target.index=[5,7]",
        "steps=1",
        "batch_size=3",
    ),
    *("references.facets=2", "references.region=window", "references.candidates=20", "references.count=5"),
    *("trainer.accelerator=cpu", "logger=none", "progress=false", "method=vital_fourier", "relevance=none"),
)


@pytest.mark.usefixtures("workplace")
def test_facets_of_hidden_units_are_kept_in_their_index(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = (*HIDDEN, f"references.root={photos}", "cache_dir=cache", "hydra.run.dir=run")
    assert command(*asked, "dry_run=true") == 0
    printed = capsys.readouterr().out
    assert "those of 2 units are found first" in printed
    assert "mining   1st pass: 37 images, about" in printed
    assert not Path("cache/mining").exists()
    assert command(*asked, "list=facets") == 0
    listed = capsys.readouterr().out.splitlines()
    names = [f"channel-layer3-{unit}_f{facet}" for unit in (5, 7) for facet in (0, 1)]
    assert [line.split()[0] for line in listed[-4:]] == names
    assert command(*asked, "evaluation=basic") == 0
    results = [json.loads(line) for line in Path("run/results.jsonl").read_text().splitlines()]
    assert [result["target"] for result in results] == names
    assert all(Path(photos, member).is_file() for result in results for member in result["members"])
    assert all(result["status"] == "done" and len(result["members"]) <= 5 for result in results)
    (path,) = Path("cache/mining").rglob("index.sqlite")
    kept = Index.open(path)._query("SELECT layer, channel, facet, share, members FROM facets ORDER BY channel, facet")
    assert [row[:3] for row in kept] == [("layer3", unit, facet) for unit in (5, 7) for facet in (0, 1)]
    top = [row.image for row in Index.open(path).top("layer3", 5)]
    assert [top[place] for place in json.loads(kept[0][4])] == results[0]["members"]

    def embed(*_: object) -> Tensor:
        raise AssertionError("facets are known")

    monkeypatch.setattr(OwnEmbedding, "__call__", embed)
    capsys.readouterr()
    assert command(*asked, "dry_run=true") == 0
    printed = capsys.readouterr().out
    assert "4 of 2 units (references.facets=2)" in printed
    assert "mining" not in printed
    scored = evaluate("run", metrics=["activation_ratio"])
    assert [row["target"] for row in scored.rows] == names


def test_a_run_with_facets_goes_on_where_it_ended(tmp_path: Path) -> None:
    overrides = [*SHORT, "references.facets=auto", f"cache_dir={tmp_path / 'cache'}", "image.size=16", "batch_size=1"]

    def run() -> Pictures:
        return visualize(tiny(), "layer1:3", references=two_kinds(), steps=2, overrides=overrides, out=tmp_path / "run")

    made = run()
    results, last = tmp_path / "run" / "results.jsonl", tmp_path / "run" / "images" / "channel-layer1-3_f1.png"
    first = last.with_name("channel-layer1-3_f0.png")
    before, time = last.read_bytes(), first.stat().st_mtime_ns
    results.write_text(results.read_text().splitlines(keepends=True)[0])
    last.unlink()
    shutil.rmtree(tmp_path / "cache")  # the facets are found again
    again = run()
    assert (last.read_bytes(), first.stat().st_mtime_ns) == (before, time)
    assert [one["members"] for one in again.results] == [one["members"] for one in made.results]
    assert again.history["layer1:3#0"]["total"] == pytest.approx(made.history["layer1:3#0"]["total"], rel=1e-5)


@pytest.fixture(scope="module")
def directions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, ...]]:
    """For each kind of direction what asks for it: rows of a file, features of an autoencoder, concepts found now."""
    vectors = torch.randn(3, 96, generator=torch.Generator().manual_seed(0))
    path = tmp_path_factory.mktemp("directions") / "directions.safetensors"
    save_file({"directions": vectors, "encoder.weight": vectors.clone(), "encoder.bias": torch.zeros(3)}, path)
    sae = ("target=sae", "target.layer=layer3", f"target.checkpoint={path}")
    found = ("target=concept", "target.layer=layer3", "target.method=kmeans", "target.count=3", "target.patches=200")
    return {
        "direction": ("target=direction", "target.layer=layer3", f"target.vectors='{path}#directions'"),
        "sae": (*sae, "target.encoder=encoder.weight", "target.encoder_bias=encoder.bias", "target.activation=relu"),
        "concept": (*found, "references.patch.overlap=0"),
    }


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize("kind", ["direction", "sae", "concept"])
def test_facets_of_directions(kind: str, directions: dict[str, tuple[str, ...]], photos: Path) -> None:
    asked = [one for one in HIDDEN if not one.startswith("target")]
    asked += [*directions[kind], "target.index=1", f"references.root={photos}", "hydra.run.dir=run"]
    assert command(*asked, "evaluation=basic", "cache_dir=cache") == 0
    results = [json.loads(line) for line in Path("run/results.jsonl").read_text().splitlines()]
    assert [result["target"] for result in results] == [f"{kind}-layer3-1_f0", f"{kind}-layer3-1_f1"]
    assert {(result["status"], result["facets"]) for result in results} == {("done", 2)}
    first, second = (set(result["members"]) for result in results)
    assert first
    assert second
    assert not first & second
    page = Page(Path("run/report.html"))
    assert f"{kind} 1 of layer3" in page.texts["h2"]
    assert len(page.all("figure", class_="strip")) == 2


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize("unit", ["layer3:5", "class:star"])
def test_circuits_show_the_main_facet_of_each_unit(unit: str, photos: Path) -> None:
    root = str(photos) if unit == "layer3:5" else "null"
    asked = (*HIDDEN[5:], "model=embedded_resnet", "target=circuit", f"target.unit={unit}", "target.levels=2")
    asked = (*asked, "target.width=1", "steps=1", "relevance=lrp", f"references.root={root}", "hydra.run.dir=run")
    assert command(*asked, "evaluation=none", "references.facets=auto", "target.layers=[layer2]") == 0
    levels = [
        [json.loads(line) for line in path.read_text().splitlines()] for path in sorted(Path("run").glob("*/*.jsonl"))
    ]
    assert [[result["facet"] for result in results] for results in levels] == [[0], [0]]
    (top,) = Path("run/level0/images").glob("*_masked.png")
    assert top.name == f"{levels[0][0]['target']}_masked.png"
    page = Page(Path("run/circuit.html"))
    assert len(page.all("img", class_="picture")) == 2
    for (result,) in levels:
        which = "its only facet: all of" if result["facets"] == 1 else f"main facet of {result['facets']}: "
        assert which in page.texts["span"]
        assert f"coherence {result['coherence']:.2f}" in page.texts["span"]


def test_a_circuit_is_grown_by_the_references_of_main_facets() -> None:
    network, target = tiny(), Target("class", 1)
    references = FacetedReferences(TensorReferences(two_kinds(), network.classes), 2, 20, 0, OwnEmbedding(network))
    members = two_kinds()[list(references.facets(target)[0].members)]
    expected = channel_relevance(network, target, TensorReferences(members, network.classes), "relu")
    torch.testing.assert_close(channel_relevance(network, target, references, "relu"), expected)
    assert len(members) == 12


# Several ranks.


def no_embedding() -> None:
    """Let a process break that would find facets itself."""

    def embed(*_: object) -> Tensor:
        raise AssertionError("facets come from rank 0")

    OwnEmbedding.__call__ = embed  # type: ignore[assignment, method-assign]


@pytest.mark.slow
def test_ranks_share_the_facets_that_rank_0_found(
    photos: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[1]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    asked = [
        "model=python",
        "model.factory=tests.tiny:tiny_net",
        "model.size=32",
        "model.class_names=[first,second,c,d]",
    ]
    asked += [f"references.root={photos}", "references=folder", "references.facets=auto", "references.count=6"]
    asked += ["target.index=first", "steps=2", "batch_size=1", "progress=false", "trainer.accelerator=cpu"]
    asked += ["logger=none", "evaluation=none", "references.cache=false"]
    settings = outside(("WORLD_SIZE", "RANK", "LOCAL_RANK"), {"TORCHELASTIC_RUN_ID": "1"}, 2)
    kept = ("cache_dir=cache", "hydra.run.dir=two")
    before = (None, no_embedding)
    both = [start(workplace, *asked, *kept, setting=settings[n], before=before[n]) for n in range(2)]
    both.append(start(workplace, *asked, "cache_dir=other", "hydra.run.dir=alone"))
    ended = [finish(one, workplace) for one in both]
    assert [code for code, _ in ended] == [0, 0, 0], ended
    lines = [(workplace / run / "results.jsonl").read_text().splitlines() for run in ("two", "alone")]
    results = [sorted(map(json.loads, some), key=lambda one: str(one["target"])) for some in lines]
    told = [[(one["target"], one["share"], one["coherence"], one["members"]) for one in some] for some in results]
    assert told[0] == told[1]
    assert [one[0] for one in told[0]] == ["class-0_f0", "class-0_f1"]


def test_variations_of_facets() -> None:
    overrides = [*SHORT, "references.facets=2", "batch_size=4"]
    targets = [Target("channel", 3, "layer1"), Target("channel", 3, "layer1", variation=2)]
    made = visualize(tiny(), targets, references=two_kinds(), steps=1, overrides=overrides)
    names = [f"channel-layer1-3_f{facet}{variation}" for variation in ("", "_v2") for facet in (0, 1)]
    assert [target.name for target in made.targets] == names


# The embedding.


def read_from(images: Tensor, places: Sequence[int], shared: bool = True) -> list[Candidate]:
    return [Candidate(place, partial(images.__getitem__, place), place if shared else None) for place in places]


class CountingEmbedding:
    """Colours, and how many images were embedded."""

    passes = 0

    def identity(self, _target: Target) -> str:
        return "colours"

    def __call__(self, _target: Target, pictures: Tensor) -> Tensor:
        self.passes += 1
        assert len(pictures) == IMAGES_PER_PASS
        return pictures.mean(dim=(2, 3))


def test_an_image_that_several_units_have_is_embedded_once() -> None:
    images, counting = two_kinds(), CountingEmbedding()
    embeddings = Embeddings(counting)
    unit, other = Target("channel", 3, "layer1"), Target("channel", 5, "layer1")
    first, _ = embeddings.of(unit, read_from(images, range(16)))
    second, _ = embeddings.of(other, read_from(images, range(23, 3, -1)))
    assert counting.passes == 3
    for found, places in ((first, list(range(16))), (second, list(range(23, 3, -1)))):
        torch.testing.assert_close(torch.stack(list(found.values())), images[places].mean(dim=(2, 3)))
    embeddings.of(other, read_from(images, range(8), shared=False))  # windows are a unit's own
    assert counting.passes == 4
    embeddings.forget()
    embeddings.of(unit, read_from(images, range(16)))
    assert counting.passes == 6


def test_few_embeddings_are_kept() -> None:
    counting = CountingEmbedding()
    embeddings = Embeddings(counting, most=8)
    for _ in range(2):  # the oldest have gone when they are asked for again
        embeddings.of(Target("channel", 3, "layer1"), read_from(two_kinds(), range(16)))
    assert counting.passes == 3
    assert len(embeddings._kept) == 8


def test_an_embedding_does_not_depend_on_the_images_beside_it() -> None:
    network, images, unit = load_model("embedded_resnet"), draw_set(2, seed=1)[0], Target("channel", 3, "layer3")
    alone, _ = Embeddings(OwnEmbedding(network)).of(unit, read_from(images, range(20)))
    embeddings = Embeddings(OwnEmbedding(network))
    embeddings.of(unit, read_from(images, range(15, 4, -1)))
    after, _ = embeddings.of(unit, read_from(images, range(20)))
    assert list(alone) == list(after) == list(range(20))
    assert torch.equal(torch.stack(list(alone.values())), torch.stack(list(after.values())))


@pytest.mark.usefixtures("workplace")
def test_whole_images_are_embedded_once_for_all_units_of_a_layer(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedded: list[bytes] = []
    embed = OwnEmbedding.__call__

    def recording(self: OwnEmbedding, target: Target, pictures: Tensor) -> Tensor:
        embedded.extend({picture.numpy().tobytes() for picture in pictures})
        return embed(self, target, pictures)

    monkeypatch.setattr(OwnEmbedding, "__call__", recording)
    for region, most in (("image", 36), ("window", 40)):
        embedded.clear()
        asked = (*HIDDEN, f"references.root={photos}", f"references.region={region}")
        assert command(*asked, "cache_dir=cache", "list=facets") == 0
        assert 20 < len(embedded) <= most
        assert (len(set(embedded)) == len(embedded)) or region == "window"


@pytest.mark.parametrize("embedding", ["embedded_judge", {"source": "embedded", "name": "embedded_vit"}])
def test_another_network_embeds_the_images(composed: Configuration, embedding: Any) -> None:
    found = asked_for(composed, two_kinds(), embedding=embedding).facets(Target("channel", 3, "layer1"))
    assert sorted([*{member % 2 for member in facet.members}] for facet in found) == [[0], [1]]


@pytest.fixture(scope="module")
def composed() -> Configuration:
    return compose_config(["target=channel", "target.layer=layer1", "references.facets=2"])


def asked_for(composed: Configuration, references: Tensor | dict[str, Tensor], **keys: Any) -> FacetedReferences:
    config = composed.with_keys(**{f"references__{key}": value for key, value in keys.items()})
    found = faceted(config, tiny(), TensorReferences(references, ClassNames.numbered(4)))
    assert isinstance(found, FacetedReferences)
    return found


@pytest.mark.parametrize(
    ("embedding", "message"),
    [
        ("resnet18", r"references.embedding=resnet18: its weights are not on this machine"),
        ({"source": "timm", "name": "resnet18"}, r"references.embedding=resnet18: its weights are not on this machine"),
        ({"source": "timm", "name": "resnet18", "pretrained": False}, r"references.embedding=resnet18: has no weights"),
        ({"source": "timm", "nam": "resnet18"}, r"references.embedding.nam=resnet18: no such key of a model"),
        ({"source": "timm", "name": "resnet18", "checkpoint": "no.pth"}, r"no\.pth"),
        ("dinosaur", r"references.embedding=dinosaur: neither an option"),
        (3, r"references.embedding=3: "),
    ],
)
def test_embedding_networks_that_are_not_there(composed: Configuration, embedding: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        asked_for(composed, two_kinds(), embedding=embedding)
    assert caught.value.key.startswith("references.embedding")


# Mistakes.


@pytest.mark.parametrize("facets", [0, -1, 1.5, True, "many", None])
def test_numbers_of_facets_that_are_none(composed: Configuration, facets: Any) -> None:
    with pytest.raises(UsageError, match=r"references\.facets=.*: must be auto, or a whole number of at least 1"):
        asked_for(composed, two_kinds(), facets=facets)


@pytest.mark.parametrize(
    ("facets", "count", "words"),
    [
        (3, 23, ("references.facets=3", "23 images", "at most 2")),
        (99, 24, ("references.facets=99", "24 images", "at most 3")),
    ],
)
def test_too_few_tensors_are_told(composed: Configuration, facets: Any, count: int, words: tuple[str, ...]) -> None:
    for references in (two_kinds(count), {"layer1:3": two_kinds(count), "layer1:4": two_kinds(48)}):
        with pytest.raises(UsageError) as caught:
            asked_for(composed, references, facets=facets)
        assert all(word in str(caught.value) for word in words), str(caught.value)


def test_too_few_tensors_for_two_facets_are_one(composed: Configuration, caplog: pytest.LogCaptureFixture) -> None:
    for references in (two_kinds(15), {"layer1:3": two_kinds(15), "layer1:4": two_kinds(48)}):
        caplog.clear()
        config = composed.with_keys(references__facets="auto")
        source = TensorReferences(references, ClassNames.numbered(4))
        assert faceted(config, tiny(), source) is source
        assert "15 images were given: one facet, because two need 16" in caplog.text


@pytest.mark.usefixtures("workplace")
def test_mistakes_of_the_command(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for change, words in (
        (["references.facets=3"], ("references.facets=3", "20 images compete", "at most 2")),
        (["references.candidates=10", "references.facets=auto"], ("references.candidates=10", "at least 16")),
        (["references.window=65"], ("references.window=65", "at most 64 px: the network's input is 64x64")),
        (["list=facets", "references.facets=1"], ("list=facets", "references.facets=auto")),
    ):
        assert command(*HIDDEN, f"references.root={photos}", "hydra.run.dir=run", *change) == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1
        assert all(word in told for word in words), told


def test_a_facet_that_a_unit_has_not() -> None:
    overrides = [*SHORT, "references.facets=2"]
    with pytest.raises(UsageError, match=r"channel-layer1-3_f2: channel-layer1-3 has 2 facets, 0 to 1"):
        visualize(tiny(), "layer1:3#2", references=two_kinds(), steps=1, overrides=overrides)


def test_too_few_images_of_a_class_are_one_facet(photos: Path) -> None:
    source = FolderReferences(photos, ClassNames(["first", "second"]), 4, size=SIZE, candidates=9)
    faceted = FacetedReferences(source, "auto", 4, 0, OwnEmbedding(tiny()))
    with pytest.warns(ReferenceWarning, match="one facet, since 9 images compete and two facets need 16"):
        targets = faceted.expanded([Target("class", 1)])
    assert targets == [Target("class", 1, facet=0)]
    assert len(list(faceted.images(targets[0]))) == 4
    assert faceted.fingerprint(targets[0]) != faceted.fingerprint(Target("class", 1))


# What mining would do.


@pytest.mark.usefixtures("workplace")
def test_a_mining_says_what_it_would_do(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = (f"images={photos}", "layers=[layer3]", "channels=[0,3]", "k=4", "workers=0", "batch_size=8")
    asked = (*asked, "trainer.accelerator=cpu", "progress=false", "hydra.run.dir=run")
    for more, words in (
        ([], ("37 of", "2 of layer3, k=4", "37 images, about", "at most 8 images, up to 49 windows")),
        (["patch.search=strongest"], ("up to 5 windows of each",)),
        (["patches=false"], ("1st pass",)),
        (["concepts=kmeans"], ("10 of layer3 by kmeans", "of 49 windows of each image")),
        ([f"spectrum={photos}"], ("37 of", "spectrum about")),
    ):
        assert exit_code(mine_command.main, *asked, *more, "dry_run=true") == 0
        printed = capsys.readouterr().out
        assert all(word in printed for word in words), printed
        assert ("2nd pass" in printed) == (not more or more[0] in ("patch.search=strongest", "concepts=kmeans"))
    assert not Path("run").exists()
    assert exit_code(mine_command.main, *asked, "sheets=false") == 0
    assert "patches: 8 images, up to 49 windows of each, about" in capsys.readouterr().out
    assert exit_code(mine_command.main, *asked, "dry_run=maybe") == 2
