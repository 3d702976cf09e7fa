"""How far units would go that a bounded activation, a ReLU6 say, cuts off: what the activation is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from vital_exp.models.axes import tensors_in
from vital_exp.models.network import VisionNetwork
from vital_exp.models.precision import exact

# They never decrease: where their input is largest, their output is too.
BOUNDED = (nn.ReLU6, nn.Hardtanh, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh)

Hook = Callable[[nn.Module, Any, Any], None]


@contextmanager
def before_bounds(network: VisionNetwork, layers: Sequence[str], count: int) -> Iterator[dict[str, Tensor]]:
    """Watch a forward pass of some pictures made inside.

    Args:
        network: the frozen network.
        layers: to watch.
        count: pictures of the pass.

    Yields:
        A dict that the pass fills: by layer what its last activation was given, (N, C, P); only of layers that return
        what a bounded activation returns.
    """
    found: dict[str, Tensor] = {}
    modules = dict(network.module.named_modules())
    with ExitStack() as hooks:
        for layer in layers:
            bounded = (
                [part for part in modules[layer].modules() if isinstance(part, BOUNDED)] if layer in modules else []
            )
            if not bounded or layer not in network.trace.layers:
                continue
            ends: dict[nn.Module, tuple[Tensor, Tensor]] = {}  # what each was given and what it returned
            for part in bounded:
                hooks.callback(part.register_forward_pre_hook(_keep_given(ends)).remove)
                hooks.callback(part.register_forward_hook(_keep_returned(ends)).remove)
            hooks.callback(modules[layer].register_forward_hook(_keep_end(network, layer, ends, count, found)).remove)
        yield found


def _keep_given(ends: dict[nn.Module, tuple[Tensor, Tensor]]) -> Callable[[nn.Module, Any], None]:
    def hook(part: nn.Module, given: tuple[Any, ...]) -> None:
        ends[part] = given[0].clone(), given[0]  # the activation may write into it

    return hook


def _keep_returned(ends: dict[nn.Module, tuple[Tensor, Tensor]]) -> Hook:
    def hook(part: nn.Module, _given: Any, returned: Any) -> None:
        ends[part] = ends[part][0], returned

    return hook


def _keep_end(
    network: VisionNetwork,
    layer: str,
    ends: dict[nn.Module, tuple[Tensor, Tensor]],
    count: int,
    found: dict[str, Tensor],
) -> Hook:
    layout = network.trace.layers[layer].layout

    def hook(_module: nn.Module, _given: Any, output: Any) -> None:
        last = next(tensors_in(output), None)
        for given, returned in ends.values():
            same = last is not None and returned.data_ptr() == last.data_ptr() and returned.shape == last.shape
            if same and layer not in found:
                found[layer] = exact(layout.channels_first(given, count)).flatten(2)

    return hook
