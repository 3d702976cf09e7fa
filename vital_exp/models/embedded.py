"""Three small networks that travel with the package, trained on the drawn image set: a ResNet, a ViT and a judge.

This module knows their architecture and where their weights are; ``tools/train_embedded.py`` makes the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from timm.models.densenet import DenseNet
from timm.models.resnet import BasicBlock, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vital_exp.errors import UsageError

SIZE = 64  # pixels, the drawn set's own
CLASSES = 10
# Round values, easy to check by hand, near the drawn set's own mean and standard deviation (0.53 and 0.27).
MEAN = (0.5, 0.5, 0.5)
STD = (0.25, 0.25, 0.25)

# Widths and depths: the smallest of a few that reach the accuracy wanted, with maps of 32, 16, 8 and 4 px.
RESNET_CHANNELS = (24, 48, 96, 192)
VIT_WIDTH, VIT_DEPTH, VIT_HEADS, VIT_PATCH = 96, 6, 3, 8
VIT_STEM = (24, 48, 96)  # channels after each halving
JUDGE_GROWTH, JUDGE_BLOCKS = 16, (2, 4, 6, 4)


def embedded_resnet() -> nn.Module:
    """Return a ResNet of four basic blocks (conv1, bn1, layer1 ... layer4, fc) with random weights.

    The stem suits small pictures: a 3 x 3 convolution of stride 2, no pooling.
    """
    block: Any = BasicBlock  # timm's annotation wants an instance
    network: nn.Module = ResNet(block, layers=(1, 1, 1, 1), channels=RESNET_CHANNELS, num_classes=CLASSES)
    network.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=2, padding=1, bias=False)
    network.maxpool = nn.Identity()
    return network


def embedded_vit() -> nn.Module:
    """Return a vision transformer (patch_embed, blocks.0 ... blocks.5, fc_norm, head) with random weights.

    Three strided convolutions embed its patches, so that it learns in minutes (Xiao et al., 2021). It averages its
    tokens and has no class token.
    """
    network = VisionTransformer(
        img_size=SIZE,
        patch_size=VIT_PATCH,
        embed_dim=VIT_WIDTH,
        depth=VIT_DEPTH,
        num_heads=VIT_HEADS,
        num_classes=CLASSES,
        class_token=False,
        global_pool="avg",
    )
    patches: Any = network.patch_embed
    patches.proj = _patch_convolutions()
    return network


def _patch_convolutions() -> nn.Sequential:
    """Return the embedding of patches of 8 x 8 px, three halvings: (N, 3, H, W) -> (N, 96, H / 8, W / 8)."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise((3, *VIT_STEM)):
        convolution = nn.Conv2d(inputs, outputs, kernel_size=3, stride=2, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(VIT_STEM[-1], VIT_WIDTH, kernel_size=1))


def embedded_judge() -> nn.Module:
    """Return a DenseNet (features.conv0 ... features.denseblock4, classifier) with random weights."""
    return DenseNet(
        growth_rate=JUDGE_GROWTH,
        block_config=JUDGE_BLOCKS,
        num_classes=CLASSES,
    )


EMBEDDED: dict[str, Callable[[], nn.Module]] = {
    "embedded_resnet": embedded_resnet,
    "embedded_vit": embedded_vit,
    "embedded_judge": embedded_judge,
}


def build(name: str) -> nn.Module:
    """Return an embedded network with random weights, in training mode.

    It maps (N, 3, 64, 64), normalised by ``MEAN`` and ``STD``, to logits (N, 10) of ``drawn.CLASS_NAMES``.

    Raises:
        UsageError: no embedded network has this name.
    """
    return EMBEDDED[_known(name)]()


def weights_path(name: str) -> Path:
    """Return where the package keeps an embedded network's weights, a safetensors file in half precision.

    Raises:
        UsageError: no embedded network has this name.
    """
    return Path(__file__).with_name("embedded") / f"{_known(name)}.safetensors"


def _known(name: str) -> str:
    if name not in EMBEDDED:
        raise UsageError("model.name", name, f"must be one of {', '.join(EMBEDDED)}", EMBEDDED)
    return name
