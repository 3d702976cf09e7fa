"""vital-mine find=...: the units that answer to words or to an image, ranked, and its mistakes in one line."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import normalize

from tests.test_mine_command import MISTAKE, QUIET, command
from tests.tiny import image_folder
from vital_exp import load_model
from vital_exp.commands.hydra_app import canonical
from vital_exp.commands.mine import _quoted
from vital_exp.config import compose_config
from vital_exp.evaluation.clip import load_clip
from vital_exp.images.output import as_image, to_uint8
from vital_exp.mining import drawn
from vital_exp.mining.images import ImageFolder
from vital_exp.mining.index import Index
from vital_exp.mining.mine import Mining
from vital_exp.mining.patches import enlarged
from vital_exp.mining.units import select_units
from vital_exp.naming.embeddings import unit_embeddings
from vital_exp.naming.find import find_units, read_query
from vital_exp.references.drawn import CLASS_NAMES, draw

pytestmark = pytest.mark.usefixtures("workplace")

EMBEDDED = ("model=embedded_resnet", "workers=0", "batch_size=64", *QUIET)
FEW = ("images=photos", "layers=[layer4]", "channels=0-4", "k=2", "patch.overlap=0", "hydra.run.dir=run")


def table(path: str) -> list[dict[str, str]]:
    """Return the rows of find.csv."""
    return list(csv.DictReader(Path(path).read_text().splitlines()))


def test_an_image_of_a_class_drives_its_unit_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(drawn, "IMAGES_PER_CLASS", 3)
    place, number = "a moon, drawn.png", CLASS_NAMES.index("moon")
    picture = draw(number, 5000, seed=7)  # none of those that are mined
    as_image(to_uint8(picture)).save(place)
    run = (*EMBEDDED, "layers=[output]", "k=2", "patches=false", "find_count=3", "hydra.run.dir=run", f"find={place}")
    assert command(*run) == 0
    printed = capsys.readouterr().out
    rows, index = table("run/find.csv"), Index.open("run")
    assert [(row["layer"], row["channel"]) for row in rows[:1]] == [("output", str(number))]
    network = load_model("embedded_resnet")
    folder = ImageFolder(index.meta["folder"], network.preprocessing)
    with torch.no_grad():
        logits = network.module(network.preprocessing.normalise(folder.files.load(Path(place))[None]))[0]
    shares = [logits[unit].item() / index.largest_activation("output", unit) for unit in range(10)]
    assert [int(row["channel"]) for row in rows] == sorted(range(10), key=lambda unit: -shares[unit])
    for row in rows:
        assert float(row["score"]) == pytest.approx(shares[int(row["channel"])], rel=1e-3, abs=1e-4)
        assert row["images"].split(" | ") == [top.image for top in index.top("output", int(row["channel"]))]
    lines = printed[printed.index("units for") :].splitlines()
    assert max(map(len, lines[:6])) <= 80
    names = [name.removesuffix(".png") for name in rows[0]["images"].split(" | ")]
    assert lines[3].split() == ["1", f"output:{number}", f"{shares[number]:.2f}", *names]
    with Image.open("run/find.jpg") as sheet:
        assert sheet.height > 4 * 96  # the image and three units
    page = Path("run/index.html").read_text()
    assert f"Found for “{place}”" in page
    assert f"one row each: output:{number}, " in page


def test_of_bounded_units_the_one_that_would_be_driven_furthest_is_first(tmp_path: Path) -> None:
    convolution = nn.Conv2d(3, 3, 1, bias=False)
    nn.init.zeros_(convolution.weight)
    convolution.weight.data[:, 0, 0, 0] = torch.tensor([12.0, 24.0, 18.0])  # of white: all of them to the bound of 6
    network = load_model(nn.Sequential(convolution, nn.ReLU6()), mean=[0] * 3, std=[1] * 3, size=8, device="cpu")
    (tmp_path / "white").mkdir()
    Image.new("RGB", (8, 8), "white").save(tmp_path / "white/0.png")
    units, folder = select_units(network, ["1"]), ImageFolder(tmp_path / "white", network.preprocessing)
    index = Mining(units, folder, k=1, patch=None).run(tmp_path / "run")
    matches = find_units(read_query(str(tmp_path / "white/0.png"), None, folder.files), index, units, folder)
    assert [(match.unit, match.score) for match in matches] == [(("1", 1), 1.0), (("1", 2), 1.0), (("1", 0), 1.0)]


def test_words_and_images_by_embedding(tiny_clip: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    image_folder(Path("photos"), ["a", "b"], count=3)
    keys = [f"naming.clip.{key}={value}" for key, value in tiny_clip.items()]
    assert command(*EMBEDDED, *FEW, *keys, "find=striped fur, a tiger's") == 0
    assert "units for striped fur, a tiger's: cosine of CLIP's embeddings" in capsys.readouterr().out
    by_words, index = table("run/find.csv"), Index.open("run")
    kept = Path("run/unit_embeddings.safetensors").stat().st_mtime_ns
    assert command(*EMBEDDED, *FEW, *keys, "find=photos/a/1.png", "find_by=embedding", "sheets=false") == 0
    by_image = table("run/find.csv")
    assert (
        Path("run/unit_embeddings.safetensors").stat().st_mtime_ns == kept
    )  # the units' embeddings are those of the first time

    clip = load_clip(**tiny_clip, pretrained="", templates="photo", download=False, device=torch.device("cpu"))
    folder = ImageFolder("photos", load_model("embedded_resnet").preprocessing)
    texts = normalize(clip.model.encode_text(clip.tokenizer(["a photo of a striped fur, a tiger's."])), dim=1)
    queries = [texts[0], clip(folder.load("a/1.png")[None]).features[0]]
    for rows, query in zip((by_words, by_image), queries, strict=True):
        cosines = {}
        for unit in range(5):
            patches = [enlarged(folder.load(row.image), row.box) for row in index.patches("layer4", unit) if row.box]
            cosines[unit] = float(normalize(clip(torch.stack(patches)).features.mean(dim=0), dim=0) @ query)
        assert [int(row["channel"]) for row in rows] == sorted(cosines, key=lambda unit: -cosines[unit])
        assert [float(row["score"]) for row in rows] == pytest.approx(sorted(cosines.values(), reverse=True), abs=1e-4)
    old = unit_embeddings(index, folder, clip)
    clip.model.visual.proj.data.neg_()  # another CLIP: its embeddings are not those that are kept
    torch.testing.assert_close(unit_embeddings(index, folder, clip), -old)


def test_units_that_nothing_wakes_are_left_out_and_concepts_are_found(capsys: pytest.CaptureFixture[str]) -> None:
    image_folder(Path("photos"), ["a"], count=2)
    directions = torch.eye(192)[:2]
    directions[1] *= -1  # of a ReLU's output: never above 0
    save_file({"v": directions}, "two.safetensors")
    asked = ("images=photos", "layers=[layer4]", "k=2", "patch.overlap=0", "sheets=false", "find=photos/a/0.png")
    assert command(*EMBEDDED, *asked, "directions=two.safetensors", "hydra.run.dir=run") == 0
    assert [row["channel"] for row in table("run/find.csv")] == ["0"]
    assert "1 of 2 units are left out: no image of the folder drives them above 0" in capsys.readouterr().out
    concepts = ("concepts=nmf", "concepts.count=2", "concepts.patches=8", "hydra.run.dir=concepts")
    assert command(*EMBEDDED, *asked, *concepts, "sheets=true") == 0
    assert "Found for “photos/a/0.png”" in Path("concepts/index.html").read_text()


def test_mistakes_of_finding(capsys: pytest.CaptureFixture[str]) -> None:
    image_folder(Path("photos"), ["a"], count=2, corrupt=1)
    mistakes = {
        ("find=",): "find=: words, or an image file",
        ("find=  ",): "words, or an image file",
        ("find=[a,b]",): "words, or an image file",
        (
            "find=striped fur",
        ): "find=striped fur: needs the weights of CLIP: naming.clip.checkpoint=file, or naming.dow",
        ("find=photo.png",): "find=photo.png: no such file",
        ("find=photos/a/broken0.png",): "find=photos/a/broken0.png: is not an image that can be read",
        ("find=fur", "find_by=activation"): "find_by=activation: words drive no unit",
        ("find=fur", "find_by=words"): "find_by=words: activation, embedding or null",
        ("find=fur", "find_count=0"): "find_count=0: a whole number of at least 1",
        ("find=fur", "naming.clip.checkpoint=no.pt"): "naming.clip.checkpoint=no.pt: no such file",
    }
    for given, message in mistakes.items():
        assert command(*EMBEDDED, *FEW, *given) == MISTAKE
        told = capsys.readouterr().err
        assert message in told, told
        assert len(told.splitlines()) == 1, told
        assert not Path("run/index.sqlite").exists()  # before the mining


@pytest.mark.parametrize(
    "text", ["a, b", "it's", "50%: (x) {y} = $z", "back\\slash\\", "\\'", "7", "true", "#3", 'say "a"']
)
def test_any_words_reach_the_command(text: str) -> None:
    assert compose_config([canonical(_quoted(f"find={text}"), "mine")], "mine").find == text


def test_words_that_are_quoted_already_stay() -> None:
    assert [_quoted(one) for one in ("find='a, b'", "find=null", "find=")] == ["find='a, b'", "find=null", "find="]
