"""Targets that are directions: of a file, mined concepts, features of sparse autoencoders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.test_mine_command import QUIET
from tests.test_mine_command import command as mine_command
from tests.tiny import command, image_folder, tiny_net
from vital_exp import load_model, visualize
from vital_exp.errors import UsageError
from vital_exp.mining.mine import mine
from vital_exp.models.layers import default_layers
from vital_exp.models.loading import build_network
from vital_exp.models.model_config import ModelConfig
from vital_exp.models.network import VisionNetwork, model_space
from vital_exp.models.open_clip import ClipNetwork
from vital_exp.models.taps import Taps
from vital_exp.relevance.maps import activations_and_relevance
from vital_exp.targets.autoencoder import SparseAutoencoder
from vital_exp.targets.autoencoder_files import load_autoencoder
from vital_exp.targets.directions import load_directions
from vital_exp.targets.readout import readout
from vital_exp.targets.unit import Target

SIZE, CHANNELS, FEATURES = 32, 16, 24
SHORT = ["evaluation=none", "references.cache=false", "batch_size=1"]
KEYS: dict[str, Any] = {
    **{"format": "auto", "mean": None, "scale": None},
    **{"layer": "layer1", "encoder": "encoder.weight", "encoder_bias": "encoder.bias", "decoder": "decoder.weight"},
    **{"decoder_bias": "decoder.bias", "activation": "relu", "k": None, "threshold": None},
}


def network() -> VisionNetwork:
    return load_model(tiny_net(), size=SIZE)


def images(count: int = 3) -> Tensor:
    return torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    stream = torch.Generator().manual_seed(3)
    path = tmp_path_factory.mktemp("sae") / "sae.safetensors"
    tensors = {
        "encoder.weight": torch.randn(FEATURES, CHANNELS, generator=stream),
        "encoder.bias": 0.1 * torch.randn(FEATURES, generator=stream),
        "decoder.weight": torch.randn(CHANNELS, FEATURES, generator=stream),
        "decoder.bias": 0.1 * torch.randn(CHANNELS, generator=stream),
        "threshold": torch.tensor(0.7),
    }
    save_file(tensors, path)
    return path


def twin(one: SparseAutoencoder, values: np.ndarray) -> np.ndarray:
    """The encoder position by position, by matrix products, (N, F, P)."""
    found = np.zeros((len(values), len(one), values.shape[2]))
    for n in range(len(values)):
        for p in range(values.shape[2]):
            found[n, :, p] = one.encoder.numpy() @ (values[n, :, p] - one.shift.numpy()) + one.bias.numpy()
        if one.activation == "topk":
            for p in range(values.shape[2]):
                found[n, np.argsort(found[n, :, p])[: -one.k or None], p] = 0
        if one.activation == "batch_topk" and one.threshold is None:
            least = np.sort(found[n].ravel())[-one.k * values.shape[2]]  # type: ignore[operator]
            found[n][found[n] < least] = 0
        if one.threshold is not None:
            found[n][found[n] <= one.threshold] = 0
    return np.maximum(found, 0)


ENCODERS = [{"activation": "relu"}, {"activation": "topk", "k": 3}, {"activation": "batch_topk", "k": 3}]
ENCODERS += [{"activation": "batch_topk", "threshold": "threshold"}]


@pytest.mark.parametrize("kind", ENCODERS, ids=str)
def test_encoders_equal_their_matrix_twins(kind: dict[str, Any], checkpoint: Path) -> None:
    one = load_autoencoder({**KEYS, "checkpoint": str(checkpoint), **kind}, CHANNELS)
    values = torch.rand(2, CHANNELS, 5, generator=torch.Generator().manual_seed(1))
    expected = twin(one, values.numpy())
    np.testing.assert_allclose(one.encode(values), expected, atol=1e-5)
    features = torch.tensor([4, 9])
    np.testing.assert_allclose(one.read(values, features), expected[[0, 1], [4, 9]], atol=1e-5)


def test_a_sleeping_feature_has_the_gradient_of_its_linear_part(checkpoint: Path) -> None:
    one = load_autoencoder({**KEYS, "checkpoint": str(checkpoint), "activation": "topk", "k": 1}, CHANNELS)
    values = torch.rand(1, CHANNELS, 2, requires_grad=True)
    sleeping = one.encode(values)[0].sum(dim=1).argmin()
    read = one.read(values, sleeping[None])
    assert float(read.detach().sum()) == 0
    (gradient,) = torch.autograd.grad(read.sum(), values)
    np.testing.assert_allclose(gradient[0, :, 0], one.encoder[sleeping], rtol=1e-6)


def test_relevance_passes_the_encoder_like_a_linear_layer(checkpoint: Path) -> None:
    """Start from the feature: its shares by channel, where it is active; what is below follows as for a direction."""
    own, pictures = network(), model_space(images(), network())
    one = load_autoencoder({**KEYS, "checkpoint": str(checkpoint)}, CHANNELS)
    read = readout([Target("sae", 5, "layer1")] * 3, CHANNELS, one)
    _, maps, value = activations_and_relevance(own.module, pictures, ["layer1", "conv1"], read, "lrp")
    activation = Taps(own.module, ["layer1"])(pictures)[0]["layer1"].flatten(2)
    expected = one.encoder[5][:, None] * (activation - one.shift[:, None]) * (value > 0)[:, None]
    assert (value > 0).any(dim=1).all()
    np.testing.assert_allclose(maps["layer1"].flatten(2), expected, atol=1e-6)
    assert maps["conv1"].abs().sum() > 0
    plain = SparseAutoencoder(one.encoder, torch.zeros(FEATURES), torch.zeros(CHANNELS))
    as_direction = readout([Target("direction", 5, "layer1")] * 3, CHANNELS, one.encoder)
    as_feature = readout([Target("sae", 5, "layer1")] * 3, CHANNELS, plain)
    below = [
        activations_and_relevance(own.module, pictures, ["conv1"], r, "lrp")[1] for r in (as_direction, as_feature)
    ]
    torch.testing.assert_close(below[0]["conv1"], below[1]["conv1"])


def test_features_are_mined_by_their_activation(checkpoint: Path, tmp_path: Path) -> None:
    own, folder = network(), image_folder(tmp_path / "photos", ["a"], count=6, side=SIZE)
    one = load_autoencoder({**KEYS, "checkpoint": str(checkpoint), "activation": "topk", "k": 2}, CHANNELS)
    found = mine(own, ["layer1"], folder, k=3, out=tmp_path / "run", directions={"layer1": one}, patch=None)
    feature = found.units()[0][1]  # the first that any image wakes
    shown = {row.image: row.activation for row in found.top("layer1", feature)}
    assert min(shown.values()) > 0
    for path, activation in shown.items():
        rgb = own_image(own, folder / path)
        values = Taps(own.module, ["layer1"])(model_space(rgb, own))[0]["layer1"].flatten(2)
        assert activation == pytest.approx(float(one.encode(values)[0, feature].max()), abs=1e-4)


def own_image(own: VisionNetwork, path: Path) -> Tensor:
    from vital_exp.mining.images import ImageFolder

    return ImageFolder(path.parent, own.preprocessing).load(path.name)[None]


@pytest.mark.parametrize("method", ["vital", "vital_fourier", "maco", "fourier"])
def test_pictures_of_features_by_every_method(method: str, checkpoint: Path, tmp_path: Path) -> None:
    given = [f"target.checkpoint={checkpoint}", "target.activation=topk", "target.k=4", "target.decoder=decoder.weight"]
    made = visualize(
        network(), ["sae-layer1-5"], references=images(), steps=2, method=method, overrides=[*SHORT, *given]
    )
    assert made.results[0]["status"] == "done", made.results[0]["error"]
    assert made.results[0]["target"] == "sae-layer1-5"
    assert made.results[0]["activation"] >= 0


SAE_MISTAKES = [
    ({"checkpoint": None}, r"target.checkpoint=None: a file of a sparse autoencoder"),
    ({"checkpoint": "nowhere.safetensors"}, r"target.checkpoint=nowhere.safetensors: no such file"),
    ({"encoder": "encoder.wight"}, r"target.encoder=encoder.wight: no such tensor.*did you mean encoder.weight"),
    ({"encoder": "decoder.bias"}, r"target.encoder=decoder.bias: has the shape \(16,\), another width: layer1 has 16"),
    ({"encoder_bias": "decoder.bias"}, r"target.encoder_bias=decoder.bias: has 16 values, and 24 are needed"),
    ({"decoder": "encoder.bias"}, r"target.decoder=encoder.bias: has the shape \(24,\)"),
    ({"activation": "top"}, r"target.activation=top: one of relu, topk, batch_topk, jump_relu"),
    ({"activation": "topk"}, r"target.k=None: topk needs the number of features to keep, a whole number from 1 to 24"),
    (
        {"activation": "batch_topk", "threshold": "encoder.bias"},
        r"target.threshold=encoder.bias: must be a number, or the name of a tensor with one value",
    ),
]


@pytest.mark.parametrize(("changed", "message"), SAE_MISTAKES)
def test_mistakes_of_autoencoders(changed: dict[str, Any], message: str, checkpoint: Path) -> None:
    with pytest.raises(UsageError, match=message):
        load_autoencoder({**KEYS, "checkpoint": str(checkpoint), **changed}, CHANNELS)


def test_an_autoencoder_of_another_layer_or_of_none(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = ("model=embedded_resnet", "target=sae", f"target.checkpoint={checkpoint}", "trainer.accelerator=cpu")
    assert command(*asked) == 2
    assert "target.layer=None: the name of a layer is needed" in capsys.readouterr().err
    assert command(*asked, "target.layer=layer4") == 2
    assert (
        "target.encoder=encoder.weight: has the shape (24, 16), another width: layer4 has 192 channels"
        in capsys.readouterr().err
    )


def test_one_direction_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "concepts.safetensors"
    save_file({"directions": torch.eye(4), "mean": torch.ones(4)}, path)
    assert load_directions(str(path)).tolist() == torch.eye(4).tolist()
    assert load_directions(f"{path}#2").tolist() == [[0, 0, 1, 0]]
    assert load_directions(f"{path}#mean").tolist() == [[1, 1, 1, 1]]
    with pytest.raises(UsageError, match="holds 4 directions, 0 to 3"):
        load_directions(f"{path}#4")
    with pytest.raises(UsageError, match="name one of the file's tensors"):
        load_directions(f"{path}#means")


@pytest.mark.slow
def test_concepts_are_targets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Mined by vital-mine or on the way, the concepts and their references are the same."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    photos = image_folder(tmp_path / "photos", ["star", "heart"], count=4)
    mined = ("images=photos", "layers=[layer3]", "concepts=nmf", "concepts.count=3", "k=2", "workers=0", "sheets=false")
    assert mine_command("model=embedded_resnet", *mined, *QUIET, "hydra.run.dir=mined") == 0
    short = (
        "model=embedded_resnet",
        "target=concept",
        "steps=1",
        "references.count=2",
        "evaluation=none",
        "logger=none",
    )
    short = (*short, "target.index=1", "batch_size=1", *QUIET, "references.cache=false")
    assert command(*short, "target.concepts=mined", "hydra.run.dir=read") == 0
    now = ("target.layer=layer3", "target.count=3", f"references.root={photos}", "hydra.run.dir=now")
    assert command(*short, *now, "references.candidates=2") == 0  # as k=2 above
    for run in ("read", "now"):
        assert Path(f"{run}/images/concept-layer3-1.png").is_file()
    first, second = (Path(f"{run}/references/concept-layer3-1.jpg").read_bytes() for run in ("read", "now"))
    assert first == second
    capsys.readouterr()
    mistakes = {
        ("target.concepts=photos",): "no concepts.safetensors there",
        ("target.concepts=mined", "target.layer=layer4"): "target.layer=layer4: the concepts are of layer3",
        ("target.concepts=mined", "model.pretrained=false"): "another network",
        ("target.layer=layer3", f"references.root={photos}", "target.class=moon"): "0 folders of class 6",
        ("target.layer=layer3", f"references.root={photos}", "target.count=999"): "target.count=999: at most",
    }
    for given, message in mistakes.items():
        assert command(*short, *given, "hydra.run.dir=wrong") == 2
        told = capsys.readouterr().err
        assert message in told, told


@pytest.mark.parametrize(("name", "channel"), [("heart", 0), ("tree", 1)])
def test_the_picture_of_a_colour_direction_shows_the_colour(name: str, channel: int, tmp_path: Path) -> None:
    """A direction between drawn images in one colour and their grey twins: its picture has more of the colour."""
    from vital_exp.references.drawn import CLASS_NAMES, draw

    own = load_model("embedded_resnet")
    drawn = torch.stack([draw(CLASS_NAMES.index(name), number, 0) for number in range(8)])
    grey = drawn.mean(dim=1, keepdim=True).expand_as(drawn)
    tinted = grey.clone()
    tinted[:, [c for c in range(3) if c != channel]] *= 0.5
    maps = Taps(own.module, ["layer1"])(model_space(torch.cat([tinted, grey]), own))[0]["layer1"].mean(dim=(2, 3))
    save_file({"v": maps[:8].mean(dim=0) - maps[8:].mean(dim=0)}, tmp_path / "v.safetensors")
    made = visualize(
        own, ["direction-layer1-0"], references=tinted, steps=60, method="vital_fourier",
        overrides=[*SHORT, f"target.vectors={tmp_path / 'v.safetensors'}", "objective.alignment.readout_weight=1"],
    )  # fmt: skip
    means = made.images[0].mean(dim=(1, 2))
    others = [colour for colour in range(3) if colour != channel]
    assert means[channel] > 1.1 * means[others].max(), means


# Texts.


def test_pictures_of_words(tmp_path: Path, tiny_clip: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny CLIP model: the direction is the text's embedding, relevance reaches its blocks, a picture comes out."""
    monkeypatch.chdir(tmp_path)
    photos = image_folder(tmp_path / "photos", ["a"], count=3)
    own = [f"model.name={tiny_clip['model']}", f"model.checkpoint={tiny_clip['checkpoint']}", "model=open_clip"]
    short = [*own, "steps=2", "references.count=2", "evaluation=none", "logger=none", *QUIET, "references.region=image"]
    asked = [f"references.root={photos}", "target=text", "target.prompt=[a striped animal,a heart]", "batch_size=2"]
    assert command(*short, *asked, "hydra.run.dir=run") == 0
    assert Path("run/images/text-output-0.png").is_file()
    results = [json.loads(line) for line in Path("run/results.jsonl").read_text().splitlines()]
    assert [result["label"] for result in results] == ["a striped animal", "a heart"]


def test_a_text_is_a_direction_of_the_image_embedding(tiny_clip: dict[str, Any]) -> None:
    import open_clip

    config = ModelConfig(source="open_clip", name=tiny_clip["model"], checkpoint=str(tiny_clip["checkpoint"]))
    own = build_network(config)
    assert own.class_names is None
    assert isinstance(own.module, ClipNetwork)
    text = own.module.texts(["a heart"])
    tokens = open_clip.get_tokenizer("tiny-clip")(["a heart"])
    expected = torch.nn.functional.normalize(own.module.clip.encode_text(tokens), dim=1)  # type: ignore[operator]
    torch.testing.assert_close(text, expected)
    pictures = model_space(torch.rand(2, 3, *own.preprocessing.size), own)
    read = readout([Target("text", 0, "output")] * 2, text.shape[1], text)
    layers = list(default_layers(own))
    assert layers[0] == "clip.visual.conv1"
    _, maps, value = activations_and_relevance(own.module, pictures, layers, read, "lrp")
    np.testing.assert_allclose(value[:, 0], own.module(pictures) @ text[0], rtol=1e-3, atol=1e-5)
    _, maps, _ = activations_and_relevance(own.module, pictures, layers, read, "gradient_x_activation")
    assert all(one.abs().sum() > 0 for one in maps.values())


def test_mistakes_of_texts(
    tiny_clip: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    clip = (f"model.name={tiny_clip['model']}", f"model.checkpoint={tiny_clip['checkpoint']}", "model=open_clip")
    mistakes = {
        ("model=embedded_resnet", "target.prompt=a heart"): "target=text: embedded_resnet has no text tower",
        clip: "target.prompt=None: a text is needed",
        (*clip, "target.prompt=a", "target.layer=clip.visual.conv1"): "texts are directions of the image embedding",
        ("model=open_clip", "model.name=ViT-B-23"): "model.name=ViT-B-23: no such model in open_clip",
        ("model=open_clip", "model.weights=opnai"): "model.weights=opnai: open_clip has",
    }
    for given, message in mistakes.items():
        assert command("target=text", *given, *QUIET, "hydra.run.dir=run") == 2
        told = capsys.readouterr().err
        assert message in told, told
