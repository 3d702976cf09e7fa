"""Batch norms as part of the convolutions before them, while a forward pass of the optimisation runs."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from vital_exp.models.network import VisionNetwork
from vital_exp.models.taps import Taps

logger = logging.getLogger(__name__)

# Between activations of the folded network and of the network itself, in units of their largest: float32 rounding of a
# ResNet-152 stays below 1e-5; bfloat16 weights round at 4e-3.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}


@dataclass(frozen=True)
class _Pair:
    """A convolution, the batch norm behind it, and the weights of both in one."""

    convolution: nn.Conv2d
    norm: nn.BatchNorm2d
    weight: nn.Parameter
    bias: nn.Parameter
    rest: Callable[[Tensor], Tensor]  # what the norm's module does besides
    sources: frozenset[nn.Module]  # the convolution, and modules that it is the last part of
    casts: dict[torch.dtype, dict[str, nn.Parameter]] = field(default_factory=dict)

    @property
    def watched(self) -> bool:
        """Whether a hook reads what lies between the two."""
        return any(source._forward_hooks for source in self.sources) or bool(self.norm._forward_pre_hooks)

    @contextmanager
    def folded(self, precision: torch.dtype | None = None) -> Iterator[None]:
        """Let the convolution do the norm's work, with weights of autocast's precision if there is one."""
        kept = {name: self.convolution._parameters[name] for name in ("weight", "bias")}
        self.convolution._parameters.update(self._cast(precision or self.weight.dtype))
        self.norm.forward = self.rest  # type: ignore[method-assign,assignment]
        try:
            yield
        finally:
            del self.norm.forward
            self.convolution._parameters.update(kept)

    def _cast(self, precision: torch.dtype) -> dict[str, nn.Parameter]:
        """Return weight and bias in a precision, cast once: autocast casts weights without gradients at each pass."""
        if precision not in self.casts:
            own = {"weight": self.weight, "bias": self.bias}
            self.casts[precision] = {
                name: nn.Parameter(value.to(precision), requires_grad=False) for name, value in own.items()
            }
        return self.casts[precision]


class FoldedNorms:
    """Batch norms of a frozen network, folded into convolutions wherever nobody reads what lies between.

    A norm with fixed statistics is a scale and a shift per channel, which the convolution before it can do in the same
    product: the values are the same but for rounding, and a step of a ResNet-50 is about a tenth shorter
    (docs/performance.md). The network is as it was outside :meth:`active`, so relevance, batch-norm terms and
    evaluation see it whole.

    Args:
        network: on its device.
        taps: what is read; with the norms folded it must read the same on a picture of noise, else none is folded and
            the log says so.
    """

    def __init__(self, network: VisionNetwork, taps: Taps) -> None:
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(1, len(network.preprocessing.mean), *network.preprocessing.size, generator=generator)
        noise = noise.to(network.device, network.dtype)
        self.device = network.device
        read = set(taps.layers.values())
        runs = bool(read) or taps.reads_output
        self._pairs = [pair for pair in _pairs(network.module, noise) if not read & pair.sources] if runs else []
        if self._pairs and not (error := self._error(taps, noise)) <= TOLERANCE[network.dtype]:  # NaN is no agreement
            logger.info("%s keeps its batch norms: folded, activations differ by %.0e", network.name, error)
            self._pairs = []

    def __len__(self) -> int:
        """Return the number of norms that can be folded."""
        return len(self._pairs)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Fold the norms inside, but for those whose inputs a hook reads."""
        device = self.device.type
        precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        with ExitStack() as folded:
            for pair in self._pairs:
                if not pair.watched:
                    folded.enter_context(pair.folded(precision))
            yield

    @torch.no_grad()
    def _error(self, taps: Taps, pictures: Tensor) -> float:
        """Return the largest difference that folding makes, as a share of a layer's largest activation."""
        own, _ = taps(pictures)
        with self.active():
            folded, _ = taps(pictures)
        tiny = torch.finfo(pictures.dtype).tiny  # of a layer that is silent on noise
        return max(float((folded[n] - own[n]).abs().max() / own[n].abs().max().clamp_min(tiny)) for n in own)


@torch.no_grad()
def _pairs(module: nn.Module, pictures: Tensor) -> list[_Pair]:
    """Return the convolutions whose output goes straight into a batch norm; each of the two runs once."""
    if not any(map(_plain_norm, module.modules())):
        return []
    outputs: list[tuple[nn.Module, object]] = []
    inputs: list[tuple[nn.Module, object]] = []
    with ExitStack() as hooks:
        for one in module.modules():
            note = one.register_forward_hook(lambda source, _, output: outputs.append((source, output)))
            hooks.callback(note.remove)
            if _plain_norm(one):
                note = one.register_forward_pre_hook(lambda norm, given: inputs.append((norm, given[0])))
                hooks.callback(note.remove)
        module(pictures)
    runs = Counter(source for source, _ in outputs)
    pairs = []
    for norm, given in inputs:
        sources = [source for source, output in outputs if output is given]
        if sources and _plain_convolution(sources[0]) and runs[norm] == runs[sources[0]] == 1:
            pairs.append(_pair(sources[0], norm, frozenset(sources)))
    return pairs


def _plain_convolution(module: nn.Module) -> bool:
    return type(module).forward is nn.Conv2d.forward and module._parameters.get("weight") is not None


def _plain_norm(module: nn.Module) -> bool:
    known = type(module) in (nn.BatchNorm2d, BatchNormAct2d)
    return known and not module.training and isinstance(module.running_mean, Tensor)


def _pair(convolution: nn.Module, norm: nn.Module, sources: frozenset[nn.Module]) -> _Pair:
    assert isinstance(convolution, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    weight, bias = fuse_conv_bn_weights(
        convolution.weight,
        convolution.bias,
        norm.running_mean,
        norm.running_var,
        norm.eps,
        norm.weight,
        norm.bias,
    )
    weight, bias = nn.Parameter(weight.detach(), requires_grad=False), nn.Parameter(bias.detach(), requires_grad=False)
    return _Pair(convolution, norm, weight, bias, _rest(norm), sources)


def _rest(norm: nn.BatchNorm2d) -> Callable[[Tensor], Tensor]:
    """Return what a norm's module does behind the norm: timm's has the activation function in it."""
    if isinstance(norm, BatchNormAct2d):
        return lambda x: norm.act(norm.drop(x))
    return lambda x: x
