"""Which layers are aligned by default, the named configurations' layers and weights, and the listing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn

from tests.tiny import CifarResNet, tiny_net
from vital_exp.config import compose_config, options_of
from vital_exp.errors import UsageError
from vital_exp.models.layers import alignment, default_layers, describe_layers, layer_shapes, unit_alignment
from vital_exp.models.loading import wrap
from vital_exp.models.model_config import ModelConfig
from vital_exp.models.named import model_config, named_config
from vital_exp.models.network import Recipe, VisionNetwork

VIT_PRIOR = 3e-3


def without_weights(build: Callable[[], nn.Module], size: int = 224) -> VisionNetwork:
    """A network on the meta device: names and shapes, no numbers."""
    with torch.device("meta"):
        module = build()
    return wrap(module, ModelConfig(size=size))


def from_timm(name: str, **arguments: Any) -> VisionNetwork:
    return without_weights(lambda: timm.create_model(name, **arguments))


def from_torchvision(name: str) -> VisionNetwork:
    return without_weights(lambda: torchvision.models.get_model(name))


# Builder, name, layers with their shapes, prior.
RULES: list[tuple[Any, str, dict[str, Any], float]] = [
    (
        from_timm,
        "resnet18",
        {"conv1": (64, 112, 112), "layer1": (64, 56, 56), "layer2": (128, 28, 28)}
        | {"layer3": (256, 14, 14), "layer4": (512, 7, 7)},
        0,
    ),
    (
        from_timm,
        "densenet121",
        {"features.conv0": (64, 112, 112)}
        | {"features.denseblock1": (256, 56, 56), "features.denseblock2": (512, 28, 28)}
        | {"features.denseblock3": (1024, 14, 14), "features.denseblock4": (1024, 7, 7)},
        0,
    ),
    (
        from_timm,
        "convnext_atto",
        {"stem": (40, 56, 56)}
        | {f"stages.{i}.downsample.1": shape for i, shape in ((1, (80, 28, 28)), (2, (160, 14, 14)), (3, (320, 7, 7)))}
        | {"stages.3.blocks.1": (320, 7, 7)},
        0,
    ),
    (
        from_timm,
        "vit_tiny_patch16_224",
        {"patch_embed": (192, 196)} | {f"blocks.{i}": (192, 197) for i in (0, 4, 8, 11)},
        VIT_PRIOR,
    ),
    (
        from_timm,
        "swin_tiny_patch4_window7_224",
        {"patch_embed.proj": (96, 56, 56), "layers.0": (96, 56, 56), "layers.1": (192, 28, 28)}
        | {"layers.2": (384, 14, 14), "layers.3": (768, 7, 7)},
        VIT_PRIOR,
    ),
    (
        from_timm,
        "mobilenetv2_100",
        {"conv_stem": (32, 112, 112), "blocks.1": (24, 56, 56), "blocks.2": (32, 28, 28)}
        | {"blocks.4": (96, 14, 14), "blocks.6": (320, 7, 7)},
        0,
    ),
    (
        from_timm,
        "mobilenetv3_small_050",
        {"conv_stem": (16, 112, 112), "blocks.0": (8, 56, 56), "blocks.1": (16, 28, 28)}
        | {"blocks.3": (24, 14, 14), "blocks.5": (288, 7, 7)},
        0,
    ),
    (
        from_timm,
        "vgg11",
        {"features.0": (64, 224, 224), "features.9": (256, 56, 56), "features.14": (512, 28, 28)}
        | {"features.19": (512, 14, 14), "features.20": (512, 7, 7)},
        0,
    ),
    (from_timm, "mixer_s32_224", {"stem": (512, 49)} | {f"blocks.{i}": (512, 49) for i in (0, 2, 5, 7)}, 0),
    (
        from_timm,
        "pit_ti_224",  # its stages return several tensors
        {"patch_embed.conv": (64, 27, 27), "transformers.0": (64, 27, 27)}
        | {"transformers.1": (128, 14, 14), "transformers.2": (256, 7, 7)},
        VIT_PRIOR,
    ),
    (
        from_torchvision,
        "convnext_tiny",
        {"features.0": (96, 56, 56), "features.2.1": (192, 28, 28), "features.4.1": (384, 14, 14)}
        | {"features.6.1": (768, 7, 7), "features.7.2": (768, 7, 7)},
        0,
    ),
    (
        from_torchvision,
        "vit_b_32",
        {"conv_proj": (768, 7, 7)} | {f"encoder.layers.encoder_layer_{i}": (768, 50) for i in (0, 4, 8, 11)},
        VIT_PRIOR,
    ),
    (
        from_torchvision,
        "swin_t",
        {"features.0.0": (96, 56, 56), "features.1": (96, 56, 56), "features.3": (192, 28, 28)}
        | {"features.5": (384, 14, 14), "features": (768, 7, 7)},
        VIT_PRIOR,
    ),
    (
        from_torchvision,
        "swin_v2_t",
        {"features.0.0": (96, 56, 56), "features.1": (96, 56, 56), "features.3": (192, 28, 28)}
        | {"features.5": (384, 14, 14), "features": (768, 7, 7)},
        VIT_PRIOR,
    ),
    (
        from_torchvision,
        "squeezenet1_1",  # the map of class scores is no stage
        {"features.0": (64, 111, 111), "features.4": (128, 55, 55)}
        | {"features.7": (256, 27, 27), "features": (512, 13, 13)},
        0,
    ),
    (
        from_torchvision,
        "efficientnet_b0",  # a block stands where a ConvNeXt downsamples
        {"features.0.0": (32, 112, 112), "features.1": (16, 112, 112), "features.2": (24, 56, 56)}
        | {"features.3": (40, 28, 28), "features.5": (112, 14, 14), "features": (1280, 7, 7)},
        0,
    ),
    (
        from_torchvision,
        "mobilenet_v3_small",
        {"features.0.0": (16, 112, 112), "features.1": (16, 56, 56), "features.3": (24, 28, 28)}
        | {"features.8": (48, 14, 14), "features": (576, 7, 7)},
        0,
    ),
]


@pytest.mark.parametrize(("build", "name", "layers", "prior"), RULES, ids=[f"{r[0].__name__}-{r[1]}" for r in RULES])
def test_default_layers(
    build: Callable[[str], VisionNetwork], name: str, layers: dict[str, tuple[int, ...]], prior: float
) -> None:
    network = build(name)
    assert default_layers(network) == tuple(layers)
    shapes = layer_shapes(network)
    assert {layer: shapes[layer] for layer in layers} == layers
    resolved = alignment(network, Recipe())
    assert resolved.layers == dict.fromkeys(layers, 1.0)
    assert (resolved.total_variation, resolved.l2) == (prior, prior)


def test_default_layers_of_a_network_of_ones_own() -> None:
    assert default_layers(wrap(tiny_net(), ModelConfig(size=32))) == ("conv1", "layer1")
    deep = without_weights(lambda: CifarResNet(9), 32)  # a stage of many blocks is no body of a transformer
    assert default_layers(deep) == ("conv1", "layer1", "layer2", "layer3")
    cifar = without_weights(lambda: CifarResNet(3), 32)
    assert default_layers(cifar) == ("conv1", "layer1", "layer2", "layer3")


def test_a_network_without_convolutions_asks_for_layers() -> None:
    network = wrap(nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 5)), ModelConfig(size=8))
    with pytest.raises(UsageError, match=r"model\.layers.*name the layers"):
        default_layers(network)
    assert list(alignment(network, ModelConfig(layers=[1]).recipe).layers) == ["1"]  # type: ignore[list-item]


BLOCKS = {"vit_b": (0, 4, 8, 11), "vit_l": (2, 9, 20, 23)}
STAGES = [f"layer{i}" for i in range(1, 5)]
DENSE = [f"features.denseblock{i}" for i in range(1, 5)]
DOWN = [f"stages.{i}.downsample.1" for i in range(1, 4)]


def vit_torchvision(kind: str) -> list[str]:
    return ["conv_proj", *(f"encoder.layers.encoder_layer_{i}" for i in BLOCKS[kind])]


VIT_LARGE_TIMM = ["patch_embed", *(f"blocks.{i}" for i in BLOCKS["vit_l"])]
# The paper's table: configuration, layers, their weights, total variation and L2 norm.
TABLE: dict[str, tuple[list[str], list[float], float]] = {
    "resnet50": (["conv1", *STAGES], [1, 1, 1, 1, 1], 0),
    "densenet121": (["features.conv0", *DENSE], [1, 1, 1, 1, 100], 0),
    "convnext_base": (["features.0", *(f"features.{i}.1" for i in (2, 4, 6)), "features.7.2"], [10, 1, 1, 1, 1], 0),
    "vit_l_16": (vit_torchvision("vit_l"), [1, 1, 1, 1, 1], 3e-3),
    "vit_l_32": (vit_torchvision("vit_l"), [1, 1, 1, 1, 0.1], 3e-4),
    "vit_b_16": (vit_torchvision("vit_b"), [1, 1, 1, 1, 1], 3e-3),
    "vit_b_32": (vit_torchvision("vit_b"), [1, 1, 1, 1, 1], 3e-3),
    "timm_resnet50": (["conv1", *STAGES], [1, 1, 1, 1, 1], 0),
    "timm_densenet121": (["features.conv0", *DENSE], [1, 1, 1, 1, 100], 0),
    "timm_convnext_base": (["stem", *DOWN, "stages.3.blocks.2"], [10, 1, 1, 1, 1], 0),
    "timm_vit_large_patch16_224": (VIT_LARGE_TIMM, [1, 1, 1, 1, 1], 3e-3),
    "timm_vit_large_patch32_384": (VIT_LARGE_TIMM, [1, 1, 1, 1, 0.1], 3e-4),
}


def test_the_table_names_every_configuration_with_layers() -> None:
    assert {name for name in options_of("model") if named_config(name).layers} == set(TABLE)


@pytest.mark.parametrize("name", TABLE)
def test_the_papers_networks_have_its_layers_weights_and_priors(name: str) -> None:
    config = named_config(name)
    build = timm.create_model if config.source == "timm" else torchvision.models.get_model
    with torch.device("meta"):
        module = build(str(config.name))
    network = wrap(module, ModelConfig(size=384 if "384" in name else 224))
    layers, weights, prior = TABLE[name]
    resolved = alignment(network, config.recipe)
    assert resolved.layers == dict(zip(layers, weights, strict=True))
    assert (resolved.total_variation, resolved.l2) == (prior, prior)
    assert set(layers) <= set(layer_shapes(network))  # each runs in a forward pass


def test_the_default_rule_agrees_with_the_paper() -> None:
    for name in ("resnet50", "densenet121", "vit_b_32"):
        assert list(default_layers(from_torchvision(name))) == TABLE[name][0]
    assert list(default_layers(from_timm("convnext_base"))) == TABLE["timm_convnext_base"][0]


def test_what_is_asked_for_comes_first() -> None:
    own = Recipe(("conv1", "layer1"), (2.0, 3.0), 0.5, 0.25)
    network = VisionNetwork(tiny_net(), "tiny", wrap(tiny_net(), ModelConfig(size=32)).preprocessing, None, own)
    assert alignment(network, Recipe()).layers == {"conv1": 2.0, "layer1": 3.0}
    assert alignment(network, Recipe(layers=("fc",))).layers == {"fc": 1.0}
    assert alignment(network, Recipe(layer_weights=(5.0, 6.0))).layers == {"conv1": 5.0, "layer1": 6.0}
    resolved = alignment(network, Recipe(total_variation=0.0))
    assert (resolved.total_variation, resolved.l2) == (0.0, 0.25)


@pytest.mark.parametrize(
    ("target", "layers"),
    [
        ("layer4.0", ["conv1", "layer1", "layer2", "layer3"]),
        ("layer3", ["conv1", "layer1", "layer2"]),
        ("layer2.0", ["conv1", "layer1"]),
    ],
)
def test_hidden_units_have_the_papers_layers_weights_and_priors(target: str, layers: list[str]) -> None:
    found = unit_alignment(from_torchvision("resnet50"), Recipe(), target)
    assert found.layers == {layer: 0.1 if layer == "conv1" else 1.0 for layer in layers}
    assert (found.total_variation, found.l2) == (3e-7, 3e-7)


def test_one_layer_may_come_without_brackets() -> None:
    config = model_config(compose_config(["model=embedded_resnet", "model.layers=layer4"]))
    assert config.recipe.layers == ("layer4",)


def test_the_listing_marks_the_aligned_layers() -> None:
    lines = [line.split() for line in describe_layers(wrap(tiny_net(), ModelConfig(size=32))).splitlines()]
    assert ["*", "conv1", "8", "16x16", "Conv2d"] in lines
    assert ["*", "layer1", "16", "8x8", "Sequential"] in lines
    assert ["bn1", "8", "16x16", "BatchNorm2d"] in lines
    assert ["fc", "4", "1", "Linear"] in lines
