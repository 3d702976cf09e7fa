"""Judges with weights of their own: CLIP, LPIPS, Inception; tiny or random, loaded by the real code."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torchmetrics.functional.image.lpips import _LPIPS

from vital_exp import load_model
from vital_exp.errors import UsageError
from vital_exp.evaluation import perceptual, weights
from vital_exp.evaluation.clip import best_words, load_clip, naming, vocabulary
from vital_exp.evaluation.inception import load_inception
from vital_exp.evaluation.metrics import chosen
from vital_exp.evaluation.pictures import PictureSet
from vital_exp.evaluation.score import NotComputed
from vital_exp.evaluation.settings import ClipSettings, LpipsSettings, MetricSettings
from vital_exp.evaluation.table import Evaluation
from vital_exp.models.model_config import ModelConfig
from vital_exp.references.drawn import CLASS_NAMES
from vital_exp.runs.evaluate import evaluate_pictures
from vital_exp.targets.class_names import ClassNames
from vital_exp.targets.unit import Target

CPU = torch.device("cpu")
NAMES = ClassNames(CLASS_NAMES)


def random_pictures(count: int, side: int = 64) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def table_of(settings: MetricSettings, metrics: list[str], targets: list[Target] | None = None) -> Evaluation:
    network = load_model("embedded_resnet")
    own = targets or [Target("class", index) for index in range(4)]
    pixels = (random_pictures(len(own)) * 255).round().to(torch.uint8)
    pictures = PictureSet(own, pixels)
    return evaluate_pictures(network, pictures, None, (), chosen(metrics), (), settings, Path("nowhere"))


# --- CLIP -----------------------------------------------------------------------------------------------------------


def test_clip_loads_local_weights_and_scores(tiny_clip: dict[str, Any], tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("star\nheart\ncat\ndog\n")
    found = table_of(MetricSettings(clip=ClipSettings(**tiny_clip, vocabulary=str(words))), ["clip", "naming"])
    assert {"clip_top1", "clip_top5", "clip_probability", "clip_score", "naming"} == set(found.scores)
    assert found.forward_passes["clip"] == 4
    import open_clip

    model = load_clip(**tiny_clip, pretrained="", templates="photo", download=False, device=CPU)
    raw = model.model
    tokens = open_clip.get_tokenizer("tiny-clip")([f"a photo of a {name}." for name in CLASS_NAMES])
    pixels = (random_pictures(4) * 255).round() / 255
    shown = torch.nn.functional.interpolate(pixels, (32, 32), mode="bilinear", antialias=True)
    mean, std = torch.tensor(raw.visual.image_mean)[:, None, None], torch.tensor(raw.visual.image_std)[:, None, None]
    with torch.no_grad():
        images, texts = raw.encode_image((shown - mean) / std), raw.encode_text(tokens)
    cosines = torch.nn.functional.cosine_similarity(images[:, None], texts[None], dim=2)
    wanted = (100 * cosines.diagonal()).clamp(min=0).mean()
    assert found.scores["clip_score"].value == pytest.approx(float(wanted), abs=1e-3)
    shares = (raw.logit_scale.exp() * cosines).softmax(dim=1).diagonal().mean()
    assert found.scores["clip_probability"].value == pytest.approx(float(shares), rel=1e-3)


def test_true_names_score_better_with_a_clip_that_knows_them() -> None:
    """Embeddings made by hand: what a good CLIP would give."""
    generator = torch.Generator().manual_seed(0)
    names = torch.nn.functional.normalize(torch.randn(6, 32, generator=generator), dim=1)
    words = torch.cat([names, torch.nn.functional.normalize(torch.randn(20, 32, generator=generator), dim=1)])
    pictures = torch.nn.functional.normalize(names + 0.02 * torch.randn(6, 32, generator=generator), dim=1)
    assert best_words(pictures, words, 1)[:, 0].tolist() == list(range(6))
    assert (naming(pictures, words, names) > naming(pictures, words, names.roll(1, 0))).all()
    top = [np.argsort(-(words @ picture).numpy())[:3] for picture in pictures]
    wanted = [np.mean([float(words[j] @ names[i]) for j in best]) for i, best in enumerate(top)]
    assert naming(pictures, words, names).tolist() == pytest.approx(wanted, rel=1e-5)


def test_templates_are_averaged(tiny_clip: dict[str, Any]) -> None:
    model = load_clip(**tiny_clip, pretrained="", templates="imagenet", download=False, device=CPU)
    assert len(model.templates) == 80
    model.templates = ["a {}", "two {}s"]
    each = model.texts(["a star", "two stars"])
    mean = torch.nn.functional.normalize(each.mean(dim=0), dim=0)
    assert torch.allclose(model.names(["star"])[0], mean, atol=1e-5)


def test_clip_s_mistakes(tiny_clip: dict[str, Any], tmp_path: Path) -> None:
    other = {"pretrained": "openai", "templates": "photo", "download": False, "device": CPU}
    with pytest.raises(NotComputed, match=r"needs the weights of CLIP: evaluation.clip.checkpoint=file"):
        load_clip("ViT-B-32", None, **other)
    with pytest.raises(UsageError, match=r"evaluation.clip.model=ViT-B-33: .*did you mean ViT-B-32"):
        load_clip("ViT-B-33", tiny_clip["checkpoint"], **other)
    with pytest.raises(UsageError, match=r"evaluation.clip.checkpoint=nowhere: no such file"):
        load_clip("ViT-B-32", "nowhere", **other)
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(UsageError, match=r"the weights of another network: .*tiny-clip"):
        load_clip(tiny_clip["model"], str(tmp_path / "other.pt"), **other)
    with pytest.raises(UsageError, match=r"evaluation.clip.pretrained=opnai: .*did you mean openai"):
        load_clip("ViT-B-32", None, **{**other, "pretrained": "opnai", "download": True})


def test_the_vocabulary_is_imagenet_s_names_or_a_file(tmp_path: Path) -> None:
    words = vocabulary(None, NAMES)
    assert {"golden retriever", "tench", "doughnut"} <= set(words)
    assert len(words) == len(set(words))
    (tmp_path / "words.txt").write_text("cat\n\n dog \n")
    assert vocabulary(str(tmp_path / "words.txt"), NAMES) == ["cat", "dog", *CLASS_NAMES]


def test_without_open_clip_the_table_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vital_exp.evaluation.clip.find_spec", lambda _name: None)
    assert "vital-exp[clip]" in str(table_of(MetricSettings(), ["clip"]).scores["clip"].reason)


# --- LPIPS ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def squeeze(tmp_path: Path) -> Path:
    """torchvision's SqueezeNet with random weights, on disk."""
    from torchvision.models import squeezenet1_1

    torch.manual_seed(0)
    path = tmp_path / "squeeze.safetensors"
    save_file(squeezenet1_1(weights=None).state_dict(), path)
    return path


@pytest.mark.filterwarnings("ignore")
def test_lpips_is_that_of_the_lpips_package(squeeze: Path) -> None:
    peer = pytest.importorskip("lpips")
    pictures = random_pictures(3)
    ours = perceptual.load_lpips("squeeze", str(squeeze), download=False)
    theirs = peer.LPIPS(net="squeeze", pnet_rand=True, verbose=False).eval()
    own = dict(zip(theirs.net.state_dict(), ours.net.state_dict().values(), strict=True))  # slices by other names
    theirs.net.load_state_dict(own)
    with torch.no_grad():
        pairs = [float(theirs(pictures[[i]], pictures[[j]], normalize=True)) for i, j in combinations(range(3), 2)]
    assert perceptual.mean_distance(ours, pictures) == pytest.approx(np.mean(pairs), rel=1e-4)


def test_diversity_is_of_a_target_s_variations(squeeze: Path) -> None:
    settings = MetricSettings(lpips=LpipsSettings("squeeze", str(squeeze)))
    targets = [Target("class", index, variation=variation) for index in range(2) for variation in (1, 2)]
    found = table_of(settings, ["lpips_diversity"], [*targets, Target("class", 7)]).scores["lpips_diversity"]
    assert found.n == 2
    assert found.value is not None
    assert found.value > 0
    lpips = perceptual.load_lpips("squeeze", str(squeeze), download=False)
    pixels = (random_pictures(5) * 255).round() / 255
    pairs = [perceptual.mean_distance(lpips, pixels[part]) for part in (slice(0, 2), slice(2, 4))]
    assert found.value == pytest.approx(np.mean(pairs), rel=1e-4)
    assert "at least 2 pictures of a unit" in str(table_of(settings, ["lpips_diversity"]).metrics["lpips_diversity"])


def test_the_backbone_of_each_lpips_loads_torchvision_s_names(tmp_path: Path) -> None:
    from torchvision.models import alexnet

    torch.manual_seed(1)
    network = alexnet(weights=None)
    path = tmp_path / "alexnet.pth"
    torch.save(network.state_dict(), path)
    found = perceptual.load_lpips("alex", str(path), download=False)
    assert torch.equal(found.net.slice1[0].weight, network.features[0].weight)
    assert torch.equal(found.net.slice5[1 - 1].weight, network.features[10].weight)


@pytest.mark.parametrize("names", ["features", "torchmetrics"])
def test_a_complete_lpips_brings_its_own_linear_maps(names: str, tmp_path: Path) -> None:
    torch.manual_seed(2)
    source = _LPIPS(net="alex", pretrained=False, pnet_rand=True)
    tensors = {name: value.half() for name, value in source.state_dict().items() if not name.startswith("lins.")}
    if names == "features":
        tensors = {re.sub(r"^net\.slice\d+\.", "features.", name): value for name, value in tensors.items()}
    path = tmp_path / "lpips.safetensors"
    save_file(tensors, path)
    pictures = random_pictures(2)
    found = perceptual.mean_distance(perceptual.load_lpips("alex", str(path), download=False), pictures)
    own = float(source.half().float().eval()(pictures[:1], pictures[1:], normalize=True))
    assert found == pytest.approx(own, rel=1e-3)  # halves of the scaling too
    save_file({name: value for name, value in tensors.items() if "lin" in name}, path)
    with pytest.raises(UsageError, match=r"checkpoint=.*: weights are missing or of another network than .*net=alex"):
        perceptual.load_lpips("alex", str(path), download=False)


def test_lpips_of_a_published_file_is_as_documented(data: Path) -> None:
    """torchmetrics documents 0.1024 and 0.0938 for two pairs of random pictures, by SqueezeNet."""
    path = data / "data" / "weights" / "lpips_squeeze_v0.1.fp16.safetensors"
    lpips = perceptual.load_lpips("squeeze", str(path), download=False)
    generator = torch.Generator().manual_seed(42)
    first, second = (torch.rand(2, 3, 100, 100, generator=generator) for _ in range(2))
    pairs = [perceptual.mean_distance(lpips, torch.stack(pair)) for pair in zip(first, second, strict=True)]
    assert pairs == pytest.approx([0.1024, 0.0938], abs=1e-4)


def test_lpips_s_mistakes(squeeze: Path) -> None:
    with pytest.raises(UsageError, match="another network"):
        perceptual.load_lpips("alex", str(squeeze), download=False)
    with pytest.raises(UsageError, match=r"evaluation.lpips.checkpoint=nowhere: no such file"):
        perceptual.load_lpips("alex", "nowhere", download=False)


# --- Inception and the weights of judges ----------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_inception_loads_local_weights_without_running_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fidelity = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    monkeypatch.setattr(fidelity, "load_state_dict_from_url", lambda *_a, **_k: {})
    with monkeypatch.context() as patch:
        patch.setattr(fidelity.FeatureExtractorInceptionV3, "load_state_dict", lambda *_a, **_k: None)
        built = fidelity.FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"])
    for value in built.state_dict().values():
        value.copy_(torch.rand(value.shape) * 0.02)
    path = tmp_path / "inception.safetensors"
    save_file(built.state_dict(), path)
    reader = load_inception(str(path), download=False, device=CPU)
    read = reader(random_pictures(2))
    features, logits = built((random_pictures(2) * 255).round().to(torch.uint8))
    assert torch.allclose(read.features, features, atol=1e-5)
    assert read.logits is not None
    assert torch.allclose(read.logits, logits, atol=1e-5)
    early = load_inception(str(path), download=False, device=CPU, features=64)
    assert early(random_pictures(2)).features.shape == (2, 64)
    with pytest.raises(UsageError, match="no such file"):
        load_inception("nowhere", download=False, device=CPU)


def test_inception_is_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(NotComputed, match="needs"):
        load_inception(None, download=False, device=CPU)


def test_weights_are_looked_for_where_they_would_be_fetched_to(tmp_path: Path) -> None:
    resnet = ModelConfig("torchvision", "resnet50", weights="IMAGENET1K_V1")
    assert not weights.weights_there(resnet, tmp_path)
    (tmp_path / "resnet50-0676ba61.pth").write_bytes(b"")
    assert weights.weights_there(resnet, tmp_path)
    timm_one = ModelConfig("timm", "resnet18.a1_in1k")
    assert not weights.weights_there(timm_one, tmp_path)
    snapshot = tmp_path / "models--timm--resnet18.a1_in1k" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").write_bytes(b"")
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    assert weights.weights_there(timm_one, tmp_path)
    for local in (
        ModelConfig("timm", "resnet18", pretrained=False),
        ModelConfig("timm", "resnet18", checkpoint="x"),
        ModelConfig("embedded", "embedded_judge"),
    ):
        assert weights.weights_there(local, tmp_path)
