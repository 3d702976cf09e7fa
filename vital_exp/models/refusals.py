"""Why a network refuses pictures (by channels, precision or size), or has no gradient in them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from math import isqrt

import torch
from torch import Tensor, nn

from vital_exp.errors import UsageError
from vital_exp.models.network import VisionNetwork
from vital_exp.models.precision import HALVES, precisions_of

# Errors by which a forward pass refuses its input.
REFUSALS = (RuntimeError, AssertionError, ValueError, IndexError, TypeError, KeyError, AttributeError)
# Patterns of torch's messages: it has no kernel for a precision; an operation got two precisions.
NO_KERNEL = r"not implemented for|not supported|n't support|[Uu]nsupported"
TYPES_DIFFER = r"dtype|type \(|scalar type"


def refusal(network: VisionNetwork, size: Sequence[int], error: Exception, key: str = "model.size") -> UsageError:
    """Return the mistake that an error of a network on blank pictures points to.

    Args:
        network: the network.
        size: (height, width) of the pictures.
        error: the network's error.
        key: the configuration key of the size.
    """
    reason = str(error).strip().split("\n")[0]
    own = network.preprocessing.channels
    if found := other_channels(network):
        layer, count = found
        channels = f"{count} input channel{'s' if count > 1 else ''} ({layer})"
        return UsageError("model.channels", own, f"the network takes {channels}")
    if told := unsupported(network, error):
        return told
    precisions = precisions_of(network.module)
    if len(precisions) > 1 and re.search(TYPES_DIFFER, reason):
        several = ", ".join(map(_plain, precisions))
        wanted = f"its weights are of several precisions ({several}), and its forward pass does not cast: {reason}"
        return UsageError("model", network.name, wanted)
    if isinstance(error, (RuntimeError, AssertionError, ValueError, IndexError)):
        return UsageError(key, "x".join(map(str, size)), f"the network refuses this input size: {reason}")
    return UsageError("model", network.name, f"its forward pass raises {type(error).__name__}: {reason}")


def unsupported(network: VisionNetwork, error: Exception) -> UsageError | None:
    """Return the mistake if torch has no kernel for a network's half precision on its device, else None."""
    reason = str(error).strip().split("\n")[0]
    halves = [precision for precision in precisions_of(network.module) if precision in HALVES]
    if not halves or not re.search(NO_KERNEL, reason):
        return None
    wanted = f"torch cannot compute it in {_plain(halves[0])} on {network.device.type} ({reason}): hand over"
    return UsageError("model", network.name, f"{wanted} module.float()")


@torch.no_grad()
def takes_size(network: VisionNetwork, size: Sequence[int]) -> bool:
    """Whether a network takes pictures of (height, width); tried with a blank one."""
    if tuple(size) == tuple(network.preprocessing.size):
        return True
    try:
        network.returned(network.blank(size=size))
    except REFUSALS:
        return False
    return True


def hold_in_float32(network: VisionNetwork, key: str) -> None:
    """Cast the weights of a network in half precision to float32, so that small steps can change them.

    Args:
        network: changed in place; a network without half precision stays as it is.
        key: the configuration key that an error is blamed on.

    Raises:
        UsageError: its forward pass fails then, since it casts to half precision by itself.
    """
    halves = [precision for precision in precisions_of(network.module) if precision in HALVES]
    if not halves:
        return
    network.float()
    try:
        with torch.no_grad():
            network.returned(network.blank())
    except REFUSALS as error:
        wanted = f"weights are changed in float32, and the network casts to {_plain(halves[0])} by itself: {error}"
        raise UsageError(key, network.name, wanted) from None
    network.tell(
        f"{network.name}: its weights of {_plain(halves[0])} are held in float32, in which attacks change them"
    )


def _plain(precision: torch.dtype) -> str:
    return str(precision).removeprefix("torch.")


def other_channels(network: VisionNetwork) -> tuple[str, int] | None:
    """Return the first layer and its number of input channels, if it takes another number than the pictures have.

    None where the first layer fits the pictures, or where its number of channels is unclear.
    """
    own, shown = network.preprocessing.channels, network.blank().to(network.dtype)
    started: list[tuple[str, nn.Module, Tensor]] = []
    named = [(name, part) for name, part in network.module.named_modules() if _channels(part) or _width(part)]
    with ExitStack() as hooks, torch.no_grad(), suppress(Exception):
        for name, part in named:

            def note(module: nn.Module, given: tuple[object, ...], name: str = name) -> None:
                if given and isinstance(given[0], Tensor):
                    started.append((name, module, given[0]))

            hooks.callback(part.register_forward_pre_hook(note).remove)
        network.module(shown)
    if not started:  # refused before any layer ran
        found = next(((name, _channels(part)) for name, part in named if _channels(part)), None)
        return found if found and found[1] != own else None
    name, part, given = started[0]
    if channels := _channels(part):
        return (name, channels) if given.ndim >= 3 and given.shape[-3] == own != channels else None
    wanted = _channels_of_patches(_width(part), given.shape[-1], own)
    return (name, wanted) if wanted else None


def _channels(part: nn.Module) -> int:
    """Return how many channels a convolution or a norm over channels takes; 0 for other modules."""
    if isinstance(part, (nn.Conv2d, nn.ConvTranspose2d, nn.Conv3d)):
        return part.in_channels
    return part.num_features if isinstance(part, (nn.BatchNorm2d, nn.InstanceNorm2d)) else 0


def _width(part: nn.Module) -> int:
    return part.in_features if isinstance(part, nn.Linear) else 0


def _channels_of_patches(wanted: int, given: int, own: int) -> int:
    """Return the number of channels that a first linear layer expects of a pixel; 0 if unclear.

    A row of ``given`` values, pixels of ``own`` channels, meets a layer of ``wanted`` inputs. A wrong size of pictures
    or patches changes the number of pixels by a ratio of squares, which tells it from a wrong number of channels: from
    RGB, the ratios 1/3, 2/3 and 4/3 are no ratios of squares.
    """
    if given % own or not wanted or wanted % (given // own):
        return 0
    channels = wanted // (given // own)
    return 0 if channels % own == 0 and isqrt(channels // own) ** 2 * own == channels else channels


def check_gradients(activations: Mapping[str, Tensor]) -> None:
    """Make sure that activations depend on the pictures in a way that torch can differentiate.

    Raises:
        UsageError: names the first layer whose values do not.
    """
    for layer, values in activations.items():
        if not values.requires_grad:
            problem = "no gradient leads from its values to the pictures: the network computes it under torch.no_grad, "
            raise UsageError("model.layers", layer, f"{problem}detaches it, or uses operations without one")
