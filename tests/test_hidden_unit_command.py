"""vital-visualize with hidden units: an index of vital-mine as references, labels, pictures, the gallery."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from tests.tiny import ON_CPU, SHORT, command, image_folder
from vital_exp import load_model
from vital_exp.images.output import to_uint8
from vital_exp.mining.images import ImageFolder
from vital_exp.mining.index import Index
from vital_exp.mining.mine import mine
from vital_exp.mining.patches import enlarged
from vital_exp.models.network import model_space
from vital_exp.models.taps import Taps
from vital_exp.references.folder import ReferenceWarning
from vital_exp.targets.words import in_words

pytestmark = pytest.mark.usefixtures("workplace")
RUN = (*SHORT, *ON_CPU, "references.cache=false", "target.layer=layer3", "hydra.run.dir=run")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("photos") / "own", ["a", "b"], count=3)


@pytest.fixture(scope="module")
def index(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Index:
    out = tmp_path_factory.mktemp("index")
    return mine(load_model("embedded_resnet"), "layer3", photos, k=3, channels="0-1", out=out)


def result() -> dict[str, Any]:
    (line,) = Path("run/results.jsonl").read_text().splitlines()
    found: dict[str, Any] = json.loads(line)
    return found


def test_an_index_brings_its_folder(index: Index, photos: Path) -> None:
    assert command(*RUN, "target=channel", f"references.index={index.path}") == 0
    recorded = OmegaConf.load("run/.hydra/config.yaml").references
    assert (recorded.root, recorded.index) == (str(photos), str(index.path))
    assert result()["status"] == "done"
    assert not (Path(OmegaConf.load("run/.hydra/config.yaml").cache_dir) / "drawn").exists()
    assert command(*RUN, "target=channel", f"references.index={index.path}") == 0  # goes on, and has nothing to do


def test_fewer_mined_images_than_asked_for_are_told(index: Index) -> None:
    with pytest.warns(ReferenceWarning, match=r"channel-layer3-0: 3 references, fewer than references.count=9"):
        assert command(*RUN, "target=channel", f"references.index={index.path}", "references.count=9") == 0
    with Image.open("run/references/channel-layer3-0.jpg") as strip:
        assert round(strip.width / strip.height) == 3


def test_a_folder_with_fewer_images_than_candidates_is_mined_whole(photos: Path) -> None:
    with pytest.warns(ReferenceWarning, match=r"6 references, fewer than references.count=9"):
        assert command(*RUN, "target=channel", f"references.root={photos}", "references.count=9") == 0


def activation_map(vectors: Tensor, name: str) -> Tensor:
    """What directions (K, 96) read at each position of layer3, (K, 8, 8), of the saved picture."""
    network = load_model("embedded_resnet")
    with Image.open(f"run/images/{name}.png") as file:
        picture = torch.from_numpy(np.array(file.convert("RGB"))).permute(2, 0, 1)[None] / 255
    activation = Taps(network.module, ["layer3"])(model_space(picture, network))[0]["layer3"][0]
    return torch.einsum("kc,chw->khw", vectors, activation)


def check_picture(name: str) -> dict[str, Any]:
    """Make sure that a run made this picture, whole and masked, and shows it under its name; return its result."""
    found = result()
    assert (found["target"], found["status"], found["image"]) == (name, "done", f"images/{name}.png")
    with Image.open(f"run/{found['image']}") as picture, Image.open(f"run/images/{name}_masked.png") as masked:
        assert (picture.size, picture.mode, masked.mode) == ((64, 64), "RGB", "RGBA")
    assert f"<h2>{in_words(name)}</h2>" in Path("run/report.html").read_text()
    return found


def test_a_neuron_of_the_command_line(index: Index) -> None:
    given = ("target=neuron", "target.index=1", "target.position=[3,4]", f"references.index={index.path}")
    assert command(*RUN, *given) == 0
    found = check_picture("neuron-layer3-1-3-4")
    assert (found["kind"], found["index"], found["position"]) == ("neuron", 1, [3, 4])
    value = activation_map(torch.eye(96)[1:2], found["target"])[0, 3, 4]
    assert found["activation"] == pytest.approx(float(value), abs=0.02)  # a picture is rounded to 8 bits


def test_a_direction_of_the_command_line(photos: Path) -> None:
    vectors = torch.randn(2, 96, generator=torch.Generator().manual_seed(0))
    save_file({"v": vectors}, "vectors.safetensors")
    given = ("target=direction", "target.vectors=vectors.safetensors", "target.index=1", f"references.root={photos}")
    assert command(*RUN, *given) == 0
    found = check_picture("direction-layer3-1")
    value = activation_map(vectors, found["target"])[1].max()
    assert found["activation"] == pytest.approx(float(value), rel=0.02)


@pytest.mark.parametrize(("region", "words"), [("patch", "patches of real images"), ("image", "real images")])
def test_the_gallery_shows_what_was_mined(region: str, words: str, index: Index, photos: Path) -> None:
    given = ("target=channel", f"references.index={index.path}", f"references.region={region}")
    assert command(*RUN, *given) == 0
    page = Path("run/report.html").read_text()
    assert f"<figcaption>{words} that drive the unit most</figcaption>" in page
    shown = [base64.b64decode(part) for part in re.findall(r'src="data:image/[a-z]+;base64,([^"]+)"', page)]
    files = ["images/channel-layer3-0.png", "images/channel-layer3-0_masked.png", "references/channel-layer3-0.jpg"]
    assert all((Path("run") / file).read_bytes() in shown for file in files)

    folder = ImageFolder(photos, load_model("embedded_resnet").preprocessing)
    rows = index.patches("layer3", 0, 2) if region == "patch" else index.top("layer3", 0, 2)
    views = [folder.load(row.image) for row in rows]
    views = [view if row.box is None else enlarged(view, row.box) for view, row in zip(views, rows, strict=True)]
    mined = Image.fromarray(to_uint8(torch.cat(views, dim=2)).permute(1, 2, 0).numpy())
    with Image.open("run/references/channel-layer3-0.jpg") as strip:
        ours, theirs = (np.array(one.convert("L").resize(mined.size)) / 255 for one in (strip, mined))
    assert np.abs(ours - theirs).mean() < np.abs(ours - theirs[:, ::-1]).mean() / 4  # but for what JPEG loses
