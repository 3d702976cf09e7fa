"""Read activations of named layers during one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from vital_exp.errors import UsageError
from vital_exp.models.axes import tensors_in
from vital_exp.models.layout import Layout
from vital_exp.models.outputs import Output
from vital_exp.models.tracing import Trace, trace
from vital_exp.targets.unit import INPUT, OUTPUT


class _AllTapped(Exception):
    """Ends the forward pass once the last tapped layer has run."""


class Taps:
    """Reads the outputs of layers by module name; hooks exist only while a forward pass runs.

    A layer that runs several times in a forward pass is read the first time. Where a picture's activations would depend
    on the other pictures of a batch, pictures pass the network one by one.

    Args:
        module: any network.
        layers: names of its modules, as in ``module.named_modules()``; ``"input"`` is the pictures themselves,
            ``"output"`` the network's output.
        key: the configuration key to blame for a wrong name.
        output: which of the tensors that the network returns is ``"output"``; None: the logits, else the first.
        traced: the network's trace; None: it is traced at the first pictures.

    Raises:
        UsageError: a name is not a module of the network; the nearest names are suggested.
    """

    def __init__(
        self,
        module: nn.Module,
        layers: Sequence[str],
        key: str = "model.layers",
        output: Output | None = None,
        traced: Trace | None = None,
    ) -> None:
        self.module, self.output = module, output or Output()
        modules = dict(self.module.named_modules())
        for layer in layers:
            if layer not in (INPUT, OUTPUT) and (layer not in modules or not layer):
                known = [name for name in modules if name]
                raise UsageError(key, layer, "no such layer in the network; list=layers prints them", known)
        self.key = key
        self.reads_input, self.reads_output = INPUT in layers, OUTPUT in layers
        self.layers = {layer: modules[layer] for layer in layers if layer not in (INPUT, OUTPUT)}
        self._trace = traced

    def trace(self, pictures: Tensor | None = None) -> Trace:
        """Return the network's trace; without one the module is traced on noise of the shape of ``pictures``."""
        if self._trace is None:
            assert pictures is not None
            noise = torch.randn(3, *pictures.shape[1:], generator=torch.Generator().manual_seed(0))
            self._trace = trace(self.module, noise.to(pictures.device, pictures.dtype), self.output)
        return self._trace

    def layout(self, name: str, pictures: Tensor | None = None) -> Layout:
        """Return the axes of a layer's output.

        Raises:
            UsageError: the layer does not run, or its axes are unknown.
        """
        found = self.trace(pictures)
        if name in found.layers:
            return found.layers[name].layout
        if name == OUTPUT and name not in found.unclear:
            problem = f"no tensor with a row for each picture: the network returns {self.output.returns}"
            raise UsageError(self.key, name, problem)
        raise UsageError(self.key, name, found.unclear.get(name, "the network never runs this layer in a forward pass"))

    def channels_first(self, name: str, activation: Tensor, pictures: Tensor) -> Tensor:
        """Return a layer's output for ``pictures`` as (N, C, H, W), (N, C, T) or (N, C, 1)."""
        return self.layout(name, pictures).channels_first(activation, len(pictures))

    def __call__(self, pictures: Tensor, *, to_the_end: bool = False) -> tuple[dict[str, Tensor], Tensor | None]:
        """Run the network on normalised pictures (N, C, H, W).

        Returns the activations, channels first: (N, C, H, W), (N, C, T) for tokens or (N, C, 1) for vectors, and what
        the network returns. The latter is None, and the pass ends at the last tapped layer, unless ``to_the_end`` or
        ``"output"`` is read.
        """
        runs = self.layers or self.reads_output or to_the_end
        if runs and self.trace(pictures).one_by_one and len(pictures) > 1:
            return _joined([self._pass(picture[None], to_the_end) for picture in pictures])
        return self._pass(pictures, to_the_end)

    def _pass(self, pictures: Tensor, to_the_end: bool) -> tuple[dict[str, Tensor], Tensor | None]:
        activations: dict[str, Tensor] = {}
        to_the_end = to_the_end or self.reads_output
        with ExitStack() as hooks:
            for name, layer in self.layers.items():
                handle = layer.register_forward_hook(self._hook(name, activations, pictures, to_the_end))
                hooks.callback(handle.remove)
            try:
                # A clone: a forward pass may change its input in place.
                output = self.module(pictures.clone()) if self.layers or to_the_end else None
            except _AllTapped:
                output = None
        for name in self.layers:
            if name not in activations:
                self.layout(name, pictures)  # raises with the reason
                raise UsageError(self.key, name, "the network did not run this layer in this forward pass")
        if self.reads_input:
            activations = {INPUT: pictures, **activations}
        if self.reads_output:
            entry = self.output.tensor(output, len(pictures))
            activations[OUTPUT] = self.channels_first(OUTPUT, entry, pictures)
        return activations, output

    def _hook(
        self, name: str, activations: dict[str, Tensor], pictures: Tensor, to_the_end: bool
    ) -> Callable[[nn.Module, object, object], None]:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            if name in activations:
                return
            # A clone: the next ReLU may be in place (the minimum of a ResNet's bn1 would be 0.0 instead of -1.9).
            activations[name] = self.channels_first(name, first_tensor(output, name), pictures).clone()
            if not to_the_end and len(activations) == len(self.layers):
                raise _AllTapped

        return hook


def _joined(passes: Sequence[tuple[dict[str, Tensor], Tensor | None]]) -> tuple[dict[str, Tensor], Tensor | None]:
    """Join the passes of single pictures as one pass of all."""
    activations = {name: torch.cat([one[name] for one, _ in passes]) for name in passes[0][0]}
    outputs = [output for _, output in passes if isinstance(output, Tensor)]
    return activations, torch.cat(outputs) if outputs else passes[0][1]


def first_tensor(output: object, name: str) -> Tensor:
    """Return the first tensor of a layer's output.

    Raises:
        UsageError: the output holds no tensor.
    """
    found = next(tensors_in(output), None)
    if found is None:
        raise UsageError("model.layers", name, f"the layer returns {type(output).__name__}, not a tensor")
    return found
