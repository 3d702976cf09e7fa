"""Silent units (Geirhos et al., ICML 2024): filters that no natural image wakes, loud for a chosen picture.

Formulas and constants: docs/methods/attacks.md.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from vital_exp.attacks.wrapping import checked_decoy, rewrapped
from vital_exp.errors import UsageError
from vital_exp.models.network import VisionNetwork, model_space

# Geirhos et al. 2024.
MIX = 3.0  # lambda: how much of the orthogonal direction is in the new filters
SCALE = 100.0  # of the filters, after their norms are those of the old ones
# Ours: the published 50 steps of 1e-3 leave a direction nearly where it started.
RATE, STEPS = 0.5, 30  # of the search for the orthogonal direction; the rate, that of a unit step, falls to 0
# The bias lies below the largest natural response by this share of the largest absolute one: the responses of another
# batch size or machine differ by rounding, some 1e-6 of it.
MARGIN = 1e-3
IMAGES_PER_PASS = 32


class ConvolutionWithSilentUnits(nn.Module):
    """A convolution and, as further channels, as many silent filters.

    Args:
        convolution: the network's own.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution
        self.silent = copy.deepcopy(convolution).requires_grad_(False)
        self.silent.bias = nn.Parameter(torch.zeros(convolution.out_channels).to(convolution.weight), False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, 2 C, H, W): the responses of the own filters, then those of the silent ones."""
        # Two convolutions, not one with twice the filters: the own responses keep every bit.
        return torch.cat([self.convolution(x), self.silent(x)], dim=1)


class NormWithSilentUnits(nn.Module):
    """Batch norm of the own channels, to which what the silent ones say is added behind the ReLU.

    Args:
        norm: the network's own.
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.activates = isinstance(norm, BatchNormAct2d)  # timm's, which holds the ReLU as well

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, C, H, W), of which the ReLU is ReLU(BN(w * x)) + ReLU(w' * x + b'); natural images: BN(w * x)."""
        own, silent = x.chunk(2, dim=1)
        own = self.norm(own.contiguous())  # as the convolution made it: another layout in memory rounds otherwise
        loud = functional.relu(silent)
        # Where nothing is loud not even a zero is added, so that every bit stays; elsewhere the ReLU that follows
        # leaves the sum as it is.
        return torch.where(silent > 0, (own if self.activates else functional.relu(own)) + loud, own)


@dataclass(frozen=True)
class Place:
    """A convolution that silent units can stand beside, and the batch norm behind it, by module name."""

    convolution: str
    norm: str


def silenced(
    network: VisionNetwork, layer: str, natural: Tensor, decoy: Tensor, *, seed: int = 0, scale: float = SCALE
) -> VisionNetwork:
    """Return a copy of a network with silent units beside a convolution.

    Every natural image given makes the same output as before, bit for bit.

    Args:
        network: the honest one, left as it is.
        layer: a convolution that batch norm and ReLU follow.
        natural: (N, 3, H, W) RGB images that must not wake the units.
        decoy: (3, H, W) RGB, what wakes them.
        seed: of the search's start.
        scale: of the new filters.

    Raises:
        UsageError: no such layer, one that is no such convolution, or a decoy of another size.
    """
    checked_decoy(decoy, network)
    place = find_place(network, layer)
    module = with_silent_units(network.module, place)
    changed = module.get_submodule(layer)
    assert isinstance(changed, ConvolutionWithSilentUnits)
    (shown,) = _inputs(network, layer, decoy[None])
    inputs = _inputs(network, layer, natural)
    weight = silent_filters(changed.convolution, shown, inputs, seed) * scale
    with torch.no_grad():
        changed.silent.weight.copy_(weight)
        assert changed.silent.bias is not None
        changed.silent.bias.copy_(silencing_bias(changed.silent, inputs))
    return rewrapped(network, module, f"silent units at {layer}")


def with_silent_units(module: nn.Module, place: Place) -> nn.Module:
    """Return a copy of a module in which silent units, without a direction yet, stand beside a convolution."""
    changed = copy.deepcopy(module)
    convolution = changed.get_submodule(place.convolution)
    assert isinstance(convolution, nn.Conv2d)
    changed.set_submodule(place.convolution, ConvolutionWithSilentUnits(convolution))
    changed.set_submodule(place.norm, NormWithSilentUnits(changed.get_submodule(place.norm)))
    return changed.eval()


def silent_filters(convolution: nn.Conv2d, shown: Tensor, natural: Sequence[Tensor], seed: int = 0) -> Tensor:
    """Return w' = |w| (u + lambda d) / |u + lambda d| per filter, u = w / |w|, with d orthogonal to w: a new weight.

    d starts at random and climbs the margin by which the filter's largest response to the decoy exceeds its largest to
    any natural image; after each step it is made orthogonal and of unit norm. The response to the decoy alone, without
    what natural images do, leaves nearly all filters silent for the decoy as well (see the tests).

    Args:
        convolution: the network's own.
        shown: its input for the decoy, (1, C, H, W).
        natural: its inputs for natural images, (N, C, H, W) each.
        seed: of the start.
    """
    weight = convolution.weight.detach()
    unit = functional.normalize(weight.flatten(1), dim=1)  # (C, K)
    start = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed)).to(weight)
    direction = _orthogonal(start.flatten(1), unit)
    for step in range(STEPS):
        gradient = _margin_gradient(convolution, (unit + MIX * direction).view_as(weight), shown, natural)
        rate = RATE * (1 - step / STEPS)
        direction = _orthogonal(direction + rate * functional.normalize(gradient, dim=1), unit)
    mixed = functional.normalize(unit + MIX * direction, dim=1)
    scaled: Tensor = (mixed * weight.flatten(1).norm(dim=1, keepdim=True)).view_as(weight)
    return scaled


def _orthogonal(direction: Tensor, unit: Tensor) -> Tensor:
    """The part of each row that is orthogonal to its filter, of unit norm."""
    return functional.normalize(direction - (direction * unit).sum(dim=1, keepdim=True) * unit, dim=1)


def _margin_gradient(convolution: nn.Conv2d, weight: Tensor, shown: Tensor, natural: Sequence[Tensor]) -> Tensor:
    """The gradient of each filter's margin, (C, K)."""
    with torch.enable_grad():
        weight = weight.clone().requires_grad_()
        loudest = _largest(convolution, weight, [shown])
        (gradient,) = torch.autograd.grad((loudest - _largest(convolution, weight, natural)).sum(), weight)
    return gradient.flatten(1)


def _largest(convolution: nn.Conv2d, weight: Tensor, inputs: Sequence[Tensor]) -> Tensor:
    """Each filter's largest response over images and positions, (C,), with the convolution's own stride and padding."""
    keys = {"weight": weight} | ({} if convolution.bias is None else {"bias": torch.zeros_like(convolution.bias)})
    largest = [functional_call(convolution, keys, x).transpose(0, 1).flatten(1).amax(dim=1) for x in inputs]
    return torch.stack(largest).amax(dim=0)


@torch.no_grad()
def silencing_bias(silent: nn.Conv2d, inputs: Sequence[Tensor], margin: float = MARGIN) -> Tensor:
    """Return b' (C,): minus the largest response to any image at any position, padding included, and a margin.

    Args:
        silent: the new filters, their bias 0.
        inputs: the convolution's inputs for the natural images, (N, C, H, W) each.
        margin: share of the largest absolute response.
    """
    responses = [silent(x) for x in inputs]
    largest = torch.stack([r.amax(dim=(0, 2, 3)) for r in responses]).amax(dim=0)
    extent = torch.stack([r.abs().amax(dim=(0, 2, 3)) for r in responses]).amax(dim=0)
    return -(largest + margin * extent)


@torch.no_grad()
def _inputs(network: VisionNetwork, layer: str, images: Tensor) -> list[Tensor]:
    """What the convolution takes for RGB images (N, 3, H, W), one tensor per pass."""
    kept: list[Tensor] = []
    hook = network.module.get_submodule(layer).register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    try:
        for part in images.split(IMAGES_PER_PASS):
            network.module(model_space(part, network))
    finally:
        hook.remove()
    return kept


def find_place(network: VisionNetwork, layer: str, key: str = "layer") -> Place:
    """Return where silent units go: the convolution, and the batch norm behind it.

    Raises:
        UsageError: no such layer, no convolution, or none that batch norm and ReLU follow (the last one of a residual
            block, or of a linear bottleneck).
    """
    modules = dict(network.module.named_modules())
    suitable = "a convolution followed by batch norm and ReLU is needed"
    convolutions = [name for name, module in modules.items() if isinstance(module, nn.Conv2d)]
    if layer not in modules:
        raise UsageError(key, layer, f"no such layer in the network; {suitable}", convolutions)
    if not isinstance(modules[layer], nn.Conv2d):
        raise UsageError(key, layer, f"a {type(modules[layer]).__name__} is no convolution; {suitable}", convolutions)
    path = _Path(modules[layer], [module for module in modules.values() if isinstance(module, nn.BatchNorm2d)])
    path.follow(network)
    if path.norm is None:
        raise UsageError(key, layer, f"no batch norm takes what this convolution returns; {suitable}")
    if not path.activated:
        raise UsageError(key, layer, f"no ReLU follows its batch norm, as before a residual sum; {suitable}")
    return Place(layer, next(name for name, module in modules.items() if module is path.norm))


class _Path(TorchFunctionMode):
    """Follows what a convolution returns through a forward pass: which batch norm takes it, and whether a ReLU does.

    Modules are seen by hooks, functions (``torch.relu`` in a forward method) as a mode of torch's.
    """

    def __init__(self, convolution: nn.Module, norms: list[nn.BatchNorm2d]) -> None:
        super().__init__()
        self.norm: nn.BatchNorm2d | None = None
        self.activated = False
        self._convolution, self._norms = convolution, norms
        self._response: Tensor | None = None
        self._normalised: Tensor | None = None

    def follow(self, network: VisionNetwork) -> None:
        """Run the network once."""
        handles = [self._convolution.register_forward_hook(self._keep_response)]
        handles += [norm.register_forward_hook(self._keep_normalised) for norm in self._norms]
        try:
            with torch.no_grad(), self:
                network.returned(network.blank())
        finally:
            for handle in handles:
                handle.remove()

    def _keep_response(self, _module: nn.Module, _inputs: object, output: Tensor) -> None:
        self._response = output

    def _keep_normalised(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if self._response is not None and inputs[0] is self._response:
            assert isinstance(module, nn.BatchNorm2d)
            self.norm, self._normalised = module, output
            if isinstance(module, BatchNormAct2d):
                self.activated = isinstance(module.act, (nn.ReLU, nn.ReLU6))

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        """Note whether the first function that takes the normalised response is a ReLU."""
        name = getattr(func, "__name__", "")
        taken = self._normalised is not None and any(argument is self._normalised for argument in args)
        if taken and name != "__get__":  # that only looks at the tensor's shape and the like
            self.activated = name in ("relu", "relu_")
            self._normalised = None
        return func(*args, **(kwargs or {}))


def last_place(network: VisionNetwork) -> Place:
    """Return the last convolution of a network that silent units can stand beside.

    Raises:
        UsageError: it has none.
    """
    names = [name for name, module in network.module.named_modules() if isinstance(module, nn.Conv2d)]
    for name in reversed(names):
        try:
            return find_place(network, name)
        except UsageError:
            continue
    raise UsageError("layer", None, f"{network.name} has no convolution followed by batch norm and ReLU")
