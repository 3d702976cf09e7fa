"""The positions of class token, register tokens and patch tokens among the tokens of a transformer's layer."""

from __future__ import annotations

from math import isqrt

from vital_exp.errors import UsageError
from vital_exp.models.layers import unit_shape
from vital_exp.models.network import VisionNetwork
from vital_exp.targets.unit import CLASS_TOKEN, PATCH_TOKENS, REGISTER_TOKENS

# Names of the tokens' parameters in timm, torchvision, open_clip and transformers.
CLASS_NAMES = ("cls_token", "class_token", "class_embedding")
DISTILLATION_NAMES = ("dist_token", "distillation_token")
REGISTER_NAMES = ("reg_token", "register_tokens")


def token_span(network: VisionNetwork, layer: str, tokens: str, key: str = "target.position") -> tuple[int, int]:
    """Return the positions of one kind of tokens in a layer, as (first, last + 1).

    The order of the tokens is: class token, distillation token, register tokens, patch tokens.

    Args:
        network: the frozen network.
        layer: module name.
        tokens: ``"cls"``, ``"register"`` or ``"patches"``.
        key: the configuration key that an error names.

    Raises:
        UsageError: the layer has no tokens, or none of this kind.
    """
    _channels, *shape = unit_shape(network, layer)
    if len(shape) != 1 or shape[0] == 1:
        found = "x".join(map(str, shape))
        raise UsageError(key, tokens, f"{layer} has no tokens, its maps are {found}: choose null, or another layer")
    kinds = (CLASS_NAMES, DISTILLATION_NAMES, REGISTER_NAMES)
    first, distilled, registers = (_count(network, names) for names in kinds)
    before = first + distilled + registers
    if not _is_grid(shape[0] - before, network.preprocessing.size):
        problem = f"the {shape[0]} tokens of {layer} are not {before} and a grid of patches"
        raise UsageError(key, tokens, f"{problem}: target=neuron reads one token")
    spans = {
        CLASS_TOKEN: (0, first),
        REGISTER_TOKENS: (first + distilled, before),
        PATCH_TOKENS: (before, shape[0]),
    }
    if spans[tokens][0] == spans[tokens][1]:
        there = [name for name, (start, end) in spans.items() if end > start]
        missing = "class token" if tokens == CLASS_TOKEN else "register tokens"
        raise UsageError(key, tokens, f"{network.name} has no {missing}: choose {' or '.join(there)}", there)
    return spans[tokens]


def _count(network: VisionNetwork, names: tuple[str, ...]) -> int:
    """Return the number of tokens in the first parameter with one of these names; 0 if there is none."""
    for name, value in network.module.named_parameters():
        if name.rpartition(".")[2] in names:
            return 1 if value.ndim < 2 else int(value.shape[-2])
    return 0


def _is_grid(count: int, size: tuple[int, int]) -> bool:
    """Whether ``count`` tokens can form a grid with the aspect ratio of a picture (height, width)."""
    rows = isqrt(max(count, 0) * size[0] // size[1])
    return rows > 0 and count % rows == 0 and rows * size[1] == count // rows * size[0]
