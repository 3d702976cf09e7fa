"""Convolution weights in the memory order of the CPU library oneDNN, packed once instead of at every pass."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from vital_exp.models.folding import FoldedConvolution, precision_of
from vital_exp.models.network import VisionNetwork

logger = logging.getLogger(__name__)

# Largest relative difference in the trial of torch's operators: packed or not, only the order of sums differs.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
TRIAL_CHANNELS = 16
# torch's operators can apply an activation function to their result: its name, scalars and algorithm.
NOTHING_AFTER: tuple[str, list[float], str] = ("none", [], "")


class PackedConvolutions:
    """Convolutions of a frozen network whose weights are packed into oneDNN's blocks once.

    torch hands oneDNN plain weights, and oneDNN reorders them into the blocks of its kernels at every forward and every
    backward pass: for one picture that takes a third of the time of the convolutions themselves (docs/performance.md).
    Inductor packs weights with the same operators, for inference; here the gradient in the pictures, a transposed
    convolution, has packed weights too. Only maps that are (N, H, W, C) in memory, on a CPU and in a precision of
    :data:`TOLERANCE`, are convolved so; all others as usual.

    Args:
        network: on its device; packing costs a copy of its weights for the forward and one for the backward pass.
    """

    def __init__(self, network: VisionNetwork) -> None:
        on_cpu = network.device.type == "cpu"
        self._packed = [_Packed(one) for one in network.module.modules() if _is_packable(one)] if on_cpu else []

    def __len__(self) -> int:
        """Return the number of convolutions that can be packed."""
        return len(self._packed)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Convolve with packed weights inside; weights that have changed since the last time are packed anew."""
        with ExitStack() as packed:
            for one in self._packed:
                packed.enter_context(one.active())
            yield


def _is_packable(module: nn.Module) -> bool:
    if not isinstance(module, nn.Conv2d) or "forward" in vars(module):
        return False
    own = type(module).forward, type(module)._conv_forward
    plain = own == (nn.Conv2d.forward, nn.Conv2d._conv_forward) and module._parameters.get("weight") is not None
    return plain and module.padding_mode == "zeros" and not isinstance(module.padding, str)


class _Weights:
    """A convolution's packed weights in one precision: for the forward and the backward pass, each at its first use.

    Args:
        convolution: the module.
        folded: the convolution with the norm that is folded into it; None: no norm is.
        precision: of the packed weights. To save memory, no plain copy in this precision is kept beside them.
    """

    def __init__(self, convolution: nn.Conv2d, folded: FoldedConvolution | None, precision: torch.dtype) -> None:
        self.convolution, self.folded, self.precision = convolution, folded, precision
        self._parameters = [convolution._parameters[name] for name in ("weight", "bias")]
        self._versions = self._changes()
        self._bias: Tensor | None = None
        self._forward: Tensor | None = None
        self._backward: Tensor | None = None

    def hold(self, folded: FoldedConvolution | None, precision: torch.dtype) -> bool:
        """Whether the weights still are the convolution's, with the same norm folded in, in this precision."""
        now = self.convolution._parameters
        same = now["weight"] is self._parameters[0] and now["bias"] is self._parameters[1]
        return same and self._versions == self._changes() and self.folded is folded and self.precision == precision

    def _changes(self) -> list[int]:
        """Return how often each parameter was changed in place."""
        return [own._version for own in self._parameters if own is not None]

    def _plain(self) -> tuple[Tensor, Tensor | None]:
        """Return weight and bias unpacked, in the module's order, with the norm folded in if there is one."""
        if self.folded:
            return self.folded.weights(self.precision)
        weight, bias = (None if own is None else own.detach().to(self.precision) for own in self._parameters)
        assert weight is not None
        return weight, bias

    def convolve(self, maps: Tensor) -> Tensor:
        """Return the convolution of maps (N, C, H, W)."""
        padding, stride, dilation, groups = self._geometry
        if self._forward is None:
            weight, self._bias = self._plain()
            geometry = padding, stride, dilation, groups, list(maps.shape)
            self._forward = torch.ops.mkldnn._reorder_convolution_weight(weight, *geometry)
        convolved: Tensor = torch.ops.mkldnn._convolution_pointwise(
            maps, self._forward, self._bias, padding, stride, dilation, groups, *NOTHING_AFTER
        )
        return convolved

    def transpose(self, gradient: Tensor, size: Sequence[int]) -> Tensor:
        """Return the gradient in maps of a size (H, W), given the gradient in their convolution."""
        padding, stride, dilation, groups = self._geometry
        # Rows and columns that are left over behind the last window.
        rest = [
            length - ((many - 1) * step - 2 * around + apart * (kernel - 1) + 1)
            for length, many, kernel, around, step, apart in zip(
                size, gradient.shape[2:], self.convolution.kernel_size, padding, stride, dilation, strict=True
            )
        ]
        geometry = padding, rest, stride, dilation, groups
        if self._backward is None:
            weight, _ = self._plain()
            shape = list(gradient.shape)
            self._backward = torch.ops.mkldnn._reorder_convolution_transpose_weight(weight, *geometry, shape)
        arrived: Tensor = torch.ops.mkldnn._convolution_transpose_pointwise(
            gradient, self._backward, None, *geometry, *NOTHING_AFTER
        )
        return arrived

    @property
    def _geometry(self) -> tuple[list[int], list[int], list[int], int]:
        """Padding, stride, dilation and groups."""
        own = self.convolution
        return [int(side) for side in own.padding], list(own.stride), list(own.dilation), own.groups


class _Packed:
    """The forward pass of a convolution with packed weights."""

    def __init__(self, convolution: nn.Module) -> None:
        assert isinstance(convolution, nn.Conv2d)
        self.convolution = convolution
        self.folded: FoldedConvolution | None = None
        self.weights: _Weights | None = None

    @contextmanager
    def active(self) -> Iterator[None]:
        """Convolve with packed weights inside; a norm that is folded at that time is packed with them."""
        before = vars(self.convolution).get("forward")
        self.folded = before if isinstance(before, FoldedConvolution) else None
        self.convolution.forward = self  # type: ignore[method-assign,assignment]
        try:
            yield
        finally:
            del self.convolution.forward
            if before:
                self.convolution.forward = before  # type: ignore[method-assign]

    def __call__(self, maps: Tensor) -> Tensor:
        """Return what the module returns for maps (N, C, H, W)."""
        precision = precision_of(maps)
        in_order = maps.ndim == 4 and maps.is_contiguous(memory_format=torch.channels_last)
        if not in_order or not _works(precision):
            return self.folded(maps) if self.folded else nn.Conv2d.forward(self.convolution, maps)
        if self.weights is None or not self.weights.hold(self.folded, precision):
            self.weights = _Weights(self.convolution, self.folded, precision)
        convolved: Tensor = _Convolution.apply(maps.to(precision), self.weights)
        return convolved


class _Convolution(torch.autograd.Function):
    """A convolution by packed weights, with a gradient for the maps only."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, weights: _Weights) -> Tensor:
        ctx.weights, ctx.size = weights, maps.shape[2:]
        return weights.convolve(maps)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.weights.transpose(gradient.contiguous(memory_format=torch.channels_last), ctx.size), None


@cache
def _works(precision: torch.dtype) -> bool:
    """Whether torch's operators work on this machine in a precision: they are inductor's, and undocumented."""
    if precision not in TOLERANCE:
        return False
    with torch.autocast("cpu", enabled=False), torch.enable_grad():
        try:
            error = _trial(precision)
        except (AttributeError, RuntimeError) as reason:
            logger.info("the weights of convolutions are not packed in %s: %s", precision, str(reason).split("\n")[0])
            return False
    if not error <= TOLERANCE[precision]:
        logger.info("the weights of convolutions are not packed in %s: values differ by %.0e", precision, error)
    return error <= TOLERANCE[precision]


def _trial(precision: torch.dtype) -> float:
    """Return the largest relative difference to nn.Conv2d, for a small convolution and its gradient."""
    generator = torch.Generator().manual_seed(0)
    convolution = skip_init(nn.Conv2d, TRIAL_CHANNELS, TRIAL_CHANNELS, 3, stride=2, padding=1, dtype=precision)
    for parameter in convolution.requires_grad_(False).parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
    maps = torch.randn(1, TRIAL_CHANNELS, 8, 8, generator=generator).to(precision)
    maps = maps.to(memory_format=torch.channels_last).requires_grad_()
    documented, packed = convolution(maps), _Convolution.apply(maps, _Weights(convolution, None, precision))
    gradients = [torch.autograd.grad(one.float().square().sum(), maps)[0] for one in (documented, packed)]
    pairs = [(documented, packed), tuple(gradients)]
    return max(float(((ours - own).abs().max() / own.abs().max()).detach()) for own, ours in pairs)
