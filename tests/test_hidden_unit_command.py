"""vital-visualize with hidden units: an index of vital-mine as references, labels, pictures, the gallery."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from PIL import Image

from tests.tiny import ON_CPU, SHORT, command, image_folder
from vital_exp import load_model
from vital_exp.mining.index import Index
from vital_exp.mining.mine import mine
from vital_exp.references.folder import ReferenceWarning

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
