"""Which layers of a network VITAL aligns: the default rule per architecture, and a listing of all layers."""

from __future__ import annotations

import re
from collections.abc import Container
from dataclasses import dataclass

import torch
from torch import nn

from vital_exp.errors import UsageError
from vital_exp.models.network import Recipe, VisionNetwork
from vital_exp.models.taps import OUTPUT, channels_first, probe

# METHODS' table: the paper's blocks of 12 and 24 deep vision transformers.
VIT_BLOCKS = {12: (0, 4, 8, 11), 24: (2, 9, 20, 23)}
# The paper's weight of total variation and of the L2 norm for vision transformers; convolutional networks take none.
VIT_PRIOR = 3e-3
# Hidden units (METHODS 1.3): the first layer counts less, and both priors are the same for every network.
UNIT_STEM_WEIGHT = 0.1
UNIT_PRIOR = 3e-7
# Stages of a timm network count from this reduction on; finer ones belong to the stem.
FIRST_STAGE_REDUCTION = 4
# What torchvision and others call the part that holds no stage.
CLASSIFIERS = ("classifier", "head", "fc")


@dataclass(frozen=True)
class Alignment:
    """The layers to align with the weight of each, and the weights of the two image priors."""

    layers: dict[str, float]
    total_variation: float
    l2: float


def alignment(network: VisionNetwork, asked: Recipe) -> Alignment:
    """Resolve what was asked for, then the network's own recipe, then the default rule.

    Raises:
        UsageError: an unknown layer, or as many weights as layers are not given.
    """
    layers = asked.layers or network.recipe.layers or default_layers(network)
    network.taps(layers)  # names the layer that does not exist
    own_weights = network.recipe.layer_weights if layers == network.recipe.layers else None
    weights = asked.layer_weights or own_weights or (1.0,) * len(layers)
    if len(weights) != len(layers):
        raise UsageError(
            "model.layer_weights", list(weights), f"one weight per layer, and there are {len(layers)}; null: all 1"
        )
    prior = VIT_PRIOR if is_transformer(network.module) else 0.0
    total_variation = _first(asked.total_variation, network.recipe.total_variation, prior)
    l2 = _first(asked.l2, network.recipe.l2, prior)
    return Alignment(dict(zip(layers, map(float, weights), strict=True)), total_variation, l2)


def unit_alignment(network: VisionNetwork, asked: Recipe, target_layer: str) -> Alignment:
    """Resolve what is aligned for units of a hidden layer: what was asked for, else the network's layers below it.

    Raises:
        UsageError: an unknown layer, one that is not below the target, or not as many weights as layers.
    """
    network.taps([target_layer], "target.layer")
    order = list(unit_shapes(network))  # in order of completion: what a layer holds comes before it
    _check_runs(target_layer, order, network, "target.layer")
    below = order[: order.index(target_layer)]
    layers = asked.layers or tuple(name for name in network.recipe.layers or default_layers(network) if name in below)
    network.taps(layers)
    for layer in layers:
        if layer not in below:
            raise UsageError("model.layers", layer, f"not below the target's layer {target_layer}", below)
    weights = asked.layer_weights or tuple(UNIT_STEM_WEIGHT if depth == 0 else 1.0 for depth in range(len(layers)))
    if len(weights) != len(layers):
        raise UsageError("model.layer_weights", list(weights), f"one weight per layer, and there are {len(layers)}")
    total_variation, l2 = _first(asked.total_variation, UNIT_PRIOR), _first(asked.l2, UNIT_PRIOR)
    return Alignment(dict(zip(layers, map(float, weights), strict=True)), total_variation, l2)


def _first(*values: float | None) -> float:
    return next(float(value) for value in values if value is not None)


def is_transformer(module: nn.Module) -> bool:
    """Whether the network holds an attention module."""
    return any(re.search(r"Attention(V\d+)?$", type(m).__name__) for m in module.modules())


def default_layers(network: VisionNetwork) -> tuple[str, ...]:
    """Return the layers aligned on a network that has no named configuration.

    Transformers: the patch embedding and four blocks. ConvNeXt: stem, downsampling convolutions, last block. DenseNet:
    first convolution and the dense blocks. Other networks: the first convolution and the end of each stage (timm's
    feature_info where there is one, else the last module at each map size).
    """
    names = [name for name, _ in network.module.named_modules()]
    for rule in (_transformer_layers, _convnext_layers, _densenet_layers):
        if found := rule(names):
            return found
    return _stage_layers(network) or _traced_layers(network)


def _transformer_layers(names: list[str]) -> tuple[str, ...]:
    """timm's patch_embed and blocks.N, torchvision's conv_proj and encoder.layers.encoder_layer_N."""
    for embedding, pattern in (
        ("patch_embed", r"blocks\.\d+"),
        ("conv_proj", r"encoder\.layers\.encoder_layer_\d+"),
        ("stem", r"blocks\.\d+"),
        ("clip.visual.conv1", r"clip\.visual\.transformer\.resblocks\.\d+"),  # open_clip's
    ):
        blocks = [name for name in names if re.fullmatch(pattern, name)]
        inside = [name for name in names if blocks and name.startswith(f"{blocks[0]}.")]
        mixes_tokens = any(word in name for name in inside for word in ("attn", "attention", "mlp_tokens"))
        if embedding in names and mixes_tokens:
            depth = len(blocks)
            chosen = VIT_BLOCKS.get(depth, (0, depth // 3, 2 * depth // 3, depth - 1))
            return (embedding, *(blocks[i] for i in sorted(set(chosen))))
    return ()


def _convnext_layers(names: list[str]) -> tuple[str, ...]:
    for stem, downsample, block in (
        ("stem", r"stages\.[1-9]\.downsample\.1", r"stages\.\d+\.blocks\.\d+"),
        ("features.0", r"features\.[246]\.1", r"features\.7\.\d+"),
    ):
        parents = {name.rpartition(".")[0] for name in names}  # an EfficientNet has blocks in these places
        downsamples = [name for name in names if re.fullmatch(downsample, name) and name not in parents]
        blocks = [name for name in names if re.fullmatch(block, name)]
        convnext = any(name.endswith(("conv_dw", "block.0")) for name in names)
        if stem in names and len(downsamples) == 3 and blocks and convnext:
            return (stem, *downsamples, blocks[-1])
    return ()


def _densenet_layers(names: list[str]) -> tuple[str, ...]:
    blocks = [name for name in names if re.fullmatch(r"features\.denseblock\d+", name)]
    return ("features.conv0", *blocks) if blocks and "features.conv0" in names else ()


def _first_convolution(module: nn.Module) -> str | None:
    return next((name for name, m in module.named_modules() if isinstance(m, nn.Conv2d)), None)


def _stage_layers(network: VisionNetwork) -> tuple[str, ...]:
    """The first convolution and timm's stage ends, from quarter resolution on."""
    features = getattr(getattr(network.module, "feature_info", None), "info", None) or getattr(
        network.module, "feature_info", None
    )
    stem = _first_convolution(network.module)
    if not isinstance(features, list) or stem is None:
        return ()
    known = dict(network.module.named_modules())
    stages = [f["module"] for f in features if f.get("reduction", 0) >= FIRST_STAGE_REDUCTION and f["module"] in known]
    return (stem, *stages) if len(stages) > 1 else ()


def _traced_layers(network: VisionNetwork) -> tuple[str, ...]:
    """The first convolution and the last module at each map size of one forward pass."""
    stem = _first_convolution(network.module)
    if stem is None:
        raise UsageError("model.layers", None, "no default rule fits this network: name the layers to align")
    shapes = layer_shapes(network)
    modules = dict(network.module.named_modules())
    tokens = is_transformer(network.module)  # its stages are sequences of blocks and hold no convolutions
    last_at: dict[tuple[int, ...], str] = {}
    convolutions: dict[tuple[int, ...], list[str]] = {}
    for name, shape in shapes.items():
        if name.split(".")[0] in CLASSIFIERS:
            continue  # a SqueezeNet's is a convolution
        ends_a_stage = isinstance(modules[name], nn.Sequential) or not tokens
        if (
            len(shape) == 3
            and shape[1] > 1
            and ends_a_stage
            and not _inside_a_block_that_resizes(name, shapes, modules)
        ):
            last_at[shape[1:]] = name  # shapes come in order of completion: containers after what they hold
        if len(shape) == 3 and isinstance(modules[name], nn.Conv2d):
            convolutions.setdefault(shape[1:], []).append(name)
    stages = [name for size, name in last_at.items() if tokens or convolutions.get(size, [stem]) != [stem]]
    return (stem, *(name for name in stages if name != stem))


def _inside_a_block_that_resizes(name: str, shapes: dict[str, tuple[int, ...]], modules: dict[str, nn.Module]) -> bool:
    """Whether a block (not a mere sequence) around the module puts out another map size: the module ends no stage."""
    parents = [name[:i] for i, letter in enumerate(name) if letter == "."]
    blocks = [parent for parent in parents if parent in shapes and not isinstance(modules[parent], nn.Sequential)]
    return any(shapes[block][1:] != shapes[name][1:] for block in blocks)


def layer_shapes(network: VisionNetwork) -> dict[str, tuple[int, ...]]:
    """Return the shape (C, ...) of every module that runs in a forward pass at the network's input size."""
    zeros = torch.zeros(1, 3, *network.preprocessing.size, dtype=network.dtype, device=network.device)
    names = [name for name, _ in network.module.named_modules() if name]
    return probe(network.module, names, zeros)


def unit_shapes(network: VisionNetwork) -> dict[str, tuple[int, ...]]:
    """Return the shape (C, ...) of every layer that units are of: those of :func:`layer_shapes`, and ``"output"``.

    A network that returns no tensor has no ``"output"``.
    """
    zeros = torch.zeros(1, 3, *network.preprocessing.size, dtype=network.dtype, device=network.device)
    with torch.no_grad():
        returned = network.module(zeros)
    shapes = layer_shapes(network)
    try:
        shapes[OUTPUT] = tuple(channels_first(network.output.tensor(returned, 1)).shape[1:])
    except UsageError:  # whoever asks for a unit of it is told by what reads it
        return shapes
    return shapes


def unit_shape(network: VisionNetwork, layer: str, key: str) -> tuple[int, ...]:
    """Return the shape (C, ...) of a layer that units are asked of, with the configuration key that names it.

    Raises:
        UsageError: no such layer, one that never runs, or ``"output"`` of a network that returns no tensor.
    """
    network.taps([layer], key)  # names the layer that does not exist
    shapes = unit_shapes(network)
    _check_runs(layer, shapes, network, key)
    return shapes[layer]


def _check_runs(layer: str, shapes: Container[str], network: VisionNetwork, key: str) -> None:
    if layer in shapes:
        return
    if layer == OUTPUT:
        returns = network.output.returns
        raise UsageError(key, layer, f"no tensor with a row for each picture: the network returns {returns}")
    raise UsageError(key, layer, "the network never runs this layer in a forward pass")


def describe_layers(network: VisionNetwork) -> str:
    """Return a table of all layers: name, channels, map size, kind; the aligned ones are marked."""
    aligned = alignment(network, Recipe()).layers
    modules = dict(network.module.named_modules())
    rows = [("", "layer", "channels", "map", "kind")]
    for name, (channels, *size) in layer_shapes(network).items():
        mark = "*" if name in aligned else ""
        rows.append((mark, name, str(channels), "x".join(map(str, size)), type(modules[name]).__name__))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, "", "* aligned by default; model.layers=[...] chooses others"])
