"""The precision in which a network computes, the cast of float32 pictures to it, and the scaling of gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

HALVES = (torch.float16, torch.bfloat16)
# Factors for losses before a backward pass through float16, whose smallest number is 6e-8: the first one is taken at
# which no gradient overflows.
SCALES = (2.0**14, 2.0**7, 1.0)
COMPUTED = (
    *HALVES,
    torch.float32,
    torch.float64,
)  # in integers, complex numbers and 8-bit floats weights are stored only


class EntranceCast:
    """A hook before a network's forward pass that casts its pictures to the network's precision."""

    def __init__(self, precision: torch.dtype) -> None:
        self.precision = precision

    def __call__(self, _module: nn.Module, given: tuple[object, ...]) -> tuple[object, ...]:
        """Return the arguments of the forward pass."""
        return tuple(one.to(self.precision) if _is_floating(one) else one for one in given)


def _is_floating(value: object) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.is_floating_point()


def precisions_of(module: nn.Module) -> tuple[torch.dtype, ...]:
    """Return the precisions of :data:`COMPUTED` among a module's parameters, each once; else among its buffers."""
    own = dict.fromkeys(parameter.dtype for parameter in module.parameters() if parameter.dtype in COMPUTED)
    return tuple(own or dict.fromkeys(buffer.dtype for buffer in module.buffers() if buffer.dtype in COMPUTED))


def entrance_of(module: nn.Module, shape: Sequence[int]) -> torch.dtype:
    """Return the precision in which a network takes its pictures.

    It is the precision of the weights. Where they have several, float32 is tried first, then each of them: the first is
    taken in which the network accepts a blank picture.

    Args:
        module: the network.
        shape: (channels, height, width) of its input.
    """
    own = precisions_of(module)
    if len(own) <= 1:
        return own[0] if own else torch.float32
    candidates = dict.fromkeys((torch.float32, *own))
    return next((precision for precision in candidates if _runs(module, shape, precision)), torch.float32)


@torch.no_grad()
def _runs(module: nn.Module, shape: Sequence[int], precision: torch.dtype) -> bool:
    """Whether a network accepts a blank picture in a precision."""
    set_entrance(module, torch.float32)  # no cast
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    try:
        module(torch.zeros(1, *shape, dtype=precision, device=device))
    except Exception:  # any exception: the network is the user's code
        return False
    return True


def set_entrance(module: nn.Module, precision: torch.dtype) -> None:
    """Let a module cast its pictures to half precision; for another precision, remove the cast."""
    hooks = module._forward_pre_hooks
    for key in [key for key, hook in hooks.items() if isinstance(hook, EntranceCast)]:
        del hooks[key]
    if precision in HALVES:
        module.register_forward_pre_hook(EntranceCast(precision), prepend=True)


def exact(activation: Tensor) -> Tensor:
    """Return an activation in half precision as float32, others as they are.

    Under autocast activations stay as they are: there the trainer's precision decides.
    """
    if activation.dtype not in HALVES or torch.is_autocast_enabled(activation.device.type):
        return activation
    return activation.float()


def scales_of(module: nn.Module) -> tuple[float, ...]:
    """Return the factors for losses that are tried in turn until gradients through a network are finite."""
    return SCALES if torch.float16 in precisions_of(module) else (1.0,)


def scaled_gradient(losses: Tensor, pictures: Tensor, scales: Sequence[float], *, keep_graph: bool = False) -> Tensor:
    """Return the gradient of the sum of losses in pictures (N, ...), each by the first scale that keeps it finite.

    A picture's gradient does not depend on the other pictures: each has its own loss and its own scale. The gradient is
    divided by the scale again.
    """
    found: Tensor | None = None
    for scale in scales:
        last = scale == scales[-1]
        (gradient,) = torch.autograd.grad(losses.sum() * scale, pictures, retain_graph=keep_graph or not last)
        gradient = gradient if scale == 1 else gradient / scale
        if found is not None:
            finite = found.isfinite().flatten(1).all(dim=1)  # (N,)
            gradient = torch.where(finite.view(-1, *[1] * (gradient.ndim - 1)), found, gradient)
        found = gradient
        if last or bool(found.isfinite().all()):
            break
    assert found is not None
    return found


@contextmanager
def in_float32(module: nn.Module) -> Iterator[None]:
    """Hold the weights of a network in float32 inside, if they are all in one half precision; values stay the same.

    Relevance divides at every layer: float16 overflows where a divisor is near zero.
    """
    own = precisions_of(module)
    if len(own) != 1 or own[0] not in HALVES:
        yield
        return
    places: list[tuple[dict[str, Any], str, Tensor]] = [
        (tensors, name, tensor)
        for part in module.modules()
        for tensors in (part._parameters, part._buffers)
        for name, tensor in tensors.items()
        if tensor is not None and tensor.dtype in HALVES
    ]
    casts = {id(tensor): tensor.detach().float() for _, _, tensor in places}  # tied weights once
    for tensors, name, tensor in places:
        tensors[name] = casts[id(tensor)]
    set_entrance(module, torch.float32)
    try:
        yield
    finally:
        for tensors, name, tensor in places:
            tensors[name] = tensor
        set_entrance(module, own[0])
