"""Values before a bounded activation function, such as a ReLU6, clips them: they rank images whose values are equal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn

from vital_exp.models.axes import tensors_in
from vital_exp.models.network import VisionNetwork
from vital_exp.models.precision import exact

# All are monotone: where the input is largest, the output is largest too.
BOUNDED = (nn.ReLU6, nn.Hardtanh, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh)


@contextmanager
def before_bounds(network: VisionNetwork, layers: Sequence[str], count: int) -> Iterator[dict[str, Tensor]]:
    """Record the inputs of bounded activation functions during one forward pass inside the block.

    Args:
        network: the frozen network.
        layers: the layers to watch.
        count: the number of pictures in the pass.

    Yields:
        A dict that the pass fills: by layer the input (N, C, P) of its last activation function. Layers are left out
        whose last submodule is not bounded, or that do not return its output unchanged.
    """
    inputs: dict[str, Tensor] = {}
    modules = dict(network.module.named_modules())
    with ExitStack() as hooks:
        for layer in layers:
            last = list(modules[layer].modules())[-1] if layer in modules else None
            if isinstance(last, BOUNDED) and layer in network.trace.layers:
                hooks.enter_context(_watched(network, layer, modules[layer], last, count, inputs))
        yield inputs


@contextmanager
def _watched(
    network: VisionNetwork, layer: str, module: nn.Module, last: nn.Module, count: int, inputs: dict[str, Tensor]
) -> Iterator[None]:
    """Put the input of a layer's last activation function into ``inputs``, if the layer returns that function's output.

    The same memory of both outputs tells that nothing comes after the function.
    """
    layout = network.trace.layers[layer].layout
    seen: dict[str, Tensor] = {}

    def before(_last: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        seen["input"] = arguments[0].clone()  # an in-place function overwrites it

    def after(_last: nn.Module, _arguments: object, output: Tensor) -> None:
        seen["output"] = output

    def end(_module: nn.Module, _arguments: object, output: object) -> None:
        layers_output, last_output = next(tensors_in(output), None), seen.get("output")
        if layers_output is None or last_output is None or layer in inputs:
            return
        if layers_output.data_ptr() == last_output.data_ptr():
            inputs[layer] = exact(layout.channels_first(seen["input"], count)).flatten(2)

    with ExitStack() as hooks:
        hooks.callback(last.register_forward_pre_hook(before).remove)
        hooks.callback(last.register_forward_hook(after).remove)
        hooks.callback(module.register_forward_hook(end).remove)
        yield
