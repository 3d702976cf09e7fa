"""Mining of a sparse autoencoder's features and by relevance; how images drive units, and where."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.tiny import exit_code, image_folder, tiny_net
from vital_exp import load_model
from vital_exp.commands import mine
from vital_exp.errors import UsageError
from vital_exp.mining.activity import BINS, Activity
from vital_exp.mining.images import ImageFolder
from vital_exp.mining.index import Index
from vital_exp.mining.mine import Mining
from vital_exp.mining.overlays import strongest_maps
from vital_exp.mining.units import ClassRelevance, Units, select_units
from vital_exp.models.network import VisionNetwork, model_space
from vital_exp.relevance import relevance_maps
from vital_exp.targets.autoencoder import SparseAutoencoder

SIZE, LAYER, WIDTH, FEATURES = 32, "layer1", 16, 24


@pytest.fixture
def network() -> VisionNetwork:
    return load_model(tiny_net(), size=SIZE)


@pytest.fixture
def folder(tmp_path: Path, network: VisionNetwork) -> ImageFolder:
    return ImageFolder(image_folder(tmp_path / "photos", ["a", "b"], count=6), network.preprocessing)


def pictures(folder: ImageFolder) -> Tensor:
    return torch.stack([folder.load(path) for path in folder.paths])


def mined(units: Units, folder: ImageFolder, out: Path) -> Index:
    return Mining(units, folder, 5, None).run(out)


def test_images_are_ranked_by_relevance_for_a_class(
    network: VisionNetwork, folder: ImageFolder, tmp_path: Path
) -> None:
    """The sum over positions of the maps that relevance_maps gives."""
    units = select_units(network, [LAYER], [2, 7], "relevance", relevance=ClassRelevance(3, "gradient_x_activation"))
    maps = relevance_maps(network, pictures(folder), "class:3", [LAYER], "gradient_x_activation")[LAYER]
    index = mined(units, folder, tmp_path / "index")
    for channel in (2, 7):
        wanted = maps[:, channel].flatten(1).sum(dim=1)
        order = wanted.argsort(descending=True)[:5].tolist()
        rows = index.top(LAYER, channel)
        assert [row.image for row in rows] == [folder.paths[number] for number in order]
        np.testing.assert_allclose([row.activation for row in rows], wanted[order], rtol=1e-4, atol=1e-7)
        assert rows[0].position == int(maps[order[0], channel].flatten().argmax())


def test_a_class_that_no_image_has_is_told(
    network: VisionNetwork, folder: ImageFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """LRP starts where the logit is positive: else all relevance is 0, and images rank by their paths."""
    head = network.module.get_submodule("fc")
    assert isinstance(head.bias, Tensor)
    head.bias.data.fill_(-50)
    units = select_units(network, [LAYER], [2, 7], "relevance", relevance=ClassRelevance(3))
    mined(units, folder, tmp_path / "index")
    assert "in 12 of 12 images the units have no relevance for class 3, whose logit is not above 0" in caplog.text
    caplog.clear()
    head.bias.data.fill_(50)
    mined(units, folder, tmp_path / "positive")
    assert "no relevance" not in caplog.text


def test_features_of_an_autoencoder_are_mined(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = image_folder(workplace / "photos", ["a", "b"], count=6)
    (workplace / "nets.py").write_text("from tests.tiny import tiny_net\n")
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(FEATURES, WIDTH, generator=generator), torch.randn(FEATURES, generator=generator) / 4
    bias[5] = -1e3  # sleeps
    save_file({"encoder.weight": weight, "encoder.bias": bias}, "sae.safetensors")
    own = ("model=python", "model.factory=nets.py:tiny_net", f"model.size={SIZE}", f"layers=[{LAYER}]", "images=photos")
    quiet = ("progress=false", "trainer.accelerator=cpu", "patches=false", "k=4", "hydra.run.dir=mined")
    asked = (*own, *quiet, "sae=sae.safetensors", "autoencoder.activation=relu")
    assert exit_code(mine.main, *asked) == 0, capsys.readouterr().err
    index, network = Index.open("mined"), load_model(tiny_net(), size=SIZE)
    shown = ImageFolder(photos, network.preprocessing)
    with torch.no_grad():
        activation = network.taps([LAYER])(model_space(pictures(shown), network))[0][LAYER].flatten(2)
    features = (torch.einsum("ncp,fc->nfp", activation, weight) + bias[:, None]).relu()
    assert (LAYER, 5) not in index.units()
    with pytest.raises(UsageError, match="channel=5: of layer1: no image activates this feature"):
        index.top(LAYER, 5)
    for _, feature in index.units():
        best = features[:, feature].amax(dim=1).sort(descending=True).values[:4]
        best = best[best > 0]
        np.testing.assert_allclose([row.activation for row in index.top(LAYER, feature)], best, rtol=1e-4, atol=1e-5)
    assert Path(f"mined/sheets/{LAYER}/3.jpg").is_file()
    page = Path("mined/index.html").read_text()
    assert "active for " in page
    assert 'class="bars"' in page
    for wrong, told in {
        ("sae=gone.safetensors",): "vital-mine: sae=gone.safetensors: no such file",
        ("sae=sae.safetensors",): "vital-mine: autoencoder.activation=None: the file does not say it",
        (
            "sae=sae.safetensors",
            "autoencoder.activation=relu",
            "autoencoder.encoder=w",
        ): "autoencoder.encoder=w: no such",
        ("pooling=relevance",): "vital-mine: class=None: pooling=relevance ranks by relevance for a class",
        ("pooling=relevance", "class=9"): "vital-mine: class=9",
    }.items():
        assert exit_code(mine.main, *own, *quiet[:-1], *wrong, "hydra.run.dir=wrong") == 2
        assert told in capsys.readouterr().err


def test_how_all_images_drive_units(network: VisionNetwork, folder: ImageFolder, tmp_path: Path) -> None:
    units = select_units(network, ["conv1"], "all")
    index = mined(units, folder, tmp_path / "index")
    values = units.values(pictures(folder))["conv1"]
    for unit in range(values.shape[1]):
        own, told = values[:, unit], index.histogram("conv1", unit)
        assert told.awake == float((own > 0).float().mean())
        assert (told.low, told.high) == pytest.approx((float(own.min()), float(own.max())))
        assert told.counts == np.histogram(own.numpy(), BINS, (told.low, told.high))[0].tolist()
    with pytest.raises(UsageError, match="9"):
        index.histogram("conv1", 9)


def test_a_long_folder_is_sampled_evenly() -> None:
    activity = Activity(1, 4001)
    for start in range(0, 4001, 100):
        numbers = torch.arange(start, min(start + 100, 4001))
        activity.add(numbers[:, None].float() - 1, numbers)
    assert activity.step == 3
    told = activity.histogram(0, 4001)
    assert told.awake == pytest.approx(3999 / 4001)
    assert (told.low, told.high, sum(told.counts)) == (-1, 3998, 1334)


def test_where_units_fire(network: VisionNetwork, folder: ImageFolder, tmp_path: Path) -> None:
    units = select_units(network, [LAYER, "fc"], "all")
    index = mined(units, folder, tmp_path / "index")
    found = strongest_maps(index, units, folder, [(LAYER, 5), ("fc", 1)], 3)
    assert {key[:2] for key in found} == {(LAYER, 5)}  # a vector has no places
    for row in index.top(LAYER, 5, 3):
        own = units.maps(folder.load(row.image)[None])[LAYER][0, 5].view(8, 8)
        torch.testing.assert_close(found[LAYER, 5, row.image].float(), own / own.max(), rtol=0, atol=1e-3)


def test_mistakes(network: VisionNetwork) -> None:
    with pytest.raises(UsageError, match="class=None: pooling=relevance ranks by relevance for a class"):
        select_units(network, [LAYER], pooling="relevance")
    directions = {LAYER: torch.eye(WIDTH)}
    with pytest.raises(UsageError, match="pooling=relevance: ranks channels alone"):
        select_units(network, [LAYER], pooling="relevance", directions=directions, relevance=ClassRelevance(0))
    with pytest.raises(UsageError, match="layers=output: relevance for a class ranks units of layers below the output"):
        select_units(network, ["output"], pooling="relevance", relevance=ClassRelevance(0))
    with pytest.raises(UsageError, match="relevance=correlation: one of"):
        select_units(network, [LAYER], pooling="relevance", relevance=ClassRelevance(0, "correlation"))


def test_many_features_are_ranked_in_parts(
    network: VisionNetwork, folder: ImageFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The maps of an autoencoder's features are large: those of a few images are in memory at a time."""
    generator = torch.Generator().manual_seed(0)
    encoder = torch.randn(FEATURES, WIDTH, generator=generator)
    read = SparseAutoencoder(encoder, torch.zeros(FEATURES), torch.zeros(WIDTH))
    units, images = select_units(network, [LAYER], directions={LAYER: read}), pictures(folder)
    whole = units.ranked(images)[LAYER]
    monkeypatch.setattr("vital_exp.mining.units.LARGEST_MAPS", FEATURES * 64 * 5)
    for one, other in zip(units.ranked(images)[LAYER], whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(units.values(images)[LAYER], whole[0], rtol=1e-5, atol=1e-6)
