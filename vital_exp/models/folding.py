"""Batch norms folded into the convolutions before them, while a forward pass of the optimisation runs."""

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
from vital_exp.models.precision import exact
from vital_exp.models.taps import Taps

logger = logging.getLogger(__name__)

# Largest difference allowed between activations of the folded network and of the network itself, as a share of the
# layer's largest activation: float32 rounding of a ResNet-152 stays below 1e-5; bfloat16 weights round at 4e-3.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}


@dataclass(frozen=True)
class FoldedConvolution:
    """The forward pass of a convolution that does the work of the batch norm behind it too.

    Attributes:
        convolution: the module whose forward pass is replaced.
        norm: the batch norm behind it.
        rest: what the norm's module computes behind the norm.
        sources: the convolution, and the modules that return its output as it is.
    """

    convolution: nn.Conv2d
    norm: nn.BatchNorm2d
    rest: Callable[[Tensor], Tensor]
    sources: frozenset[nn.Module]
    _casts: dict[torch.dtype, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def __call__(self, maps: Tensor) -> Tensor:
        """Return the norm of the convolution of maps (N, C, H, W)."""
        precision = precision_of(maps)
        if precision not in self._casts:  # once: autocast casts weights without gradients at each pass
            self._casts[precision] = self.weights(precision)
        result: Tensor = self.convolution._conv_forward(maps, *self._casts[precision])
        return result

    @torch.no_grad()
    def weights(self, precision: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return weight and bias of convolution and norm as one convolution, computed anew."""
        convolution, norm = self.convolution, self.norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        statistics = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        weight, bias = fuse_conv_bn_weights(convolution.weight, convolution.bias, *statistics)
        return weight.detach().to(precision), bias.detach().to(precision)

    @property
    def watched(self) -> bool:
        """Whether a hook reads the activation between convolution and norm."""
        return any(source._forward_hooks for source in self.sources) or bool(self.norm._forward_pre_hooks)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Let the convolution do the norm's work inside."""
        self.convolution.forward = self  # type: ignore[method-assign,assignment]
        self.norm.forward = self.rest  # type: ignore[method-assign,assignment]
        try:
            yield
        finally:
            del self.convolution.forward, self.norm.forward

    def forget(self) -> None:
        """Drop the folded weights; they are computed anew when they are needed again."""
        self._casts.clear()


def precision_of(maps: Tensor) -> torch.dtype:
    """Return the precision in which a convolution of maps computes: autocast's if there is one."""
    device = maps.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else maps.dtype


class FoldedNorms:
    """Batch norms of a frozen network, folded into convolutions where nothing reads the activation between the two.

    A norm with fixed statistics is a scale and a shift per channel, which the weights of the convolution before it can
    contain: the values are the same but for rounding, and a step of a ResNet-50 is about a tenth shorter
    (docs/performance.md). Outside :meth:`active` the network is as it was: relevance, batch-norm terms and evaluation
    see it with its norms.

    Args:
        network: on its device.
        taps: the layers that are read. On a picture of noise they must read the same with the norms folded, else no
            norm is folded and the log says so.
    """

    def __init__(self, network: VisionNetwork, taps: Taps) -> None:
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(1, network.preprocessing.channels, *network.preprocessing.size, generator=generator)
        noise = noise.to(network.device, network.dtype)
        read = set(taps.layers.values())
        runs = bool(read) or taps.reads_output
        self._folded = [one for one in _foldable(network.module, noise) if not read & one.sources] if runs else []
        error = self._error(taps, noise) if self._folded else 0.0
        if self._folded and not error <= TOLERANCE[network.precision]:  # also where the error is NaN
            logger.info("%s keeps its batch norms: folded, activations differ by %.0e", network.name, error)
            self._folded = []

    def __len__(self) -> int:
        """Return the number of norms that can be folded."""
        return len(self._folded)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Fold the norms inside, except norms whose input a hook reads."""
        with ExitStack() as folded:
            for one in self._folded:
                if not one.watched:
                    folded.enter_context(one.active())
            yield

    @torch.no_grad()
    def _error(self, taps: Taps, pictures: Tensor) -> float:
        """Return the largest difference that folding makes, as a share of the layer's largest activation."""
        own = {name: exact(values) for name, values in taps(pictures)[0].items()}
        with self.active():
            folded = {name: exact(values) for name, values in taps(pictures)[0].items()}
        for one in self._folded:
            one.forget()  # packed convolutions hold copies of their own
        tiny = torch.finfo(pictures.dtype).tiny  # a layer may be silent on noise
        return max(float((folded[n] - own[n]).abs().max() / own[n].abs().max().clamp_min(tiny)) for n in own)


@torch.no_grad()
def _foldable(module: nn.Module, pictures: Tensor) -> list[FoldedConvolution]:
    """Return the convolutions whose output goes straight into a batch norm, where both run once in a pass."""
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
    found = []
    for norm, given in inputs:
        sources = [source for source, output in outputs if output is given]
        if sources and _plain_convolution(sources[0]) and runs[norm] == runs[sources[0]] == 1:
            assert isinstance(sources[0], nn.Conv2d)
            assert isinstance(norm, nn.BatchNorm2d)
            found.append(FoldedConvolution(sources[0], norm, _rest(norm), frozenset(sources)))
    return found


def _plain_convolution(module: nn.Module) -> bool:
    return type(module).forward is nn.Conv2d.forward and module._parameters.get("weight") is not None


def _plain_norm(module: nn.Module) -> bool:
    known = type(module) in (nn.BatchNorm2d, BatchNormAct2d)
    return known and not module.training and isinstance(module.running_mean, Tensor)


def _rest(norm: nn.BatchNorm2d) -> Callable[[Tensor], Tensor]:
    """Return what a norm's module computes behind the norm: timm's has an activation function."""
    if isinstance(norm, BatchNormAct2d):
        return lambda x: norm.act(norm.drop(x))
    return lambda x: x
