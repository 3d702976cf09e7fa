"""The layers of a network that are aligned by default: stem, stages or blocks, by rules for architectures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod

from torch import nn

from vital_exp.errors import UsageError
from vital_exp.models.network import VisionNetwork
from vital_exp.models.tracing import TracedLayer
from vital_exp.targets.unit import OUTPUT

# The paper's blocks of vision transformers of 12 and 24 blocks.
VIT_BLOCKS = {12: (0, 4, 8, 11), 24: (2, 9, 20, 23)}
# Stages of a timm network count from this reduction on; layers of a finer resolution belong to the stem.
FIRST_STAGE_REDUCTION = 4
# The names of classifiers in torchvision and elsewhere; they hold no stage.
CLASSIFIERS = ("classifier", "head", "fc", "heads", "aux_classifier", "AuxLogits")
# A part that holds at least this share of all layers may be a network in a wrapper: rules are tried inside it too.
MAIN_SHARE = 0.5
# At most so many tokens belong to no position: class, distillation and register tokens.
EXTRA_TOKENS = 8
# A transformer has at least so many blocks in a row.
FEWEST_BLOCKS = 4
# With fewer layers than this, the stem among them, layers are spread over the depth instead.
FEWEST_STAGES = 2
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

Layers = dict[str, TracedLayer]


@dataclass(frozen=True)
class DefaultLayers:
    """The layers that are aligned by default.

    Attributes:
        layers: module names, the stem first.
        sure: whether a rule for the architecture chose the layers; False: the sizes of maps did.
    """

    layers: tuple[str, ...]
    sure: bool


def default_layers(network: VisionNetwork) -> DefaultLayers:
    """Return the layers aligned on a network that has no named configuration.

    Transformers: the patch embedding and four blocks. ConvNeXt: stem, downsampling convolutions, last block. DenseNet:
    first convolution and the dense blocks. Other networks: the first convolution and the end of each stage (timm's
    feature_info where there is one, else the last module at each map size). The layers of a network in a wrapper are
    the same as without the wrapper. Only layers that run in a forward pass, and whose axes are known, are chosen.

    Raises:
        UsageError: no layer of the network has maps.
    """
    ran = {name: layer for name, layer in network.trace.layers.items() if name != OUTPUT}
    modules, places = dict(network.module.named_modules()), _main_parts(network.module, ran)
    for place in places:
        names = _below(place, modules)
        found = _all_of(place, _transformer_layers(names), ran)
        if len({ran[name].shape for name in found[1:]}) == 1:  # blocks of several sizes are stages
            return DefaultLayers(found, sure=True)
        for rule in (_convnext_layers, _densenet_layers):
            if found := _all_of(place, rule(names), ran):
                return DefaultLayers(found, sure=True)
    for place in places:
        if found := _stage_layers(modules[place], place, ran, modules):
            return DefaultLayers(found, sure=True)
    if found := _blocks_in_a_row(modules, ran):
        return DefaultLayers(found, sure=any(map(is_attention, modules.values())))
    found = _last_at_each_size(modules, places, ran)
    if len(found) < FEWEST_STAGES:
        return DefaultLayers(_spread(modules, ran, found), sure=False)
    sizes = [_positions(ran[name]) for name in found]
    return DefaultLayers(found, sure=all(a >= b for a, b in pairwise(sizes)))


def _main_parts(module: nn.Module, ran: Layers) -> list[str]:
    """Return the names of the network and, from the outside inwards, of its parts that hold most of the layers."""
    places, names = [""], list(ran)
    while True:
        children = [_joined(places[-1], name) for name, _ in module.get_submodule(places[-1]).named_children()]
        inside = {child: sum(name.startswith(f"{child}.") for name in names) for child in children}
        largest = max(inside, key=inside.__getitem__, default=None)
        if largest is None or inside[largest] < max(1, MAIN_SHARE * len(names)):
            return places
        places.append(largest)


def _joined(place: str, name: str) -> str:
    return f"{place}.{name}" if place and name else place or name


def _below(place: str, names: Sequence[str] | dict[str, nn.Module]) -> list[str]:
    """Return the names of the modules inside a part, relative to the part."""
    start = f"{place}." if place else ""
    return [name[len(start) :] for name in names if name.startswith(start) and name != place]


def _all_of(place: str, names: Sequence[str], ran: Layers) -> tuple[str, ...]:
    """Return the full names of layers if all of them can be read, else none."""
    found = tuple(_joined(place, name) for name in names)
    return found if all(name in ran for name in found) else ()


def _transformer_layers(names: Sequence[str]) -> tuple[str, ...]:
    """Return the patch embedding and four blocks, by the names of timm, torchvision, open_clip and transformers."""
    known = set(names)
    for embedding, pattern in EMBEDDINGS:
        blocks = [name for name in names if re.fullmatch(pattern, name)]
        inside = [name for name in names if blocks and name.startswith(f"{blocks[0]}.")]
        mixes_tokens = any(word in name for name in inside for word in ("attn", "attention", "mlp_tokens"))
        if embedding in known and mixes_tokens:
            return (embedding, *(blocks[i] for i in spread_blocks(len(blocks))))
    return ()


EMBEDDINGS = (
    ("patch_embed", r"blocks\.\d+"),
    ("conv_proj", r"encoder\.layers\.encoder_layer_\d+"),
    ("stem", r"blocks\.\d+"),
    ("clip.visual.conv1", r"clip\.visual\.transformer\.resblocks\.\d+"),
    ("visual.conv1", r"visual\.transformer\.resblocks\.\d+"),
    ("conv1", r"transformer\.resblocks\.\d+"),
    ("embeddings.patch_embeddings.projection", r"encoder\.layer\.\d+"),  # transformers: ViT, BEiT, DINOv2
    ("embeddings.patch_embeddings", r"layers?\.\d+"),
    ("embeddings.patch_embedding", r"encoder\.layers\.\d+"),  # transformers: CLIP, SigLIP
    ("embeddings.patch_embeddings", r"model\.layer\.\d+"),  # transformers: DINOv3
)


def spread_blocks(depth: int) -> list[int]:
    """Return the numbers of the four aligned blocks out of ``depth``: the paper's, or evenly spread ones."""
    return sorted(set(VIT_BLOCKS.get(depth, (0, depth // 3, 2 * depth // 3, depth - 1))))


def _convnext_layers(names: Sequence[str]) -> tuple[str, ...]:
    for stem, downsample, block in (
        ("stem", r"stages\.[1-9]\.downsample\.1", r"stages\.\d+\.blocks\.\d+"),
        ("features.0", r"features\.[246]\.1", r"features\.7\.\d+"),
        ("embeddings", r"encoder\.stages\.[1-9]\.downsampling_layer\.1", r"encoder\.stages\.\d+\.layers\.\d+"),
    ):
        parents = {name.rpartition(".")[0] for name in names}  # an EfficientNet has blocks in these places
        downsamples = [name for name in names if re.fullmatch(downsample, name) and name not in parents]
        blocks = [name for name in names if re.fullmatch(block, name)]
        convnext = any(name.endswith(("conv_dw", "block.0", "dwconv")) for name in names)
        if stem in names and len(downsamples) == 3 and blocks and convnext:
            return (stem, *downsamples, blocks[-1])
    return ()


def _densenet_layers(names: Sequence[str]) -> tuple[str, ...]:
    blocks = [name for name in names if re.fullmatch(r"features\.denseblock\d+", name)]
    return ("features.conv0", *blocks) if blocks and "features.conv0" in names else ()


def _stem(modules: dict[str, nn.Module], ran: Layers, place: str = "") -> str | None:
    """Return the first convolution that runs, else the first layer with a map."""
    inside = [name for name in ran if not place or name.startswith(f"{place}.")]
    convolution = next((name for name in inside if isinstance(modules[name], CONVOLUTIONS)), None)
    return convolution or next((name for name in inside if _positions(ran[name]) > 1), None)


def _positions(layer: TracedLayer) -> int:
    return prod(layer.shape[1:])


def _stage_layers(part: nn.Module, place: str, ran: Layers, modules: dict[str, nn.Module]) -> tuple[str, ...]:
    """Return the first convolution and timm's stage ends from quarter resolution on; four of them if all have one size.

    Empty where timm's feature_info gives no such stages.
    """
    features = getattr(getattr(part, "feature_info", None), "info", None) or getattr(part, "feature_info", None)
    stem = _stem(modules, ran, place)
    if not isinstance(features, list) or stem is None:
        return ()
    later = [f for f in features if f.get("reduction", 0) >= FIRST_STAGE_REDUCTION]
    if len({f["reduction"] for f in later}) == 1 and len(later) > FEWEST_BLOCKS:
        later = [later[i] for i in spread_blocks(len(later))]
    ends = [_that_runs(_joined(place, f["module"]), ran) for f in later]
    if len(set(ends)) < len(later):  # one module returns the maps of several stages
        return ()
    stages = [name for name in dict.fromkeys(ends) if name in ran and name != stem]
    return (stem, *stages) if len(stages) > 1 and len(stages) == len(set(ends) - {stem}) else ()


def _that_runs(name: str, ran: Layers) -> str:
    """Return a module that runs: this one, or the last of its children if this one is a list that never runs."""
    children = [child for child in ran if child.rpartition(".")[0] == name]
    return name if name in ran or not children else children[-1]


def _blocks_in_a_row(modules: dict[str, nn.Module], ran: Layers) -> tuple[str, ...]:
    """Return the first convolution and four of the longest row of equal blocks, if no map is smaller than the first."""
    stem = _stem(modules, ran)
    rows = [_row(name, part, ran) for name, part in modules.items() if isinstance(part, (nn.ModuleList, nn.Sequential))]
    row = max(rows, key=len, default=[])
    if stem is None or len(row) < FEWEST_BLOCKS:
        return ()
    shapes, first = {ran[name].shape for name in row}, _positions(ran[stem])
    if len(shapes) > 1 or abs(_positions(ran[row[0]]) - first) > EXTRA_TOKENS or first < 2:
        return ()
    beside = [other[0] for other in rows if len(other) > 1 and not other[0].startswith(f"{row[0].rpartition('.')[0]}.")]
    if any(1 < _positions(ran[name]) < first - EXTRA_TOKENS for name in beside):  # the row is one of several stages
        return ()
    return tuple(dict.fromkeys((stem, *(row[i] for i in spread_blocks(len(row))))))


def _row(name: str, part: nn.Module, ran: Layers) -> list[str]:
    """Return the children of a sequence if all of them run and are of one class, else none."""
    children = [(_joined(name, number), type(child)) for number, child in part.named_children()]
    row = [child for child, _ in children if child in ran]
    return row if len({kind for _, kind in children}) == 1 and len(row) == len(children) else []


def _last_at_each_size(modules: dict[str, nn.Module], places: Sequence[str], ran: Layers) -> tuple[str, ...]:
    """Return the first convolution and the last module at each size of maps.

    Raises:
        UsageError: the network has no maps.
    """
    stem = _stem(modules, ran)
    if stem is None:
        raise UsageError("model.layers", None, "no default rule fits this network: name the layers to align")
    attention = any(is_attention(part) for part in modules.values())  # stages of attention hold few convolutions
    last_at: dict[int, str] = {}
    convolutions: dict[int, list[str]] = {}
    for name, layer in ran.items():
        size = _positions(layer)
        if size <= 1 or layer.layout.windowed or _in_classifier(name, places):
            continue
        if name in places and not isinstance(modules[name], nn.Sequential):  # it holds all stages
            continue
        if isinstance(modules[name], CONVOLUTIONS):
            convolutions.setdefault(size, []).append(name)
        if (not attention or _in_a_sequence(name, modules)) and not _inside_a_block_that_resizes(
            name, places, ran, modules
        ):
            last_at[size] = name  # in the order in which layers finish: a container comes after its parts
    stages = {name for size, name in last_at.items() if attention or convolutions.get(size, [stem]) != [stem]}
    return (stem, *(name for name in ran if name in stages and name != stem))


def is_attention(part: nn.Module) -> bool:
    """Whether a module is an attention, by the name of its class."""
    return re.search(r"Attention(V\d+)?$", type(part).__name__) is not None


def _in_a_sequence(name: str, modules: dict[str, nn.Module]) -> bool:
    """Whether a layer is a sequence of blocks, or a block (not a bare layer) of one."""
    if isinstance(modules[name], nn.Sequential):
        return True
    is_block = next(modules[name].children(), None) is not None
    return is_block and isinstance(modules[name.rpartition(".")[0]], (nn.Sequential, nn.ModuleList))


def _in_classifier(name: str, places: Sequence[str]) -> bool:
    """Whether a layer is part of the classifier behind the stages; a SqueezeNet's classifier is a convolution."""
    place = max((place for place in places if not place or name.startswith(f"{place}.")), key=len)
    return name[len(place) :].lstrip(".").split(".")[0] in CLASSIFIERS


def _inside_a_block_that_resizes(name: str, places: Sequence[str], ran: Layers, modules: dict[str, nn.Module]) -> bool:
    """Whether a block (no sequence, no wrapper) around a layer returns another map size: the layer ends no stage."""
    parents = [name[:i] for i, letter in enumerate(name) if letter == "."]
    blocks = [p for p in parents if p in ran and p not in places and not isinstance(modules[p], nn.Sequential)]
    return any(_positions(ran[block]) != _positions(ran[name]) for block in blocks)


def _spread(modules: dict[str, nn.Module], ran: Layers, found: tuple[str, ...]) -> tuple[str, ...]:
    """Return the first convolution and layers at a third, two thirds and the end of the depth.

    For networks whose maps do not shrink; ``found`` are the layers that the sizes of maps gave.
    """
    maps = [name for name, layer in ran.items() if _positions(layer) > 1 and not layer.layout.windowed]
    weighted = [name for name in maps if isinstance(modules[name], (*CONVOLUTIONS, nn.Linear))] or maps
    chosen = [weighted[i] for i in spread_blocks(len(weighted))]
    return tuple(dict.fromkeys((*found[:1], *chosen, *found[1:])))
