"""Read activations of named layers during one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from vital_exp.errors import UsageError
from vital_exp.models.outputs import Output

# The name under which the pictures themselves, as the network takes them, are read like a layer.
INPUT = "input"
# The name under which the network's output is read like a layer.
OUTPUT = "output"


class _AllTapped(Exception):
    """Ends the forward pass once the last tapped layer has run."""


class Taps:
    """Reads the outputs of layers by module name; hooks exist only while a forward pass runs.

    Args:
        module: any network.
        layers: names of its modules, as in ``module.named_modules()``; ``"input"`` is the pictures themselves,
            ``"output"`` what the network returns.
        key: the configuration key to blame for a wrong name.
        output: which tensor of what the network returns ``"output"`` is; None: the logits, else the first.

    Raises:
        UsageError: a name is not a module of the network; the nearest names are suggested.
    """

    def __init__(
        self, module: nn.Module, layers: Sequence[str], key: str = "model.layers", output: Output | None = None
    ) -> None:
        modules = dict(module.named_modules())
        for layer in layers:
            if layer not in (INPUT, OUTPUT) and (layer not in modules or not layer):
                known = [name for name in modules if name]
                raise UsageError(key, layer, "no such layer in the network; list=layers prints them", known)
        self.module, self.output = module, output or Output()
        self.reads_input, self.reads_output = INPUT in layers, OUTPUT in layers
        self.layers = {layer: modules[layer] for layer in layers if layer not in (INPUT, OUTPUT)}

    def channels_last(self, name: str) -> bool:
        """Whether the layer's 4-D output is (N, H, W, C)."""
        return name in self.layers and _channels_last(self.module, self.layers[name])

    def channels_first(self, name: str, activation: Tensor) -> Tensor:
        """Return a layer's output as (N, C, H, W), (N, C, T) or (N, C, 1)."""
        return channels_first(activation, self.channels_last(name))

    def __call__(self, pictures: Tensor, *, to_the_end: bool = False) -> tuple[dict[str, Tensor], Tensor | None]:
        """Run the network on normalised pictures (N, 3, H, W).

        Returns the activations, channels first: (N, C, H, W), (N, C, T) for tokens or (N, C, 1) for vectors, and what
        the network returns, which is None unless ``to_the_end`` or ``"output"`` is read: otherwise the pass ends at the
        last tapped layer.
        """
        activations: dict[str, Tensor] = {}
        to_the_end = to_the_end or self.reads_output
        with ExitStack() as hooks:
            for name, layer in self.layers.items():
                handle = layer.register_forward_hook(self._hook(name, activations, to_the_end))
                hooks.callback(handle.remove)
            try:
                output = self.module(pictures) if self.layers or to_the_end else None
            except _AllTapped:
                output = None
        missing = [name for name in self.layers if name not in activations]
        if missing:
            raise UsageError("model.layers", missing[0], "the network never runs this layer in a forward pass")
        if self.reads_input:
            activations = {INPUT: pictures, **activations}
        if self.reads_output:
            activations[OUTPUT] = channels_first(self.output.tensor(output, len(pictures)))
        return activations, output

    def _hook(self, name: str, activations: dict[str, Tensor], to_the_end: bool):  # type: ignore[no-untyped-def]
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            if name in activations:
                return  # a layer that runs twice is read the first time
            # Cloned, because the next ReLU may be in place (a ResNet's bn1 would read min 0.0 instead of -1.9).
            activations[name] = self.channels_first(name, first_tensor(output, name)).clone()
            if not to_the_end and len(activations) == len(self.layers):
                raise _AllTapped

        return hook


def channels_first(activation: Tensor, channels_last: bool = False) -> Tensor:
    """Return (N, C, H, W) as it is, (N, H, W, C) permuted if ``channels_last``, tokens (N, T, D) as (N, D, T)."""
    if activation.ndim == 4:
        return activation.permute(0, 3, 1, 2) if channels_last else activation
    if activation.ndim == 3:
        return activation.transpose(1, 2)  # (N, T, D) -> (N, D, T)
    return activation.reshape(activation.shape[0], -1, 1)  # (N, D) -> (N, D, 1)


def first_tensor(output: object, name: str) -> Tensor:
    """Return a layer's output, the first of several.

    Raises:
        UsageError: it is no tensor.
    """
    found = _within(output)
    if not isinstance(found, Tensor):
        raise UsageError("model.layers", name, f"the layer returns {type(found).__name__}, not a tensor")
    return found


def _within(output: object) -> object:
    """A layer's output, the first of several."""
    while isinstance(output, (tuple, list)) and output:
        output = output[0]
    return output


def _channels_last(module: nn.Module, layer: nn.Module) -> bool:
    """Whether a layer's 4-D output is (N, H, W, C): timm says so of a network; torchvision's Swin is known."""
    if isinstance(layer, (nn.Conv2d, nn.BatchNorm2d)):
        return False  # they know no other order, whatever the network does around them
    if isinstance(layer, nn.Linear) or isinstance(getattr(layer, "fc2", None), nn.Linear):
        return True  # likewise; the second are timm's Mlp, inside the blocks of a ConvNeXt
    if isinstance(layer, nn.LayerNorm):
        return not type(layer).__name__.endswith("2d")  # timm's LayerNorm2d takes (N, C, H, W)
    timm_format = getattr(module, "output_fmt", None)
    if timm_format is not None:
        return str(getattr(timm_format, "value", timm_format)).upper() == "NHWC"
    return type(module).__name__ == "SwinTransformer"


@torch.no_grad()
def probe(module: nn.Module, layers: Sequence[str], pictures: Tensor) -> dict[str, tuple[int, ...]]:
    """Return the shape (C, ...) of each layer's activation for normalised ``pictures``; layers never run are absent."""
    shapes: dict[str, tuple[int, ...]] = {}
    modules = dict(module.named_modules())
    with ExitStack() as hooks:
        for name in layers:

            def note(_module: nn.Module, _inputs: object, output: object, name: str = name) -> None:
                output = _within(output)
                if isinstance(output, Tensor) and output.ndim >= 2:
                    shapes[name] = tuple(channels_first(output, _channels_last(module, _module)).shape[1:])

            hooks.callback(modules[name].register_forward_hook(note).remove)
        module(pictures)
    return shapes
