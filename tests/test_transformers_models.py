"""Networks of Hugging Face's transformers: saved by the library, read back from disk and compared, offline."""

from __future__ import annotations

import json
import pickle
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.tiny import ON_CPU, command, image_folder
from vital_exp import load_model, visualize
from vital_exp.errors import UsageError
from vital_exp.evaluation.weights import weights_there
from vital_exp.models import transformers_models
from vital_exp.models.identity import identity_of
from vital_exp.models.image_processors import read_preprocessing
from vital_exp.models.layers import default_layers, is_transformer, unit_shape
from vital_exp.models.loading import build_network
from vital_exp.models.model_config import ModelConfig
from vital_exp.models.network import VisionNetwork
from vital_exp.no_effect import without_effect
from vital_exp.relevance import rules
from vital_exp.relevance.maps import activations_and_relevance
from vital_exp.targets.readout import readout
from vital_exp.targets.unit import OUTPUT, Target

library = pytest.importorskip("transformers")

SIDE = 32
VIT = {"hidden_size": 16, "num_hidden_layers": 5, "num_attention_heads": 2, "image_size": SIDE, "patch_size": 8}
WIDE = {**VIT, "intermediate_size": 32}
TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 9,
        "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}  # fmt: skip
WORDS = ("cat", "dog", "fox", "hen", "owl", "pig", "rat", "yak")
NAMES = {"id2label": dict(enumerate(WORDS)), "label2id": {word: i for i, word in enumerate(WORDS)}}
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]


def blocks(place: str) -> tuple[str, ...]:
    return tuple(f"{place}.{i}" for i in (0, 1, 3, 4))


@dataclass(frozen=True)
class Family:
    """A small network as the library builds it.

    Attributes:
        make: builds it with random weights.
        layers: those aligned by default.
        output: the library's own output for normalised pictures, logits (N, 8) or features (N, D).
    """

    make: Callable[[], Any]
    layers: tuple[str, ...]
    output: Callable[[Any, Tensor], Tensor] = lambda network, pixels: network(pixels).logits


def pooled(network: Any, pixels: Tensor) -> Tensor:
    return network(pixels).pooler_output.flatten(1)  # type: ignore[no-any-return]


def image_features(network: Any, pixels: Tensor) -> Tensor:
    """The embedding, which older versions of the library return bare."""
    found = network.get_image_features(pixel_values=pixels)
    return found if isinstance(found, Tensor) else found.pooler_output


FAMILIES = {
    "vit": Family(
        lambda: library.ViTForImageClassification(library.ViTConfig(**WIDE, **NAMES)),
        ("vit.embeddings.patch_embeddings", *blocks("vit.layers")),
    ),
    "beit": Family(
        lambda: library.BeitForImageClassification(
            library.BeitConfig(**WIDE, **NAMES, use_relative_position_bias=True, layer_scale_init_value=0.5)
        ),
        ("beit.embeddings.patch_embeddings", *blocks("beit.layers")),
    ),
    "swin": Family(
        lambda: library.SwinForImageClassification(
            library.SwinConfig(
                **NAMES,
                image_size=SIDE,
                patch_size=2,
                embed_dim=8,
                depths=[1, 1, 2, 1],
                num_heads=[1, 2, 2, 4],
                window_size=2,
            )
        ),
        ("swin.embeddings.patch_embeddings.projection", *(f"swin.encoder.layers.{i}" for i in (0, 1, 3))),
    ),
    "convnext": Family(
        lambda: library.ConvNextForImageClassification(
            library.ConvNextConfig(**NAMES, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 2, 1], image_size=SIDE)
        ),
        (
            "convnext.embeddings",
            *(f"convnext.encoder.stages.{i}.downsampling_layer.1" for i in (1, 2, 3)),
            "convnext.encoder.stages.3.layers.0",
        ),
    ),
    "resnet": Family(
        lambda: library.ResNetForImageClassification(
            library.ResNetConfig(**NAMES, embedding_size=16, hidden_sizes=[64, 64, 128, 128], depths=[1, 1, 1, 1])
        ),
        (
            "resnet.embedder.embedder.convolution",
            *(f"resnet.encoder.stages.{i}" for i in range(3)),
        ),  # the last is 1 x 1
    ),
    "dinov2 classifier": Family(
        lambda: library.Dinov2ForImageClassification(library.Dinov2Config(**VIT, **NAMES, mlp_ratio=2)),
        ("dinov2.embeddings.patch_embeddings.projection", *blocks("dinov2.encoder.layer")),
    ),
    "dinov2": Family(
        lambda: library.Dinov2Model(library.Dinov2Config(**VIT, mlp_ratio=2, use_swiglu_ffn=True)),
        ("embeddings.patch_embeddings.projection", *blocks("encoder.layer")),
        pooled,
    ),
    "dinov2 with registers": Family(
        lambda: library.Dinov2WithRegistersModel(
            library.Dinov2WithRegistersConfig(**VIT, mlp_ratio=2, num_register_tokens=2)
        ),
        ("embeddings.patch_embeddings.projection", *blocks("encoder.layer")),
        pooled,
    ),
    "dinov3": Family(
        lambda: library.DINOv3ViTModel(
            library.DINOv3ViTConfig(**WIDE, num_register_tokens=2, use_gated_mlp=True, layerscale_value=0.5)
        ),
        ("embeddings.patch_embeddings", *blocks("model.layer")),
        pooled,
    ),
    "siglip": Family(
        lambda: library.SiglipModel(library.SiglipConfig(vision_config=WIDE, text_config=TEXT)),
        ("embeddings.patch_embedding", *blocks("encoder.layers")),
        image_features,
    ),
    "clip": Family(
        lambda: library.CLIPModel(
            library.CLIPConfig(vision_config=WIDE, text_config={**TEXT, "projection_dim": 8}, projection_dim=8)
        ),
        ("vision_model.embeddings.patch_embedding", *blocks("vision_model.encoder.layers")),
        image_features,
    ),
}
PROCESSOR = {"image_mean": MEAN, "image_std": STD, "size": {"height": SIDE, "width": SIDE}, "do_center_crop": False}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may be fetched."""

    def refuse(*_given: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def made(family: str) -> Any:
    """A network of the library with weights that are large enough to make a difference, the same at each call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = FAMILIES[family].make().eval()
        for weight in network.parameters():
            if weight.ndim > 1:
                nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
    return network


def saved(folder: Path, family: str = "vit", **processor: Any) -> Path:
    made(family).save_pretrained(folder)
    library.ViTImageProcessor(**{**PROCESSOR, **processor}).save_pretrained(folder)
    return folder


def loaded(folder: Path, **keys: Any) -> VisionNetwork:
    return build_network(ModelConfig(source="transformers", name=str(folder), pretrained=False, **keys))


def rgb(count: int = 2) -> Tensor:
    return torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family(family: str, tmp_path: Path) -> None:
    network, own = loaded(saved(tmp_path / "net", family)), FAMILIES[family]
    assert (network.preprocessing.mean, network.preprocessing.std) == (tuple(MEAN), tuple(STD))
    assert network.preprocessing.size == (SIDE, SIDE)
    found = network(rgb())
    torch.testing.assert_close(found, own.output(made(family), network.preprocessing.normalise(rgb())))
    classes = own.output is Family.output
    assert (network.class_names is not None) == classes
    assert not classes or network.classes.label(1) == "dog"
    assert default_layers(network) == own.layers
    assert network.trace.company is None
    _check_relevance(network, own.layers)
    images = str(image_folder(tmp_path / "images", ["cat", "dog"]))
    targets = ["class:dog", f"{own.layers[-1]}:3"] if classes else [f"{own.layers[-1]}:3"]
    for target in targets:
        pictures = visualize(network, [target], references=images, overrides=["steps=2", "references.count=2"])
        assert pictures.images.shape[1:] == (3, SIDE, SIDE)
        assert pictures.images.isfinite().all()


def _check_relevance(network: VisionNetwork, layers: Sequence[str]) -> None:
    """LRP from the output and from a block conserves relevance down to the first block, but for AttnLRP's softmax.

    What else takes relevance is taken out: the epsilon of divisions, and biases.
    """
    network = network.double()
    for part in network.module.modules():  # a bias takes its share
        for name, value in part.named_parameters(recurse=False):
            if "bias" in name and "position" not in name and value.ndim == 1:
                value.zero_()
    pixels = network.preprocessing.normalise(rgb().double())
    below = layers[1] if is_transformer(network.module) else layers[-2]  # z+ lets a little go at each stage
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rules, "EPSILON", 1e-12)
        patch.setattr(rules, "softmax", lambda value, x, axis: rules.identity(value, x))
        for layer in (layers[-1], OUTPUT):
            activation = network.taps([layer])(pixels)[0][layer]
            strongest = activation.flatten(2).amax(2) if activation.ndim > 2 else activation  # (N, C)
            channel = int(strongest.amin(0).argmax())
            read = readout([Target("channel", channel, layer)] * len(pixels), activation.shape[1])
            _, maps, _ = activations_and_relevance(network, pixels, [below, layer], read, "lrp")
            if is_transformer(network.module):  # either way to compute attention
                network.module.set_attn_implementation("eager")
                _, same, _ = activations_and_relevance(network, pixels, [below, layer], read, "lrp")
                network.module.set_attn_implementation("sdpa")
                torch.testing.assert_close(same, maps, rtol=1e-2, atol=1e-3)  # eager has softmax in float32
            start, arrived = (maps[name].flatten(1).sum(1) for name in (layer, below))
            assert (start > 0).any()
            torch.testing.assert_close(arrived, start, rtol=1e-5, atol=1e-8)


def processor(kind: str, **keys: Any) -> Any:
    return getattr(library, kind)(**keys)


# Image processors whose results are those of our preprocessing: one of each arithmetic, and of each way to say a size.
PROCESSORS: dict[str, tuple[Callable[[], Any], tuple[int, int], int | None]] = {
    "height and width": (lambda: processor("ViTImageProcessor", size={"height": 24, "width": 32}), (24, 32), 24),
    "crop": (lambda: processor("CLIPImageProcessor", size={"shortest_edge": 40}, crop_size=SIDE), (SIDE, SIDE), 40),
    "crop of DINOv2": (
        lambda: processor("BitImageProcessor", size={"shortest_edge": 36}, crop_size={"height": SIDE, "width": SIDE}),
        *((SIDE, SIDE), 36),
    ),
    "share": (lambda: processor("ConvNextImageProcessor", size={"shortest_edge": SIDE}, crop_pct=0.875), (32, 32), 36),
    "squeezed": (lambda: processor("ConvNextImageProcessor", size={"shortest_edge": 384}), (384, 384), 384),
    "not normalised": (lambda: processor("ViTImageProcessor", size=SIDE, do_normalize=False), (SIDE, SIDE), SIDE),
    "other factor": (lambda: processor("ViTImageProcessor", size=SIDE, rescale_factor=1 / 127.5), (SIDE, SIDE), SIDE),
    "not rescaled": (lambda: processor("SiglipImageProcessor", size=SIDE, do_rescale=False), (SIDE, SIDE), SIDE),
    "offset": (
        lambda: processor(
            "EfficientNetImageProcessor", size=SIDE, do_center_crop=False, rescale_factor=1 / 127.5, rescale_offset=True
        ),
        *((SIDE, SIDE), SIDE),
    ),
}


@pytest.mark.parametrize("kind", PROCESSORS)
def test_preprocessing_is_that_of_the_image_processor(kind: str, tmp_path: Path) -> None:
    make, size, resize = PROCESSORS[kind]
    theirs = make()
    theirs.save_pretrained(tmp_path)
    for name in ("preprocessor_config.json", "processor_config.json"):  # which later versions write
        own = read_preprocessing(tmp_path, library.ViTConfig(), dict)
        assert (own.size, own.resize) == (size, resize)
        image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
        plain = {"do_resize": False, "do_center_crop": False, "return_tensors": "pt"}
        given = torch.from_numpy(image).permute(2, 0, 1)[None].double() / 255
        pixels = theirs(image, **plain).pixel_values.double()
        torch.testing.assert_close(own.normalise(given), pixels, rtol=1e-4, atol=1e-4)
        if name == "preprocessor_config.json":
            settings = json.loads((tmp_path / name).read_text())
            (tmp_path / name).unlink()
            (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": settings}))


def test_a_folder_with_little_in_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = saved(tmp_path)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "ViTImageProcessor"}))
    own = loaded(folder, size=SIDE).preprocessing  # the class has the rest
    assert (own.mean, own.std) == ((0.5,) * 3, (0.5,) * 3)
    (folder / "preprocessor_config.json").unlink()
    assert loaded(folder).preprocessing.size == (SIDE, SIDE)
    assert "holds no preprocessor_config.json: ImageNet's mean and std are taken" in caplog.text
    edited(folder, id2label={i: f"LABEL_{i}" for i in range(8)}, problem_type="multi_label_classification")
    network = loaded(folder)
    assert network.classes.is_numbered
    assert network.head.kind == "sigmoid"
    assert loaded(folder, head="softmax", class_names=list("abcdefgh")).head.kind == "softmax"


def edited(folder: Path, **keys: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    kept = {key: value for key, value in {**config, **keys}.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))


def test_weights_by_other_names_in_parts_and_of_checkpoints(tmp_path: Path) -> None:
    folder = saved(tmp_path / "net")
    expected = loaded(folder)(rgb())
    own, published = made("vit").state_dict(), load_file(folder / "model.safetensors")
    assert {*own} != {*published}  # files keep the names of earlier versions
    made("vit").save_pretrained(tmp_path / "parts", max_shard_size="20KB")
    for file in tmp_path.glob("parts/*.safetensors*"):
        file.rename(folder / file.name)
    (folder / "model.safetensors").unlink()
    torch.testing.assert_close(loaded(folder)(rgb()), expected)
    for file in folder.glob("model*"):
        file.unlink()
    torch.save(published, folder / "pytorch_model.bin")
    with pytest.raises(UsageError, match=r"no model\.safetensors: model\.checkpoint=.*pytorch_model\.bin reads it"):
        loaded(folder)
    torch.testing.assert_close(loaded(folder, checkpoint=str(folder / "pytorch_model.bin"))(rgb()), expected)
    torch.save({"state_dict": {f"ema.{name}": value for name, value in own.items()}}, tmp_path / "training.pt")
    torch.testing.assert_close(loaded(folder, checkpoint=str(tmp_path / "training.pt"))(rgb()), expected)
    own_key = loaded(folder, checkpoint=str(tmp_path / "training.pt"), checkpoint_key="ema")
    torch.testing.assert_close(own_key(rgb()), expected)
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UsageError, match=r"model\.checkpoint=.*other\.safetensors: the weights of another network"):
        loaded(folder, checkpoint=str(tmp_path / "other.safetensors"))


def test_backbones_without_a_pooler_of_half_precision_and_of_masked_training(tmp_path: Path) -> None:
    """A backbone's features are the class token's where it has no pooler, and the mean of its last map."""
    config = library.ViTConfig(**WIDE)
    vit = library.ViTModel(config, add_pooling_layer=False).eval()
    vit.half().save_pretrained(tmp_path / "vit")
    network = loaded(tmp_path / "vit", mean=MEAN, std=STD)
    expected = vit.float()(network.preprocessing.normalise(rgb())).last_hidden_state[:, 0]
    torch.testing.assert_close(network(rgb()), expected)
    assert network.class_names is None
    resnet = library.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], out_features=["stage2"])
    backbone = library.ResNetBackbone(resnet).eval()
    backbone.save_pretrained(tmp_path / "resnet")
    network = loaded(tmp_path / "resnet", size=SIDE)
    expected = backbone(network.preprocessing.normalise(rgb())).feature_maps[-1].mean((2, 3))
    torch.testing.assert_close(network(rgb()), expected)
    masked = {**WIDE, "mask_ratio": 0.0, "decoder_hidden_size": 16, "decoder_num_hidden_layers": 1}
    masked |= {"decoder_num_attention_heads": 2, "decoder_intermediate_size": 16}
    trained = library.ViTMAEForPreTraining(library.ViTMAEConfig(**masked)).eval()
    trained.config.mask_ratio = 0.75
    trained.save_pretrained(tmp_path / "masked")
    trained.config.mask_ratio = 0.0
    network = loaded(tmp_path / "masked")
    pixels, in_order = network.preprocessing.normalise(rgb()), torch.arange(16.0).expand(2, 16)
    expected = trained.vit(pixels, noise=in_order).last_hidden_state[:, 0]
    torch.testing.assert_close(network(rgb()), expected)  # of the whole picture
    assert network.trace.company is None
    whole = library.CLIPVisionModelWithProjection(library.CLIPVisionConfig(**WIDE, projection_dim=8)).eval()
    whole.save_pretrained(tmp_path / "tower")
    network = loaded(tmp_path / "tower")
    torch.testing.assert_close(network(rgb()), whole(network.preprocessing.normalise(rgb())).image_embeds)


def test_names_of_imagenets_classes_bring_their_wordnet_ids(tmp_path: Path) -> None:
    from vital_exp.targets.class_names import ClassNames

    known = ClassNames.imagenet()
    labels = {i: ", ".join(names) for i, names in enumerate(known.names)}
    network = library.ViTForImageClassification(library.ViTConfig(**WIDE, id2label=labels))
    network.save_pretrained(tmp_path)
    assert loaded(tmp_path).class_names == known


def test_a_name_of_the_hub_is_fetched_only_if_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    config = ModelConfig(source="transformers", name="owner/name", pretrained=True)
    assert not weights_there(config, tmp_path)
    with pytest.raises(UsageError, match=r"owner/name: cannot be had from Hugging Face's hub .*: give a folder"):
        build_network(config, tmp_path)
    repository, revision = tmp_path / "models--owner--name", "0" * 40
    folder = saved(repository / "snapshots" / revision)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    assert weights_there(config, tmp_path)
    torch.testing.assert_close(build_network(config, tmp_path)(rgb()), loaded(folder)(rgb()))
    asked: list[tuple[Sequence[str], bool]] = []
    real = transformers_models.hub.hub_folder

    def noted(name: str, files: Sequence[str], cache_dir: Path | None, fetch: bool) -> Path:
        asked.append((files, fetch))
        return real(name, files, cache_dir, fetch)

    monkeypatch.setattr(transformers_models.hub, "hub_folder", noted)
    edited(folder, auto_map={"AutoModel": "code.Net"})
    with pytest.raises(UsageError, match="brings code of its own"):
        build_network(config, tmp_path)
    assert not any("safetensors" in file for files, _ in asked for file in files)  # nothing large before it is refused
    asked.clear()
    with pytest.raises(UsageError, match=r"no such folder; model\.pretrained=true downloads"):
        load_model("transformers:owner/name")
    assert not asked


class Code:
    """Would run code when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return print, ("run",)


def with_code(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps({"weight": Code()}))


def lacking(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors[next(name for name in tensors if name.endswith("layer.1.intermediate.dense.weight"))]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def of_texts(folder: Path) -> None:
    texts = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    library.BertModel(library.BertConfig(**texts, vocab_size=9)).save_pretrained(folder)


def of_timms_backbones(folder: Path) -> None:
    config = library.TimmBackboneConfig(backbone="resnet10t", use_pretrained_backbone=False)
    library.TimmBackbone(config).save_pretrained(folder)


FILE = "config.json"
MISTAKES: dict[str, tuple[Callable[[Path], object], str]] = {
    "code": (lambda folder: edited(folder, auto_map={}), r"\(auto_map in its config\.json\).*model\.factory=file\.py"),
    "no config": (lambda folder: (folder / FILE).unlink(), r"holds no config\.json"),
    "no JSON object": (lambda folder: (folder / FILE).write_text("[1]"), "is not a JSON object"),
    "of timm": (lambda folder: edited(folder, model_type=None, architecture="vit"), "model=timm model.name=local-dir"),
    "no type": (lambda folder: edited(folder, model_type=None), "names no model_type of transformers$"),
    "unknown type": (lambda folder: edited(folder, model_type="vitx"), r"model_type vitx, which transformers \d"),
    "odd config": (lambda folder: edited(folder, hidden_size="wide"), "is not understood: .*hidden_size.*wide"),
    "of timm's backbones": (of_timms_backbones, "its weights cannot be read"),
    "texts": (of_texts, "is a BertModel, which does not take pictures alone"),
    "no weights": (
        lambda folder: (folder / "model.safetensors").unlink(),
        r"no model\.safetensors: model\.checkpoint=",
    ),
    "pickle": (with_code, "its weights cannot be read"),
    "a weight less": (lacking, r"its weights lack vit\.layers\.1\.mlp\.fc1\.weight of a ViTForImageClassification"),
    "other shapes": (
        lambda folder: edited(folder, intermediate_size=8),
        r"have another shape of vit\.layers\.0.*\.\.\.",
    ),
    "odd processor": (lambda folder: (folder / "preprocessor_config.json").write_text("{"), "preprocessor_config"),
    "list": (lambda folder: (folder / "preprocessor_config.json").write_text("[]"), "describes no image processor"),
    "BGR": (
        lambda folder: (folder / "preprocessor_config.json").write_text(
            json.dumps({**PROCESSOR, "do_flip_channel_order": True})
        ),
        "BGR",
    ),
    "unknown processor": (
        lambda folder: (folder / "preprocessor_config.json").write_text('{"image_processor_type": "Odd"}'),
        "lacks size, image_mean or image_std, and is not understood",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_in_a_folder(mistake: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoil, words = MISTAKES[mistake]
    spoil(saved(tmp_path))
    capsys.readouterr()
    with pytest.raises(UsageError, match=words):
        loaded(tmp_path)
    shown = capsys.readouterr()
    assert "run" not in shown.out
    assert not shown.err


def test_mistakes_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(tmp_path)
    for name, words in {
        "no/such/folder": "no such folder, and not a name owner/name of",
        "owner/name": "model.pretrained=true",
    }.items():
        with pytest.raises(UsageError, match=words):
            loaded(Path(name))
    with pytest.raises(UsageError, match=r"model\.arguments=.*take none"):
        loaded(folder, arguments={"hidden_size": 8})
    with pytest.raises(UsageError, match=r"class_names=2 names: the network has 8"):
        loaded(folder, class_names=["a", "b"])
    with pytest.raises(UsageError, match=r"pretrained=True: is for networks given by name"):
        load_model(nn.Identity(), pretrained=True)
    keys = {"model": {"source": "transformers", "name": str(folder), "pretrained": True}}
    assert "model.pretrained" in without_effect("visualize", keys, ["model.pretrained"], lambda _names: [])
    monkeypatch.setattr(transformers_models, "find_spec", lambda _name: None)
    with pytest.raises(
        UsageError, match=r"model=transformers: needs transformers: pip install vital-exp\[transformers\]"
    ):
        loaded(folder)


def test_the_command_resumes_and_knows_the_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = saved(tmp_path / "net", "dinov2 with registers")
    model = ("model=transformers", f"model.name={folder}")
    assert command(*model, "list=layers") == 0
    shown = capsys.readouterr().out
    assert "*  encoder.layer.4 " in shown
    assert "embeddings.patch_embeddings.projection" in shown
    images = image_folder(tmp_path / "images", ["cat"], count=4)
    run = (
        *(*model, *ON_CPU, "steps=2", "progress=false", f"references.root={images}", "references.count=2"),
        *("target=channel", "target.layer=encoder.layer.4", "target.index=[1]", f"hydra.run.dir={tmp_path / 'run'}"),
        *(f"cache_dir={tmp_path / 'cache'}", "references.candidates=2"),
    )
    assert command(*run, "dry_run=true") == 0
    assert "encoder.layer.4" in capsys.readouterr().out
    assert command(*run) == 0
    first = (tmp_path / "run" / "results.jsonl").read_text()
    assert command(*run) == 0
    assert (tmp_path / "run" / "results.jsonl").read_text() == first  # done already
    assert unit_shape(load_model(f"transformers:{folder}"), "encoder.layer.4") == (16, 19)
    key = identity_of(loaded(folder)).key
    assert identity_of(loaded(folder)).key == key
    tensors = load_file(folder / "model.safetensors")
    tensors["embeddings.register_tokens"] += 1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert identity_of(loaded(folder)).key != key
    assert command(*run) == 2
    assert "weights" in capsys.readouterr().err
