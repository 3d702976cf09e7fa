"""Backbones without their last stages, as python factories: model=python model.factory=examples/backbones.py:<name>.

    vital-visualize model=python model.factory=examples/backbones.py:resnet50_to_layer3 \
        model.checkpoint=resnet50_to_layer3.safetensors target=channel target.layer=layer3.5 target.index=7 \
        references.root=photos
"""

from __future__ import annotations

import timm
from torch import nn


def resnet18_to_layer3() -> nn.Module:
    """A ResNet-18 up to its third stage: 256 features after pooling."""
    return _without_layer4("resnet18")


def resnet50_to_layer3() -> nn.Module:
    """A ResNet-50 up to its third stage, the stride in the first convolution of a block, as Keras has it."""
    network = _without_layer4("resnet50")
    for stage in (network.layer2, network.layer3):
        stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    return network


def densenet169_backbone() -> nn.Module:
    """A DenseNet-169 without its classifier: 1,664 features after pooling."""
    return timm.create_model("densenet169", pretrained=False, num_classes=0)


def _without_layer4(name: str) -> nn.Module:
    network = timm.create_model(name, pretrained=False, num_classes=0)
    network.layer4 = nn.Identity()
    return network
