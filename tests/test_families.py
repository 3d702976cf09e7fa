"""The default layers of one network of every family of timm and torchvision: stages or blocks of every depth."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from math import prod

import pytest
import timm
import torch
import torchvision
from torch import nn

from vital_exp.models.layers import default_layers, unit_shapes
from vital_exp.models.loading import wrap
from vital_exp.models.model_config import ModelConfig
from vital_exp.models.stages import CLASSIFIERS

pytestmark = pytest.mark.slow

# Parts of names, of the smallest networks first: nothing is computed, but many layers take long to run through.
SMALL = ("atto", "femto", "pico", "nano", "tiny", "xxs", "050", "18", "small", "_s", "19", "26", "b0", "_t", "m0", "0")
# Where a name promises less than it keeps.
SMALLEST = ("densenet121", "hrnet_w18_small")
# On the meta device a recurrent layer takes minutes.
WITH_NUMBERS = ("sequencer2d_s",)
# The last layer is behind this share of all layers.
DEEP = 0.6
# Plain classifiers of three layers are as many layers as the convolutions before them.
WITH_LARGE_CLASSIFIERS = ("alexnet",)


def smallest(names: list[str]) -> str:
    """The name that promises the smallest network."""
    known = [name for name in names if name in SMALLEST]
    return (
        known[0]
        if known
        else min(names, key=lambda name: next((i for i, part in enumerate(SMALL) if part in name), len(SMALL)))
    )


def timm_families() -> list[str]:
    """One network of each of timm's modules."""
    families: dict[str, list[str]] = {}
    for name in timm.list_models():
        families.setdefault(timm.models._registry._model_to_module[name], []).append(name)
    return [smallest(names) for names in families.values()]


def torchvision_families() -> list[str]:
    """One classifier of each of torchvision's modules; a RegNet cannot be built without memory."""
    families: dict[str, list[str]] = {}
    for name in torchvision.models.list_models(module=torchvision.models):
        families.setdefault(torchvision.models.get_model_builder(name).__module__, []).append(name)
    return [smallest(names) for module, names in families.items() if not module.endswith("regnet")]


def check(module: nn.Module, size: int, name: str) -> None:
    network = wrap(module, ModelConfig(size=size))
    shapes, layers = unit_shapes(network), default_layers(network)
    order = list(shapes)
    depths = [order.index(layer) / len(order) for layer in layers]  # a layer that does not run has none
    assert len(layers) == len(set(layers)) >= 3, layers
    assert len(layers) <= 8, layers
    assert depths == sorted(depths), layers
    assert depths[-1] > DEEP or name in WITH_LARGE_CLASSIFIERS, list(zip(layers, depths, strict=True))
    assert all(prod(shapes[layer][1:]) > 1 for layer in layers), [shapes[layer] for layer in layers]
    timms_own = {stage["module"] for stage in getattr(module, "feature_info", [])}  # SelecSLS calls a stage head
    assert not any(set(layer.split(".")).intersection(CLASSIFIERS) for layer in layers[:-1] if layer not in timms_own)


def members() -> Iterator[tuple[str, str]]:
    """Where a network is from, and its name."""
    yield from (("timm", name) for name in timm_families())
    yield from (("torchvision", name) for name in torchvision_families())


@pytest.mark.parametrize(("source", "name"), list(members()))
def test_default_layers_of_every_family(source: str, name: str) -> None:
    size = 224
    with torch.device("cpu" if name in WITH_NUMBERS else "meta"):  # meta: shapes, no numbers
        if source == "timm":
            module = timm.create_model(name)
            size = module.pretrained_cfg["input_size"][-1]
        else:
            slow = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
            module = torchvision.models.get_model(name, weights=None, **slow)
            size = 299 if name == "inception_v3" else 224
    check(module, size, name)


class Wrapper(nn.Module):
    """A network under an attribute, beside a part that is used in training only."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.criterion = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Linear(4, 4))
        self.model = net

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Return the network's output."""
        return self.model(pictures)  # type: ignore[no-any-return]


class WithHead(nn.Module):
    """A backbone and a classifier of one's own."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.head = net, nn.Sequential(nn.LazyLinear(32), nn.ReLU(), nn.Linear(32, 4))

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Return (N, 4) logits."""
        return self.head(self.net(pictures).flatten(1))  # type: ignore[no-any-return]


WRAPPED = ("mobilenetv2_050", "vit_tiny_patch16_224", "convnext_atto", "resnet10t")
WRAPPERS = {
    "model.": Wrapper,
    "module.": nn.DataParallel,
    "1.": lambda net: nn.Sequential(nn.Identity(), net),
    "module.model.": lambda net: nn.DataParallel(Wrapper(net)),
    "1.0.": lambda net: nn.Sequential(nn.BatchNorm2d(3), nn.Sequential(net, nn.Softmax(dim=1))),
}


@cache
def alone(name: str) -> tuple[str, ...]:
    """The default layers of one of timm's networks."""
    return default_layers(wrap(timm.create_model(name), ModelConfig(size=224)))


@pytest.mark.parametrize("prefix", WRAPPERS)
@pytest.mark.parametrize(
    "name", ["mobilenetv2_050", "vit_tiny_patch16_224", "densenet121", "convnext_atto", "resnet10t"]
)
def test_a_wrapped_network_has_the_layers_that_it_has_alone(prefix: str, name: str) -> None:
    with torch.device("meta"):
        wrapped = default_layers(wrap(WRAPPERS[prefix](timm.create_model(name)), ModelConfig(size=224)))  # type: ignore[operator]
        assert wrapped == tuple(prefix + layer for layer in alone(name))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "swin_t", "densenet121"])
def test_a_wrapped_network_of_torchvision(name: str) -> None:
    with torch.device("meta"):
        nets = [torchvision.models.get_model(name, weights=None) for _ in range(3)]
        plain, wrapped, headed = (
            default_layers(wrap(net, ModelConfig(size=64)))
            for net in (nets[0], Wrapper(nets[1]), nn.Sequential(nets[2], nn.Linear(1000, 4)))
        )
    assert wrapped == tuple(f"model.{layer}" for layer in plain)
    assert headed == tuple(f"0.{layer}" for layer in plain)
