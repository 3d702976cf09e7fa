"""Which layers of a network VITAL aligns: the default rule per architecture, and a listing of all layers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from vital_exp.errors import UsageError
from vital_exp.models import stages
from vital_exp.models.network import Recipe, VisionNetwork
from vital_exp.targets.unit import INPUT, OUTPUT

# The paper's weight of total variation and of the L2 norm for vision transformers; 0 for convolutional networks.
VIT_PRIOR = 3e-3
# VITAL's weights for hidden units (docs/methods/vital.md): the first layer counts less, and both priors have the same
# weight for every network.
UNIT_STEM_WEIGHT = 0.1
UNIT_PRIOR = 3e-7


@dataclass(frozen=True)
class Alignment:
    """The layers to align with the weight of each, and the weights of the two image priors.

    Attributes:
        layers: the weight of each layer, by the layer's name.
        total_variation, l2: weights of the priors.
        weighted: whether the user or the network's recipe gives the layers' weights; False: the default rule does.
    """

    layers: dict[str, float]
    total_variation: float
    l2: float
    weighted: bool = False


def alignment(network: VisionNetwork, asked: Recipe) -> Alignment:
    """Return the alignment for classes: what was asked for, else the network's own recipe, else the default rule.

    Raises:
        UsageError: an unknown layer, or not as many weights as layers.
    """
    layers = asked.layers or network.recipe.layers or default_layers(network)
    _check(network, layers)
    own_weights = network.recipe.layer_weights if layers == network.recipe.layers else None
    weights = asked.layer_weights or own_weights or (1.0,) * len(layers)
    if len(weights) != len(layers):
        raise UsageError(
            "model.layer_weights", list(weights), f"one weight per layer, and there are {len(layers)}; null: all 1"
        )
    prior = VIT_PRIOR if is_transformer(network.module) else 0.0
    total_variation = _first(asked.total_variation, network.recipe.total_variation, prior)
    l2 = _first(asked.l2, network.recipe.l2, prior)
    given = bool(asked.layer_weights or own_weights)
    return Alignment(dict(zip(layers, map(float, weights), strict=True)), total_variation, l2, given)


def unit_alignment(network: VisionNetwork, asked: Recipe, target_layer: str) -> Alignment:
    """Return the alignment for units of a hidden layer: what was asked for, else the network's layers below it.

    Raises:
        UsageError: an unknown layer, a layer that is not below the target's, or not as many weights as layers.
    """
    unit_shape(network, target_layer)
    order = list(unit_shapes(network))  # in order of completion: a layer comes after its parts
    below = order[: order.index(target_layer)]
    layers = asked.layers or tuple(name for name in network.recipe.layers or default_layers(network) if name in below)
    _check(network, layers)
    for layer in layers:
        if layer not in below:
            raise UsageError("model.layers", layer, f"not below the target's layer {target_layer}", below)
    weights = asked.layer_weights or tuple(UNIT_STEM_WEIGHT if depth == 0 else 1.0 for depth in range(len(layers)))
    if len(weights) != len(layers):
        raise UsageError("model.layer_weights", list(weights), f"one weight per layer, and there are {len(layers)}")
    total_variation, l2 = _first(asked.total_variation, UNIT_PRIOR), _first(asked.l2, UNIT_PRIOR)
    given = bool(asked.layer_weights)
    return Alignment(dict(zip(layers, map(float, weights), strict=True)), total_variation, l2, given)


def _check(network: VisionNetwork, layers: Iterable[str]) -> None:
    """Raise UsageError for a layer that does not exist, never runs or cannot be read."""
    chosen = list(layers)
    taps = network.taps(chosen)
    for name in taps.layers:
        taps.layout(name)
    tell_of_runs(network, taps.layers)


def _first(*values: float | None) -> float:
    return next(float(value) for value in values if value is not None)


def is_transformer(module: nn.Module) -> bool:
    """Whether the network holds an attention module."""
    return any(map(stages.is_attention, module.modules()))


def default_layers(network: VisionNetwork) -> tuple[str, ...]:
    """Return the layers aligned on a network that has no named configuration, see :mod:`vital_exp.models.stages`.

    Where no rule knows the architecture, the log names the layers chosen.
    """
    found = stages.default_layers(network)
    if not found.sure:
        network.tell(
            f"no rule is sure which layers of {network.name} to align; chosen by the sizes of maps: "
            f"{', '.join(found.layers)}. list=layers prints all, model.layers=[...] chooses others"
        )
    return found.layers


def layer_shapes(network: VisionNetwork) -> dict[str, tuple[int, ...]]:
    """Return the shape (C, ...) of every layer that can be read, in its first run, at the network's input size."""
    return {name: shape for name, shape in unit_shapes(network).items() if name != OUTPUT}


def unit_shapes(network: VisionNetwork) -> dict[str, tuple[int, ...]]:
    """Return the shape (C, ...) of every layer that has units: the layers of :func:`layer_shapes`, and ``"output"``.

    A network that returns no tensor has no ``"output"``.
    """
    return {name: layer.shape for name, layer in network.trace.layers.items()}


def unit_shape(network: VisionNetwork, layer: str, key: str = "target.layer") -> tuple[int, ...]:
    """Return the shape (C, ...) of the layer whose units are asked for.

    Args:
        network: the network.
        layer: its name; ``"input"`` and ``"output"`` too.
        key: the configuration key that a mistake is blamed on.

    Raises:
        UsageError: the network does not have or run the layer, or its axes are unknown; ``"output"`` of a network that
            returns no tensor.
    """
    if layer == INPUT:
        return network.preprocessing.channels, *network.preprocessing.size
    network.taps([layer], key).layout(layer)
    tell_of_runs(network, [layer])
    return network.trace.layers[layer].shape


def tell_of_runs(network: VisionNetwork, layers: Iterable[str]) -> None:
    """Log which of the layers run several times in a forward pass: only the first run is read."""
    for name in layers:
        if name in network.trace.layers and (runs := network.trace.layers[name].runs) > 1:
            network.tell(f"{name} of {network.name} runs {runs} times in a forward pass: its first run is read")


def describe_layers(network: VisionNetwork) -> str:
    """Return a table of all layers (name, channels, map size, kind), in which the aligned layers are marked."""
    aligned = alignment(network, Recipe()).layers
    modules = dict(network.module.named_modules())
    rows = [("", "layer", "channels", "map", "kind")]
    for name, (channels, *size) in layer_shapes(network).items():
        mark, runs = "*" if name in aligned else "", network.trace.layers[name].runs
        kind = type(modules[name]).__name__ + (f", the first of {runs} runs" if runs > 1 else "")
        rows.append((mark, name, str(channels), "x".join(map(str, size)), kind))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, "", "* aligned by default; model.layers=[...] chooses others", *_unclear(network)])


def _unclear(network: VisionNetwork) -> list[str]:
    """One line on the layers that run and cannot be read; nothing where there are none."""
    unclear = network.trace.unclear
    if not unclear:
        return []
    name, reason = next(iter(unclear.items()))
    others = f" ({len(unclear) - 1} more)" if len(unclear) > 1 else ""
    return [f"cannot be read: {name}, {reason}{others}"]
