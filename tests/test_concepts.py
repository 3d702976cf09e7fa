"""Concepts of a layer: factorisations, importance, what vital-mine writes, what they say of drawn images."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from tests.test_mine_command import MISTAKE, QUIET, command
from tests.tiny import image_folder, tiny_net
from vital_exp import load_model
from vital_exp.concepts.concepts import Concepts
from vital_exp.concepts.factors import factorise
from vital_exp.concepts.importance import Explained, total_sobol
from vital_exp.concepts.layers import without_negatives
from vital_exp.concepts.patches import PatchActivations
from vital_exp.concepts.rest import Rest
from vital_exp.errors import UsageError
from vital_exp.mining.images import ImageFolder
from vital_exp.mining.index import Index
from vital_exp.mining.patches import PatchSettings
from vital_exp.models.network import VisionNetwork, model_space
from vital_exp.models.taps import Taps
from vital_exp.references.drawn import draw_set

SIZE = 32


def network() -> VisionNetwork:
    return load_model(tiny_net(), size=SIZE, class_names=["a", "b", "c", "d"])


def activations(count: int = 60, channels: int = 7) -> Tensor:
    return torch.rand(count, channels, generator=torch.Generator().manual_seed(0))


# Factorisations.


def test_nmf_is_scikit_learns() -> None:
    from sklearn.decomposition import NMF

    values = activations()
    factors = factorise(values, 3, "nmf", seed=5)
    twin = NMF(3, init="nndsvda", max_iter=1000, random_state=5)
    coefficients = twin.fit_transform(values.double().numpy())
    np.testing.assert_allclose(factors.components, twin.components_, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(factors.coefficients(values), coefficients, rtol=5e-2, atol=2e-3)
    np.testing.assert_allclose(factors.directions @ factors.components.T, np.eye(3), atol=1e-5)
    assert factors.coefficients(values).min() >= 0


def test_pca_is_scikit_learns() -> None:
    from sklearn.decomposition import PCA

    values = activations()
    factors = factorise(values, 3, "pca")
    twin = PCA(3, svd_solver="full").fit(values.double().numpy())
    np.testing.assert_allclose(factors.components, twin.components_, atol=1e-6)
    np.testing.assert_allclose(factors.coefficients(values), twin.transform(values.double().numpy()), atol=1e-6)
    rebuilt = factors.mean + factors.coefficients(values) @ factors.components
    np.testing.assert_allclose(rebuilt, twin.inverse_transform(twin.transform(values.double().numpy())), atol=1e-6)


def test_kmeans_names_the_nearest_centre() -> None:
    middles = torch.tensor([[0.0, 0.0, 9.0], [9.0, 0.0, 0.0], [0.0, 9.0, 0.0]])
    values = torch.cat([middle + activations(20, 3) for middle in middles])
    factors = factorise(values, 3, "kmeans", seed=1)
    chosen = factors.coefficients(values)
    distances = torch.cdist(values, factors.mean + factors.components)
    assert torch.equal(chosen.argmax(dim=1), distances.argmin(dim=1))
    assert chosen.sum(dim=1).tolist() == [1.0] * 60
    assert sorted(chosen.sum(dim=0).tolist()) == [20.0] * 3
    assert torch.equal(factorise(values, 3, "kmeans", seed=1).directions, factors.directions)


def test_what_cannot_be_factorised_is_said() -> None:
    with pytest.raises(UsageError, match=r"concepts.count=8: at most 7: 60 patches, 7 channels"):
        factorise(activations(), 8)
    with pytest.raises(UsageError, match="at least 0"):
        factorise(activations() - 0.5, 3)
    with pytest.raises(UsageError, match="did you mean nmf"):
        factorise(activations(), 3, "nnmf")


# Importance.


def test_total_sobol_indices_have_their_closed_form() -> None:
    weights = torch.tensor([1.0, 2.0, 3.0, 0.0])  # additive: shares of the variance
    found = total_sobol(lambda x: x @ weights, 4, designs=1024)
    np.testing.assert_allclose(found, weights**2 / (weights**2).sum(), atol=5e-3)
    product = total_sobol(lambda x: x[:, 0] * x[:, 1], 3, designs=1024)  # 4/7 each: 1/36 of 7/144
    np.testing.assert_allclose(product, [4 / 7, 4 / 7, 0], atol=5e-3)
    assert total_sobol(lambda x: torch.full((len(x),), 7.0), 3).tolist() == [0, 0, 0]


def explained(of_class: int = 2) -> Explained:
    own, picture = network(), torch.rand(3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    rest = Rest(own, "layer1", picture)
    factors = factorise(rest.activation.flatten(1).T, 3, "nmf")
    return Explained(rest, factors, of_class)


def test_the_rest_of_a_network_continues_it() -> None:
    own, picture = network(), torch.rand(3, SIZE, SIZE)
    for layer in ("conv1", "layer1", "fc"):
        rest = Rest(own, layer, picture)
        twice = torch.stack([rest.activation, 2 * rest.activation])
        np.testing.assert_allclose(rest(twice)[0], own(picture[None])[0], rtol=1e-5, atol=1e-6)
        assert not torch.allclose(rest(twice)[0], rest(twice)[1])
    assert not own.module.layer1._forward_hooks  # type: ignore[union-attr, operator]


def test_importance_in_a_linear_head_is_what_algebra_says() -> None:
    # After layer1 TinyNet is a mean over positions and a linear map: the logit is additive in the concepts.
    one = explained()
    shares = torch.stack([part.mean(dim=1) for part in one.parts]) @ one.rest._module.fc.weight[2]  # type: ignore[union-attr]
    np.testing.assert_allclose(one.gradient(), shares, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(one.sobol(1024, 0), shares**2 / (shares**2).sum(), atol=1e-2)
    masks = torch.tensor([[1.0, 1.0, 1.0], [0.0, 1.0, 1.0]])
    logits = one.logits(masks)
    assert float(logits[0] - logits[1]) == pytest.approx(float(shares[0]), rel=1e-3, abs=1e-6)


# Patches.


def test_patch_activations_are_those_of_enlarged_windows(tmp_path: Path) -> None:
    own = network()
    folder = ImageFolder(image_folder(tmp_path / "photos", ["a"], count=3, corrupt=1), own.preprocessing)
    patch = PatchSettings(16, 0)
    found = PatchActivations(own, "layer1", folder, patch, limit=1000)()
    assert found.shape == (3 * 4, 16)
    window = folder.load(folder.paths[0])[:, 16:, :16]
    large = torch.nn.functional.interpolate(window[None], (SIZE, SIZE), mode="bilinear", antialias=True)
    expected = Taps(own.module, ["layer1"])(model_space(large, own))[0]["layer1"].mean((2, 3))
    np.testing.assert_allclose(found[2], expected[0], rtol=1e-3, atol=1e-4)
    few = PatchActivations(own, "layer1", folder, patch, limit=5, seed=3)
    assert len(few()) <= 5  # some may be of the corrupt file
    assert torch.equal(few(), few())


def test_activations_that_cannot_be_used_are_told_at_the_first_image(tmp_path: Path) -> None:
    own, seen = network(), []
    folder = ImageFolder(image_folder(tmp_path / "photos", ["a"], count=3), own.preprocessing)

    def check(activations: torch.Tensor) -> None:
        seen.append(len(activations))
        raise UsageError("concepts", "nmf", "negative")

    with pytest.raises(UsageError, match="negative"):
        PatchActivations(own, "layer1", folder, PatchSettings(16, 0), limit=1000, check=check)()
    assert seen == [4]


# Ground truth.


def correlations(values: Tensor, factors: Tensor) -> np.ndarray:
    """Best |correlation| of each column of ``values`` (n, K) with a column of ``factors`` (n, F)."""
    found = np.corrcoef(values.T.numpy(), factors.T.numpy())[: values.shape[1], values.shape[1] :]
    best: np.ndarray = np.abs(np.nan_to_num(found)).max(axis=1)
    return best


def test_nmf_finds_the_factors_that_images_were_drawn_with() -> None:
    """Ten kinds of shape, colour and ground; at least half of the concepts of the last stage are one of them."""
    own = load_model("embedded_resnet")
    images, labels = draw_set(8, seed=5)
    maps = Taps(own.module, ["layer4"])(model_space(images, own))[0]["layer4"].flatten(2)  # (N, C, P)
    planted = torch.nn.functional.one_hot(labels).float()
    factors = factorise(maps.transpose(1, 2).flatten(0, 1), 10, "nmf", seed=0)  # a position is a patch
    coefficients = factors.coefficients(maps.transpose(1, 2).flatten(0, 1)).view(len(images), -1, 10).mean(dim=1)
    best = correlations(coefficients, planted)
    assert (best >= 0.8).mean() >= 0.5, best.round(2)
    shuffled = planted[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))]
    assert correlations(coefficients, shuffled).max() < 0.5  # the control


# The command.

SHORT = ("images={photos}", "layers=[layer4]", "k=3", "patch.overlap=0", "workers=0", "batch_size=64", "progress=false")


@pytest.fixture
def workplace(workplace: Path) -> Path:
    image_folder(workplace / "photos", ["star", "heart"], count=4, corrupt=1)
    return workplace


def concepts(workplace: Path, *arguments: str) -> int:
    placed = [argument.replace("{photos}", str(workplace / "photos")) for argument in SHORT]
    return command(*placed, *QUIET, "hydra.run.dir=run", *arguments)


def test_concepts_of_a_class(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("concepts=nmf", "concepts.class=heart", "concepts.count=4", "concepts.explained=2")
    assert concepts(workplace, *asked) == 0
    printed = capsys.readouterr().out
    assert "4 of layer4" in printed
    assert "1 of 5 images could not be read" in printed
    found = Concepts.open("run")
    assert found.meta["folder"] == str((workplace / "photos" / "heart").resolve())
    assert (found.meta["class"], found.meta["label"], found.meta["importance"]) == (1, "heart", "sobol")
    assert found.importance is not None
    assert found.importance.tolist() == sorted(found.importance.tolist(), reverse=True)
    rows = list(csv.DictReader(Path("run/concepts.csv").read_text().splitlines()))
    assert [float(row["importance"]) for row in rows] == pytest.approx(found.importance.tolist(), rel=1e-4)
    assert rows[0]["importance_kind"] == "sobol"
    index = Index.open("run")
    assert index.units() == [("layer4", number) for number in range(4)]
    assert load_file("run/concepts.safetensors")["directions"].shape == (4, 192)
    with Image.open("run/concepts.jpg") as sheet:
        assert np.asarray(sheet).std() > 10
    assert "total Sobol index" in Path("run/index.html").read_text()
    assert json.loads(Path("run/provenance.json").read_text())["network"] == "embedded_resnet"

    before = Path("run/concepts.safetensors").stat().st_mtime_ns
    assert concepts(workplace, *asked) == 0
    assert Path("run/concepts.safetensors").stat().st_mtime_ns == before
    capsys.readouterr()
    assert concepts(workplace, *asked, "concepts.seed=1") == MISTAKE
    assert "seed (0 there, 1 now)" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["kmeans", "pca"])
def test_concepts_of_a_folder_by_other_methods(method: str, workplace: Path) -> None:
    assert concepts(workplace, f"concepts={method}", "concepts.count=3", "sheets=false") == 0
    found = Concepts.open("run")
    assert (found.factors.method, len(found), found.importance) == (method, 3, None)
    assert not Path("run/index.html").exists()


def test_gradient_importance_is_named(workplace: Path) -> None:
    asked = ("concepts=pca", "concepts.class=0", "concepts.count=3", "concepts.explained=2", "sheets=false")
    assert concepts(workplace, *asked, "concepts.importance=gradient") == 0
    assert Concepts.open("run").meta["importance"] == "gradient"


MISTAKES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "an unknown method": (("concepts=nnmf",), ("concepts=nnmf", "nmf")),
    "more than the patches allow": (("concepts=nmf", "concepts.count=1000"), ("concepts.count=1000", "patches")),
    "negative activations": (
        ("concepts=nmf", "layers=[layer4.0.conv2]"),
        ("concepts=nmf", "layer4.0.conv2", "after the ReLU", "such as", "concepts=pca"),
    ),
    "no such class": (("concepts=nmf", "concepts.class=hart"), ("concepts.class=hart", "did you mean heart")),
    "a class without images": (("concepts=nmf", "concepts.class=moon"), ("images=", "0 folders of class 6")),
    "unknown importance": (("concepts=nmf", "concepts.importance=sobo"), ("concepts.importance=sobo", "sobol")),
    "two layers": (("concepts=nmf", "layers=[layer3,layer4]"), ("layers=", "one layer")),
    "no layer": (("concepts=nmf", "layers=[layer9]"), ("layers=layer9", "layer4")),
    "no count": (("concepts=nmf", "concepts.count=0"), ("concepts.count=0", "at least 1")),
    "an unknown key": (("concepts=nmf", "concepts.cout=3"), ("concepts.cout=3", "concepts.count")),
    "keys without concepts": (("concepts.count=3",), ("concepts.count=3", "concepts=")),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(mistake: str, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, words = MISTAKES[mistake]
    assert concepts(workplace, *arguments) == MISTAKE
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert all(word in lines[0] for word in words), lines[0]


def test_a_network_without_classes_has_none_to_explain(tmp_path: Path) -> None:
    from vital_exp.concepts.mine import ConceptMining, ConceptSettings

    module = tiny_net()
    module.fc, module.num_classes = torch.nn.Identity(), 0  # type: ignore[assignment]
    own = load_model(module, size=SIZE)
    folder = ImageFolder(image_folder(tmp_path / "photos", ["a"]), own.preprocessing)
    with pytest.raises(UsageError, match=r"concepts.class=0: TinyNet has no class outputs"):
        ConceptMining(own, "layer1", folder, ConceptSettings(of_class=0)).run(tmp_path / "run")


def test_layers_after_a_relu_are_suggested() -> None:
    own = network()
    assert without_negatives(own, "conv1", torch.rand(3, SIZE, SIZE)) == ["relu"]
    assert without_negatives(own, "layer1.0", torch.rand(3, SIZE, SIZE))[-1] == "layer1.1"


def test_the_files_of_others_are_no_concepts(tmp_path: Path) -> None:
    (tmp_path / "concepts.safetensors").write_text("no")
    with pytest.raises(UsageError, match="holds no concepts"):
        Concepts.open(tmp_path)
    with pytest.raises(UsageError, match=r"no concepts\.safetensors there"):
        Concepts.open(tmp_path / "other")
