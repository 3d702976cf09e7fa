"""Names of networks as papers write them: ViT-Tiny, ResNet-50."""

from __future__ import annotations

import re

# By the beginning of a network's name: its family as papers write it.
FAMILIES = {
    **{"vit": "ViT", "deit3": "DeiT-3", "deit": "DeiT", "beit": "BEiT", "swin": "Swin", "eva02": "EVA-02"},
    **{"resnet": "ResNet", "resnext": "ResNeXt", "wide_resnet": "Wide ResNet", "densenet": "DenseNet", "vgg": "VGG"},
    **{"mobilenetv2": "MobileNetV2", "mobilenet_v2": "MobileNetV2", "mobilenetv3": "MobileNetV3"},
    **{"squeezenet": "SqueezeNet", "convnextv2": "ConvNeXt V2", "convnext": "ConvNeXt", "regnet": "RegNet"},
    **{"efficientnet": "EfficientNet", "alexnet": "AlexNet", "inception": "Inception", "googlenet": "GoogLeNet"},
}
# Parts of timm's names that give the sizes of patches, windows and input.
INPUT_PARTS = r"_patch\d+|_window\d+|(?<=\d)_\d{3}$"


def without_folders(name: str) -> str:
    """Return a network's name without the folders in front of it."""
    return re.split(r"[/\\]", name)[-1]


def short_name(name: str) -> str:
    """Return a network's name without folders; of a factory, ``package.module:function`` or a file, its function."""
    return without_folders(name).rpartition(":")[2]


def network_words(name: str) -> str:
    """Return a network's name as papers write it: vit_tiny_patch16_224 is ViT-Tiny, resnet50 is ResNet-50.

    A factory ``package.module:function`` gives the function's name, a file its own. A name of no known family stays,
    with spaces for underscores.
    """
    short = without_folders(name).rpartition(":")[2].removesuffix(".py")
    short = short.rpartition(".")[2] if re.search(r"[/\\:]", name) else short.partition(".")[0]
    short = short or name
    for key in sorted(FAMILIES, key=len, reverse=True):
        if re.match(rf"{key}(?![a-z])", short, re.IGNORECASE):
            rest = re.sub(INPUT_PARTS, "", re.sub(r"_patch\d+_\d{3}", "", short[len(key) :]))
            parts = [part if part[:1].isdigit() else part.capitalize() for part in rest.split("_") if part]
            return "-".join([FAMILIES[key], *parts])
    return short.replace("_", " ")


def network_title(name: str) -> str:
    """Return a network's name for a page's title: for a factory the function's words, else the name as it is."""
    return network_words(name) if ":" in name else name
