"""Networks from every source, checkpoints, preprocessing, class names, and taps that leave no trace."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.tiny import CifarResNet, TinyNet, tiny_net
from vital_exp import load_model, visualize
from vital_exp.errors import UsageError
from vital_exp.models.checkpoints import load_checkpoint
from vital_exp.models.loading import build_network, wrap
from vital_exp.models.model_config import ModelConfig
from vital_exp.models.network import IMAGENET_MEAN, IMAGENET_STD, VisionNetwork
from vital_exp.models.taps import Taps
from vital_exp.models.tracing import trace

HALF = (0.5, 0.5, 0.5)


def noise(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def hooks_of(module: nn.Module) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(part, kind)) for part in module.modules() for kind in kinds)


# Sources.


def test_timm_by_name_with_arguments() -> None:
    config = ModelConfig(source="timm", name="mobilenetv2_035", pretrained=False, arguments={"num_classes": 7}, size=32)
    network = build_network(config)
    assert network(noise(2, 3, 32, 32)).shape == (2, 7)
    assert len(network.classes) == 7
    same = build_network(ModelConfig(name="mobilenetv2_035", pretrained=False, arguments={"pad_type": "same"}, size=32))
    assert type(same.module.conv_stem).__name__ == "Conv2dSame"


def test_an_unknown_argument_of_a_network_is_told() -> None:
    with pytest.raises(UsageError, match=r"model\.arguments=resnet18.*padd_type"):
        build_network(ModelConfig(name="resnet18", pretrained=False, arguments={"padd_type": "same"}))


def test_torchvision_by_name() -> None:
    config = ModelConfig(source="torchvision", name="squeezenet1_1", weights="IMAGENET1K_V1", pretrained=False, size=32)
    network = build_network(config)
    assert (network.preprocessing.mean, network.preprocessing.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert len(network.classes) == 1000
    assert network.classes.label(1) == "goldfish"
    with pytest.raises(UsageError, match=r"model\.weights=V3: one of IMAGENET1K_V1"):
        build_network(ModelConfig(source="torchvision", name="squeezenet1_1", weights="V3"))


def test_weights_that_cannot_be_had_say_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def offline(*_arguments: Any, **_keys: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(UsageError, match=r"model\.name=squeezenet1_1.*no network.*model\.checkpoint=file"):
        build_network(ModelConfig(source="torchvision", name="squeezenet1_1"), tmp_path)


def test_a_factory_in_a_module_and_in_a_file(tmp_path: Path) -> None:
    config = ModelConfig(source="python", factory="tests.tiny:tiny_net", arguments={"classes": 5}, size=32)
    assert len(build_network(config).classes) == 5
    file = tmp_path / "my_net.py"
    file.write_text("from tests.tiny import tiny_net as build\n")
    network = build_network(ModelConfig(source="python", factory=f"{file}:build", size=32, class_names=list("abcd")))
    assert network.classes.label(3) == "d"
    assert isinstance(network.module, TinyNet)


@pytest.mark.parametrize("name", ["embedded_resnet", "embedded_vit", "embedded_judge"])
def test_embedded(name: str) -> None:
    network = load_model(name)
    assert network.classes.label(0) == "star"
    assert network(noise(1, 3, 64, 64)).shape == (1, 10)


def test_a_module_of_ones_own() -> None:
    network = load_model(tiny_net(), mean=HALF, std=HALF, size=(32, 48), class_names=["a", "b", "c", "d"])
    assert (network.preprocessing.size, network.preprocessing.mean) == ((32, 48), HALF)
    pictures = noise(2, 3, 32, 48)
    torch.testing.assert_close(network(pictures), tiny_net()((pictures - 0.5) / 0.5))


def test_preprocessing_is_the_networks_own() -> None:
    with torch.device("meta"):
        timm_network = timm.create_model("vit_tiny_patch16_224")
    own: Any = timm_network.pretrained_cfg
    network = build_network(ModelConfig(name="vit_tiny_patch16_224", pretrained=False))
    assert (network.preprocessing.mean, network.preprocessing.std) == (own["mean"], own["std"])
    assert network.preprocessing.size == own["input_size"][1:]
    assert network.preprocessing.resize == round(224 / own["crop_pct"])
    assert network.preprocessing.interpolation == own["interpolation"]


def test_preprocessing_as_asked_for() -> None:
    keys: dict[str, Any] = {"mean": HALF, "std": [0.25] * 3, "size": 64, "interpolation": "nearest"}
    preprocessing = build_network(ModelConfig(name="resnet10t", pretrained=False, **keys)).preprocessing
    assert (preprocessing.mean, preprocessing.std, preprocessing.size) == (HALF, (0.25,) * 3, (64, 64))
    assert (preprocessing.resize, preprocessing.interpolation) == (None, "nearest")  # small inputs see whole images
    assert build_network(ModelConfig(name="resnet10t", pretrained=False, size=448)).preprocessing.resize == 512


def test_a_refused_size_is_told() -> None:
    with pytest.raises(UsageError, match=r"model\.size=32x32: the network refuses this input size"):
        build_network(ModelConfig(name="vit_tiny_patch16_224", pretrained=False, size=32))


# Class names.


def test_class_names_from_files(tmp_path: Path) -> None:
    lines, listed = tmp_path / "names.txt", tmp_path / "names.json"
    lines.write_text("a\nb\n\nc d\ne\n")
    listed.write_text(json.dumps(["a", "b", "c d", "e"]))
    for path in (lines, listed):
        network = wrap(tiny_net(), ModelConfig(size=32, class_names=str(path)))
        assert [network.classes.label(i) for i in range(4)] == ["a", "b", "c d", "e"]
    listed.write_text("{")
    with pytest.raises(UsageError, match=r"model\.class_names"):
        wrap(tiny_net(), ModelConfig(size=32, class_names=str(listed)))


def test_class_names_set_the_size_of_a_classifier() -> None:
    network = build_network(ModelConfig(name="resnet10t", pretrained=False, size=32, class_names=["cat", "dog"]))
    assert network(noise(1, 3, 32, 32)).shape == (1, 2)


def test_class_names_of_another_number_are_refused() -> None:
    with pytest.raises(UsageError, match=r"model\.class_names=2 names: the network has 4 classes"):
        wrap(tiny_net(), ModelConfig(size=32, class_names=["a", "b"]))


def test_a_network_without_a_classifier_has_no_classes() -> None:
    network = build_network(ModelConfig(name="resnet10t", pretrained=False, size=32, arguments={"num_classes": 0}))
    assert network.class_names is None
    with pytest.raises(UsageError, match="no class outputs"):
        _ = network.classes


# Checkpoints.


def nested(weights: dict[str, Tensor]) -> dict[str, Any]:
    return {"epoch": 3, "state_dict": weights, "optimizer": {}}


def prefixed(prefix: str) -> Callable[[dict[str, Tensor]], dict[str, Any]]:
    return lambda weights: {f"{prefix}{name}": value for name, value in weights.items()}


FORMS: dict[str, Callable[[dict[str, Tensor]], dict[str, Any]]] = {
    "plain": dict,
    "nested": nested,
    "model": lambda weights: {"model": weights},
    "DataParallel": prefixed("module."),
    "compiled": prefixed("_orig_mod."),
    "both": prefixed("module._orig_mod."),
    "Lightning": lambda weights: nested(prefixed("model.")(weights)),
    "half": lambda weights: {n: v.half() if v.is_floating_point() else v for n, v in weights.items()},
}


FLAT = [form for form in FORMS if form not in ("nested", "model", "Lightning")]  # safetensors hold tensors alone


@pytest.mark.parametrize(("suffix", "form"), [("pth", f) for f in FORMS] + [("safetensors", f) for f in FLAT])
def test_checkpoints_of_every_form(form: str, suffix: str, tmp_path: Path) -> None:
    content = FORMS[form](tiny_net().state_dict())
    path = tmp_path / f"weights.{suffix}"
    (torch.save if suffix == "pth" else save_file)(content, path)
    network = TinyNet()
    load_checkpoint(network, path)
    for name, value in network.state_dict().items():
        assert value.dtype == tiny_net().state_dict()[name].dtype
        torch.testing.assert_close(value, tiny_net().state_dict()[name], rtol=2e-3 if form == "half" else 0, atol=1e-4)


def test_a_checkpoint_of_another_network_names_what_differs(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file(timm.create_model("resnet10t", num_classes=4).state_dict(), path)
    with pytest.raises(UsageError, match=r"another network: lacks conv1\.weight, .*; has unknown conv1\.0\.weight, "):
        load_checkpoint(TinyNet(), path)
    save_file(tiny_net(classes=5).state_dict(), path)
    with pytest.raises(UsageError, match=r"has fc\.weight \(5, 16\) instead of \(4, 16\), fc\.bias"):
        load_checkpoint(TinyNet(), path)


def test_counters_of_training_steps_may_be_absent(tmp_path: Path) -> None:
    weights = {n: v for n, v in tiny_net().state_dict().items() if not n.endswith("num_batches_tracked")}
    save_file(weights, tmp_path / "old.safetensors")
    load_checkpoint(TinyNet(), tmp_path / "old.safetensors")


class Harmful:
    """Pickled, it writes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("protocol", [2, 4])
def test_code_in_a_checkpoint_never_runs(protocol: int, tmp_path: Path) -> None:
    written = tmp_path / "written"
    for name, save in (("a.pth", torch.save), ("b.pth", _pickled)):
        path = tmp_path / name
        save({"state_dict": tiny_net().state_dict(), "extra": Harmful(written)}, path, pickle_protocol=protocol)
        with pytest.raises(UsageError, match=r"model\.checkpoint=.*could run code"):
            load_checkpoint(TinyNet(), path)
    assert not written.exists()


def _pickled(content: object, path: Path, pickle_protocol: int) -> None:
    path.write_bytes(pickle.dumps(content, protocol=pickle_protocol))


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_damaged_checkpoints_are_told(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights.{suffix}"
    with pytest.raises(UsageError, match=r"model\.checkpoint=.*: no such file"):
        load_checkpoint(TinyNet(), path)
    (torch.save if suffix == "pth" else save_file)(tiny_net().state_dict(), path)
    whole = path.read_bytes()
    for content in (b"", b"no weights", whole[: len(whole) // 2], bytes(range(256))):
        path.write_bytes(content)
        with pytest.raises(UsageError, match=r"model\.checkpoint=.*(not a readable checkpoint|damaged)") as caught:
            load_checkpoint(TinyNet(), path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {"state_dict": {}}])
def test_files_without_weights_are_told(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(UsageError, match=r"not a state_dict|holds no weights"):
        load_checkpoint(TinyNet(), tmp_path / "weights.pth")


# Real weights.


def to_layer3(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        network: Any = timm.create_model(name, num_classes=0)
        network.layer4 = nn.Identity()
        for stage in (network.layer2, network.layer3) if name == "resnet50" else ():
            stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
        return network

    return build


REAL: dict[str, Callable[[], nn.Module]] = {
    "vit_tiny_patch16_224.fp16": lambda: timm.create_model("vit_tiny_patch16_224"),
    "mobilenetv2_100.fp16": lambda: timm.create_model("mobilenetv2_100", pad_type="same"),
    "squeezenet1_1.fp16": lambda: torchvision.models.squeezenet1_1(weights=None),
    "resnet18_to_layer3.fp16": to_layer3("resnet18"),
    "resnet50_to_layer3.fp16": to_layer3("resnet50"),
    "densenet169_backbone.fp16": lambda: timm.create_model("densenet169", num_classes=0),
    "cifar10_resnet20": lambda: CifarResNet(3),
    "cifar10_resnet56": lambda: CifarResNet(9),
}


@pytest.mark.parametrize("name", REAL)
def test_real_weights_load_strictly(name: str, data: Path) -> None:
    path = data / "data" / "weights" / f"{name}.safetensors"
    with torch.device("meta"):
        network = REAL[name]()
    network = network.to_empty(device="cpu")
    load_checkpoint(network, path)
    own = network.state_dict()
    assert all(torch.equal(own[key], value.to(own[key].dtype)) for key, value in load_file(path).items())


def test_a_real_network_knows_a_real_image(data: Path) -> None:
    from vital_exp.references.decoding import fit, load_rgb

    weights = data / "data" / "weights" / "mobilenetv2_100.fp16.safetensors"
    same = {"pad_type": "same"}
    network = build_network(
        ModelConfig(name="mobilenetv2_100", arguments=same, checkpoint=str(weights), mean=HALF, std=HALF)
    )
    images = sorted((data / "data" / "imagenette" / "n03888257").iterdir())[:4]
    pictures = torch.stack([fit(load_rgb(path), 224) for path in images])
    labels = [network.classes.label(int(i)) for i in network(pictures).argmax(1)]
    assert labels.count("parachute") >= 3


# A frozen network.


def test_a_visualisation_leaves_the_network_as_it_was() -> None:
    module = tiny_net().train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    network = load_model(module, size=32)
    shots = noise(3, 3, 32, 32)
    targets, keys = ["class:0", "class:2"], ["references.cache=false"]
    pictures = visualize(network, targets, references=shots, steps=3, overrides=keys)
    assert [result["status"] for result in pictures.results] == ["done", "done"]
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert not any(part.training for part in module.modules())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in module.parameters())
    assert hooks_of(module) == 0


def test_a_network_stays_in_evaluation_mode() -> None:
    network = load_model(tiny_net(), size=32)
    assert not network.train().module.training


def test_the_hash_follows_the_weights() -> None:
    first, same = (load_model(tiny_net(), size=32).weights_hash() for _ in range(2))
    other = tiny_net()
    with torch.no_grad():
        other.bn1.running_mean[0] += 1e-6  # type: ignore[index]
    assert first == same
    assert load_model(other, size=32).weights_hash() != first


# Taps.


class Branches(nn.Module):
    """Layers that are never run, run twice, return a tuple, or fail."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 1)
        self.twice = nn.Conv2d(4, 4, 1)
        self.never = nn.Conv2d(4, 4, 1)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.last = nn.Linear(4, 2)
        self.ran: list[str] = []

    def forward(self, pictures: Tensor) -> Tensor:
        """Return (N, 2)."""
        once = self.twice(self.first(pictures))
        self.ran.append("once")
        again = self.twice(once)
        tokens = again.flatten(2).transpose(1, 2)
        mixed, _ = self.attention(tokens, tokens, tokens)
        self.ran.append("again")
        out: Tensor = self.last(mixed.mean(1))
        return out


def test_taps_read_and_leave_no_hook() -> None:
    network, pictures = tiny_net(), noise(2, 3, 32, 32)
    activations, output = Taps(network, ["conv1", "layer1", "fc"])(pictures, to_the_end=True)
    assert {name: tuple(a.shape) for name, a in activations.items()} == {
        "conv1": (2, 8, 16, 16),
        "layer1": (2, 16, 8, 8),
        "fc": (2, 4, 1),
    }
    assert output is not None
    assert torch.equal(activations["fc"][..., 0], output)
    assert torch.equal(output, network(pictures))
    assert hooks_of(network) == 0


def test_taps_before_an_in_place_relu_keep_negative_values() -> None:
    network, pictures = tiny_net(), noise(2, 3, 32, 32)
    activations, _ = Taps(network, ["bn1", "layer1.0"])(pictures, to_the_end=True)
    assert torch.equal(activations["bn1"], network.bn1(network.conv1(pictures)))
    assert activations["bn1"].min() < 0
    assert activations["layer1.0"].min() < 0


def test_the_pass_ends_at_the_last_tap() -> None:
    network = Branches()
    taps = Taps(network, ["first", "twice"])
    taps.trace(noise(1, 3, 4, 4))
    network.ran.clear()
    activations, output = taps(noise(1, 3, 4, 4))
    assert set(activations) == {"first", "twice"}
    assert (output, network.ran) == (None, [])
    _, output = taps(noise(1, 3, 4, 4), to_the_end=True)
    assert output is not None
    assert network.ran == ["once", "again"]


def test_a_layer_that_runs_twice_is_read_the_first_time() -> None:
    network, pictures = Branches(), noise(1, 3, 4, 4)
    expected = network.twice(network.first(pictures))
    for to_the_end in (False, True):
        activations, _ = Taps(network, ["twice"])(pictures, to_the_end=to_the_end)
        assert torch.equal(activations["twice"], expected)


def test_of_several_outputs_the_first_is_read() -> None:
    network = Branches()
    activations, _ = Taps(network, ["attention"])(noise(1, 3, 4, 4))
    assert activations["attention"].shape == (1, 4, 16)
    found = trace(network, noise(3, 3, 4, 4)).layers
    assert found["attention"].shape == (4, 16)
    assert "never" not in found
    assert hooks_of(network) == 0


def test_no_hook_is_left_when_the_pass_fails() -> None:
    network = tiny_net()
    for layers in (["conv1"], ["conv1", "fc"]):
        with pytest.raises(RuntimeError):
            Taps(network, layers)(noise(1, 5, 32, 32))
    assert hooks_of(network) == 0


def test_layers_that_never_run_and_unknown_ones_are_told() -> None:
    network = Branches()
    with pytest.raises(UsageError, match=r"model\.layers=never: the network never runs this layer"):
        Taps(network, ["first", "never"])(noise(1, 3, 4, 4))
    assert hooks_of(network) == 0
    with pytest.raises(UsageError, match=r"model\.layers=frist.*did you mean first"):
        Taps(network, ["frist"])


def check_channels_first(network: nn.Module, layers: dict[str, int], side: int) -> None:
    """The channels of each layer come first, and its numbers are those of a plain hook."""
    pictures, seen = noise(2, 3, side, side), {}
    modules = dict(network.named_modules())
    for name in layers:
        handle = modules[name].register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: out.clone()}))
        network(pictures)
        handle.remove()
    activations, _ = Taps(network, list(layers))(pictures, to_the_end=True)
    shapes = {name: layer.shape for name, layer in trace(network, noise(3, 3, side, side)).layers.items()}
    for name, channels in layers.items():
        assert activations[name].shape[1] == shapes[name][0] == channels, name
        per_channel = activations[name].transpose(0, 1).flatten(1).sum(1)
        axis = [i for i, length in enumerate(seen[name].shape) if length == channels and i > 0]
        others = [i for i in range(seen[name].ndim) if i != axis[-1 if seen[name].shape[-1] == channels else 0]]
        torch.testing.assert_close(per_channel, seen[name].sum(others), rtol=1e-4, atol=1e-3)


@torch.no_grad()
def test_networks_with_channels_last_are_read_channels_first() -> None:
    small: dict[str, Any] = {"img_size": 64, "window_size": 2, "embed_dim": 24, "depths": (1, 1), "num_heads": (2, 2)}
    swin = timm.create_model("swin_tiny_patch4_window7_224", **small)
    layers = {"patch_embed.proj": 24, "patch_embed": 24, "layers.0": 24, "layers.1": 48, "norm": 48}
    check_channels_first(swin.eval(), layers, 64)
    swin = torchvision.models.SwinTransformer([4, 4], 20, [1, 1], [2, 2], [4, 4], num_classes=3)
    check_channels_first(swin.eval(), {"features.0.0": 20, "features.1": 20, "features.3": 40, "norm": 40}, 64)
    convnext = timm.create_model("convnext_atto", depths=(1, 1, 1, 1), dims=(12, 24, 36, 48))
    inside = {f"stages.1.blocks.0.{part}": channels for part, channels in (("norm", 24), ("mlp", 24), ("mlp.fc1", 96))}
    check_channels_first(convnext.eval(), {"stem": 12, "stages.1.downsample.0": 12, "stages.1": 24, **inside}, 64)


def test_a_network_is_a_module_with_its_device_and_precision() -> None:
    network = VisionNetwork(tiny_net().double(), "tiny", load_model(tiny_net(), size=32).preprocessing, None)
    assert (network.device.type, network.dtype) == ("cpu", torch.float64)
    assert network(noise(1, 3, 32, 32)).dtype == torch.float64
