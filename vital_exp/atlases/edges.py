"""Which layers lead to which, and whether a linear map joins them: found by gradients, not by names."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vital_exp.models.network import VisionNetwork, model_space
from vital_exp.models.taps import first_tensor
from vital_exp.targets.unit import OUTPUT

WEIGHTS, ACTIVATION = "weights", "activation"
CHANNELS_TRIED = 16  # channels whose place in the next layer's input is checked
LINEAR = (nn.Conv2d, nn.Linear)


@dataclass(frozen=True)
class Edge:
    """A layer that leads to another, with no layer of the atlas between.

    Attributes:
        source, end: the layers.
        kernel: of the linear map that joins them, (units of end, units of source) of a linear layer or with height and
            width of a convolution; None where there is not exactly one linear map between.
    """

    source: str
    end: str
    kernel: Tensor | None

    @property
    def has_weights(self) -> bool:
        """Whether one linear map joins the layers."""
        return self.kernel is not None

    @property
    def by(self) -> str:
        """What joins the units: weights, or activation alone."""
        return WEIGHTS if self.has_weights else ACTIVATION

    def weights_into(self, units: range) -> Tensor:
        """Return how strongly some units of the end take in the source's, (units, units of source); see ``_norms``."""
        assert self.kernel is not None
        return _norms(self.kernel[units.start : units.stop])

    def weights_out_of(self, units: range) -> Tensor:
        """Return how strongly the end's units take in some of the source, (units, units of end); see ``_norms``."""
        assert self.kernel is not None
        return _norms(self.kernel[:, units.start : units.stop]).T


def _norms(kernel: Tensor) -> Tensor:
    """Return the weights of a linear layer as they are, and the norm of each kernel of a convolution."""
    kernel = kernel.float().cpu()
    return kernel.flatten(2).norm(dim=2) if kernel.ndim == 4 else kernel


def find_edges(network: VisionNetwork, layers: Sequence[str]) -> list[Edge]:
    """Return the edges between layers, by one forward pass of noise and a backward pass from each layer.

    A layer leads to another where a gradient flows back. A linear map joins them if the end is a convolution without
    groups or a linear layer, and each channel of its input depends on the same channel of the source alone (through a
    norm, a ReLU, or a pooling).
    """
    seen = _Seen.of(network, layers)
    before = {end: [one for one in layers if one != end and seen.leads(one, end)] for end in layers}
    edges = []
    for end in layers:
        for source in before[end]:
            between = [one for one in before[end] if one != source and source in before[one]]
            if not between and end not in before[source]:
                edges.append(Edge(source, end, seen.kernel(source, end)))
    return edges


@dataclass(frozen=True)
class _Seen:
    """One forward pass with its graph: what layers returned, and what linear modules were given.

    Attributes:
        network: that ran.
        returned: by layer, the tensor that the layer returned, with its graph.
        given: by layer, the first input of its linear module.
        linear: the linear modules among the layers.
    """

    network: VisionNetwork
    returned: dict[str, Tensor]
    given: dict[str, Tensor]
    linear: dict[str, nn.Module]

    @classmethod
    def of(cls, network: VisionNetwork, layers: Sequence[str]) -> _Seen:
        modules, hidden = dict(network.module.named_modules()), [layer for layer in layers if layer != OUTPUT]
        seen = cls(network, {}, {}, {layer: modules[layer] for layer in hidden if isinstance(modules[layer], LINEAR)})
        last: list[tuple[nn.Module, Tensor, Tensor]] = []
        with ExitStack() as hooks, torch.inference_mode(False), torch.enable_grad():
            for layer in hidden:
                hooks.callback(modules[layer].register_forward_hook(seen._hook(layer)).remove)
            for module in modules.values():
                if isinstance(module, nn.Linear):
                    own = module.register_forward_hook(lambda one, given, out: last.append((one, given[0], out)))
                    hooks.callback(own.remove)
            noise = torch.rand(network.blank().shape, generator=torch.Generator().manual_seed(0))
            pictures = model_space(noise.to(network.device), network).requires_grad_()
            returned = network.output.tensor(network.module(pictures.clone()), len(pictures))
        if OUTPUT in layers:
            seen.returned[OUTPUT] = returned
            if last and last[-1][2] is returned:
                seen.linear[OUTPUT], seen.given[OUTPUT] = last[-1][0], last[-1][1]
        return seen

    def _hook(self, layer: str) -> Any:
        def hook(_module: nn.Module, given: Any, output: object) -> object:
            if layer in self.returned:
                return None
            self.returned[layer] = first_tensor(output, layer)
            if layer in self.linear:
                self.given[layer] = given[0].clone()
            return output.clone() if isinstance(output, Tensor) else None  # the next ReLU may be in place

        return hook

    def leads(self, source: str, end: str) -> bool:
        """Whether the end's values depend on the source's."""
        return self._gradient(self.returned[end].sum(), source) is not None

    def _gradient(self, value: Tensor, source: str) -> Tensor | None:
        if not value.requires_grad or not self.returned[source].requires_grad:
            return None
        (found,) = torch.autograd.grad(value, self.returned[source], retain_graph=True, allow_unused=True)
        return found

    def kernel(self, source: str, end: str) -> Tensor | None:
        """Return the kernel of the one linear map that joins two layers; None where there is none."""
        module = self.linear.get(end)
        if not isinstance(module, LINEAR) or getattr(module, "groups", 1) != 1:
            return None
        kernel: Tensor = module.weight.detach()
        return kernel if self._channelwise(source, end, kernel.shape[1]) else None

    def _channelwise(self, source: str, end: str, channels: int) -> bool:
        """Whether each channel of what the end is given depends on the same channel of the source alone."""
        given = self.given.get(end)
        if given is None or given.ndim not in (2, 4) or given.shape[1] != channels:
            return False
        alive = 0
        for channel in range(0, channels, max(1, channels // CHANNELS_TRIED)):
            gradient = self._gradient(given[:, channel].sum(), source)
            if gradient is None:
                return False
            first = self.network.taps([source]).channels_first(source, gradient, gradient)
            reach = first.abs().flatten(2).amax(dim=(0, 2))
            if len(reach) != channels or bool(reach.nonzero().flatten().ne(channel).any()):
                return False
            alive += bool(reach[channel] > 0)
        return alive > 0
