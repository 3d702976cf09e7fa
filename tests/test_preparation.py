"""Kinds of modules: compiled ones run uncompiled, and those whose layers cannot be read are told at once."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from lightning.pytorch import LightningModule
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.tiny import image_folder, tiny_net
from vital_exp import load_model, mine, visualize
from vital_exp.errors import UsageError
from vital_exp.models.layers import layer_shapes
from vital_exp.relevance import relevance_maps

SIZE = 32
REFERENCES = torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
QUICK = ["evaluation=none", "references.cache=false"]


def picture(module: nn.Module, target: str = "class:1", *overrides: str) -> Tensor:
    asked: dict[str, Any] = {"method": "vital_fourier", "steps": 1, "overrides": [*QUICK, *overrides]}
    found = visualize(load_model(module, size=SIZE), target, references=REFERENCES, **asked)
    assert found.results[0]["status"] == "done", found.results
    return found.images


def compiled_inside() -> nn.Module:
    module = tiny_net()
    module.layer1 = torch.compile(module.layer1)  # type: ignore[assignment]
    return module


def compiled_in_place() -> nn.Module:
    module = tiny_net()
    module.layer1.compile()
    module.compile()
    return module


@pytest.mark.parametrize(
    ("make", "target"),
    [(lambda: torch.compile(tiny_net()), "class:1"), (compiled_inside, "fc:3"), (compiled_in_place, "fc:3")],
)
def test_compiled_modules_are_seen_as_what_they_were_made_from(make: Callable[[], nn.Module], target: str) -> None:
    layers = "model.layers=[conv1]"
    assert torch.equal(picture(make(), target, layers), picture(tiny_net(), target, layers))


def test_a_compiled_network_has_the_names_of_its_layers() -> None:
    network = load_model(torch.compile(tiny_net()), size=SIZE)  # type: ignore[arg-type]
    assert [name for name, _ in network.module.named_children()] == ["conv1", "bn1", "relu", "layer1", "fc"]


def test_graphs_that_keep_their_layers_and_lightning_modules_are_networks() -> None:
    class Lit(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = tiny_net()

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.net(x)
            return logits

    layers = "model.layers=[conv1,layer1.0]"
    wanted = picture(tiny_net(), "class:1", layers)
    assert torch.equal(picture(torch.fx.symbolic_trace(tiny_net()), "class:1", layers), wanted)
    assert torch.equal(picture(Lit(), "class:1", "model.layers=[net.conv1,net.layer1.0]"), wanted)
    parallel = nn.DataParallel(tiny_net())
    if not torch.cuda.is_available():
        assert torch.equal(picture(parallel, "class:1", "model.layers=[module.conv1,module.layer1.0]"), wanted)


class Lazy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.LazyConv2d(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.conv(x).mean((2, 3))
        return features


def scripted_inside() -> nn.Module:
    module = tiny_net()
    module.fc = torch.jit.trace(module.fc, torch.zeros(1, 16))  # type: ignore[assignment]
    return module


def quantised() -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(tiny_net(), {nn.Linear})  # type: ignore[no-any-return]


def of_onednn() -> nn.Module:
    from torch.utils.mkldnn import to_mkldnn

    return to_mkldnn(tiny_net())  # type: ignore[no-any-return]


def sparse() -> nn.Module:
    module = tiny_net()
    module.fc.weight = nn.Parameter(module.fc.weight.detach().to_sparse(), requires_grad=False)
    return module


def exported() -> torch.export.ExportedProgram:
    return torch.export.export(tiny_net(), (torch.zeros(1, 3, SIZE, SIZE),))


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "traced": (lambda: torch.jit.trace(tiny_net(), torch.zeros(1, 3, SIZE, SIZE)), "TorchScript"),
    "scripted": (lambda: torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3))), "TorchScript"),
    "a part traced": (scripted_inside, r"\(fc\): .*TorchScript"),
    "quantised": (quantised, r"Linear \(fc\): .*before quantisation"),
    "of oneDNN": (of_onednn, "TorchScript"),
    "sparse": (sparse, r"fc\.weight: .*sparse_coo"),
    "lazy": (Lazy, "run the module once"),
    "exported": (exported, "ExportedProgram.*the module it was exported from"),
    "module of an exported program": (lambda: exported().module(), "keeps no layers"),
    "a function": (lambda: torch.relu, r"a torch\.nn\.Module is needed"),
}


@pytest.mark.parametrize(("make", "told"), REFUSED.values(), ids=REFUSED)
def test_modules_whose_layers_cannot_be_read_are_told(make: Callable[[], Any], told: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of what it gives up
        module = make()
    with pytest.raises(UsageError, match=f"^model=.*{told}"):
        load_model(module, size=SIZE)


def test_a_network_without_values_lists_its_layers_and_makes_no_pictures(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with torch.device("meta"):
        module = tiny_net()
    save_file(tiny_net().state_dict(), tmp_path / "weights.safetensors")
    network = load_model(module, size=SIZE)
    assert layer_shapes(network)["conv1"] == (8, 16, 16)
    calls: list[Callable[[], object]] = [
        lambda: visualize(network, "class:1", references=REFERENCES, method="fourier", overrides=QUICK),
        lambda: relevance_maps(network, REFERENCES, "layer1.0:1", ["conv1"]),
        lambda: mine(network, "conv1", image_folder(tmp_path / "photos", ["a"]), k=1),
        lambda: load_model(module, size=SIZE, checkpoint=tmp_path / "weights.safetensors"),
    ]
    for call in calls:
        with pytest.raises(UsageError, match=r"^model=conv1\.weight: is on the meta device.*to_empty"):
            call()


def test_a_network_without_gradients_is_told() -> None:
    class Detached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = tiny_net()

        @torch.no_grad()
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.net(x)
            return logits

    network = load_model(Detached(), size=SIZE)
    for target, method in (("class:1", "fourier"), ("net.layer1.0:1", "vital")):
        with pytest.raises(UsageError, match=r"model\.layers=.*no gradient leads from its values to the pictures"):
            visualize(network, target, references=REFERENCES, method=method, steps=1, overrides=QUICK)
    with pytest.raises(UsageError, match="no gradient leads"):
        relevance_maps(network, REFERENCES, "net.layer1.0:1", ["net.conv1"])


class Patches(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.embed = nn.Linear(channels * 64, 4)

    def forward(self, x: Tensor) -> Tensor:
        rows: Tensor = nn.functional.unfold(x, 8, stride=8).transpose(1, 2)
        return self.embed(rows).mean(1)  # type: ignore[no-any-return]


class Checking(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != self.stem.in_channels:
            raise ValueError("another number of channels")
        features: Tensor = self.stem(x).mean((2, 3))
        return features


SMALL_VIT = {"img_size": SIZE, "patch_size": 16, "depth": 1, "embed_dim": 16, "num_heads": 2}
CHANNELS: dict[str, tuple[Callable[[int], nn.Module], str]] = {
    "convolution": (lambda n: nn.Sequential(nn.Conv2d(n, 4, 3), nn.AdaptiveAvgPool2d(1)), "0"),
    "norm first": (lambda n: nn.Sequential(nn.BatchNorm2d(n), nn.Conv2d(n, 4, 3)), "0"),
    "half precision": (lambda n: nn.Sequential(nn.Conv2d(n, 4, 3)).half(), "0"),
    "patches": (Patches, "embed"),
    "checked before": (Checking, "stem"),
    "transformer": (lambda n: timm.create_model("vit_tiny_patch16_224", in_chans=n, **SMALL_VIT), "patch_embed.proj"),
}


@pytest.mark.parametrize(("make", "layer"), CHANNELS.values(), ids=CHANNELS)
@pytest.mark.parametrize("channels", [1, 4])
def test_channels_are_those_of_the_first_layer(make: Callable[[int], nn.Module], layer: str, channels: int) -> None:
    given = {"mean": [0.5] * channels, "std": [0.25] * channels}
    network = load_model(make(channels), size=SIZE, **given)
    assert network.preprocessing.channels == channels
    assert network.preprocessing.preview == (None if channels == 1 else (0, 1, 2))
    takes = f"{channels} input channel{'s' if channels > 1 else ''} \\({layer}\\)"
    with pytest.raises(UsageError, match=rf"^model\.channels=3: the network takes {takes}"):
        load_model(make(channels), size=SIZE, channels=3)


@pytest.mark.parametrize("side", [28, 64])
def test_another_size_is_not_taken_for_other_channels(side: int) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(3 * side * side, 4))
    with pytest.raises(UsageError, match=r"^model\.size=32x32: the network refuses this input size"):
        load_model(module, size=SIZE)


@pytest.mark.parametrize(
    ("mean", "std", "told"),
    [
        ([0.5], [0.5], r"model\.mean=\[0\.5\]: 3 values"),
        (None, [0.5] * 4, r"model\.std=.*3 values"),
        ([123.7, 116.3, 103.5], [58.4, 57.1, 57.4], r"model\.mean=.*divide them by 255"),
        (None, [58.4, 57.1, 57.4], r"model\.std=.*divide them by 255"),
    ],
)
def test_means_and_deviations_that_do_not_fit(mean: list[float] | None, std: list[float], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        load_model(tiny_net(), size=SIZE, mean=mean, std=std)
