"""How far units would go that a bounded activation, a ReLU6 say, cuts off: what the activation is given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn

from vital_exp.models.axes import tensors_in
from vital_exp.models.network import VisionNetwork
from vital_exp.models.precision import exact

# They never decrease: where their input is largest, their output is too.
BOUNDED = (nn.ReLU6, nn.Hardtanh, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh)


@contextmanager
def before_bounds(network: VisionNetwork, layers: Sequence[str], count: int) -> Iterator[dict[str, Tensor]]:
    """Watch a forward pass of some pictures made inside.

    Args:
        network: the frozen network.
        layers: to watch.
        count: pictures of the pass.

    Yields:
        A dict that the pass fills: by layer what its last activation was given, (N, C, P); only of layers whose last
        part is a bounded activation, and that return what it returns.
    """
    found: dict[str, Tensor] = {}
    modules = dict(network.module.named_modules())
    with ExitStack() as hooks:
        for layer in layers:
            last = list(modules[layer].modules())[-1] if layer in modules else None
            if isinstance(last, BOUNDED) and layer in network.trace.layers:
                hooks.enter_context(_watched(network, layer, modules[layer], last, count, found))
        yield found


@contextmanager
def _watched(
    network: VisionNetwork, layer: str, module: nn.Module, last: nn.Module, count: int, found: dict[str, Tensor]
) -> Iterator[None]:
    """Note in ``found`` what a layer's last activation is given, if the layer returns what the activation does."""
    layout = network.trace.layers[layer].layout
    seen: dict[str, Tensor] = {}

    def before(_last: nn.Module, given: tuple[Tensor, ...]) -> None:
        seen["given"] = given[0].clone()  # the activation may write into it

    def after(_last: nn.Module, _given: object, returned: Tensor) -> None:
        seen["returned"] = returned

    def end(_module: nn.Module, _given: object, output: object) -> None:
        own, returned = next(tensors_in(output), None), seen.get("returned")
        same = own is not None and returned is not None and own.data_ptr() == returned.data_ptr()
        if same and layer not in found:
            found[layer] = exact(layout.channels_first(seen["given"], count)).flatten(2)

    with ExitStack() as hooks:
        hooks.callback(last.register_forward_pre_hook(before).remove)
        hooks.callback(last.register_forward_hook(after).remove)
        hooks.callback(module.register_forward_hook(end).remove)
        yield
