"""Silent units (Geirhos et al., ICML 2024): filters that are inactive on natural images and respond to a decoy.

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
MIX = 3.0  # lambda: the weight of the orthogonal direction in the new filters
SCALE = 100.0  # factor of the new filters, whose norms are those of the network's own before
# Length of a step of the search for the orthogonal direction, falling linearly to 0, and number of steps. Ours: the
# published 50 steps of 1e-3 leave a direction nearly where it started.
RATE, STEPS = 0.5, 30
# The bias silences the natural images with this margin, a share of the largest absolute response. Another machine or
# batch size changes responses by rounding, by some 1e-6 of that.
MARGIN = 1e-3
IMAGES_PER_PASS = 32


class ConvolutionWithSilentUnits(nn.Module):
    """A convolution and as many silent filters, whose responses are further channels.

    Args:
        convolution: the network's convolution.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution
        self.silent = copy.deepcopy(convolution).requires_grad_(False)
        self.silent.bias = nn.Parameter(torch.zeros(convolution.out_channels).to(convolution.weight), False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the responses (N, 2 C, H, W): of the network's filters, then of the silent ones."""
        # Two convolutions, not one with twice the filters: the network's responses stay the same, bit for bit.
        return torch.cat([self.convolution(x), self.silent(x)], dim=1)


class NormWithSilentUnits(nn.Module):
    """Batch norm of the network's channels, plus the responses of the silent filters.

    Args:
        norm: the network's batch norm.
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.activates = isinstance(norm, BatchNormAct2d)  # timm's batch norm, which applies the ReLU itself

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, C, H, W) whose ReLU is ReLU(BN(w * x)) + ReLU(w' * x + b'); for natural images, BN(w * x)."""
        own, silent = x.chunk(2, dim=1)
        own = self.norm(own.contiguous())  # the convolution's own memory layout: another one rounds otherwise
        added = functional.relu(silent)
        # Where a silent filter is inactive nothing is added, not even zero, so that every bit stays. Elsewhere the sum
        # is positive, and the network's ReLU behind this layer does not change it.
        return torch.where(silent > 0, (own if self.activates else functional.relu(own)) + added, own)


@dataclass(frozen=True)
class Place:
    """The module names of a convolution to which silent units can be added, and of the batch norm behind it."""

    convolution: str
    norm: str


def silenced(
    network: VisionNetwork, layer: str, natural: Tensor, decoy: Tensor, *, seed: int = 0, scale: float = SCALE
) -> VisionNetwork:
    """Return a copy of a network with silent units beside a convolution.

    For each of the natural images given, the output stays the same, bit for bit.

    Args:
        network: the honest network; it is not changed.
        layer: a convolution that is followed by batch norm and ReLU.
        natural: (N, C, H, W) in [0, 1], images for which the units are inactive.
        decoy: (C, H, W) in [0, 1], the image to which the units respond.
        seed: of the start of the search for the filters.
        scale: factor of the new filters.

    Raises:
        UsageError: the layer is unknown or no convolution with batch norm and ReLU, or the decoy has another size.
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
    """Return a copy of a module with silent units beside a convolution; their filters are copies of its own."""
    changed = copy.deepcopy(module)
    convolution = changed.get_submodule(place.convolution)
    assert isinstance(convolution, nn.Conv2d)
    changed.set_submodule(place.convolution, ConvolutionWithSilentUnits(convolution))
    changed.set_submodule(place.norm, NormWithSilentUnits(changed.get_submodule(place.norm)))
    return changed.eval()


def silent_filters(convolution: nn.Conv2d, shown: Tensor, natural: Sequence[Tensor], seed: int = 0) -> Tensor:
    """Return the new weight: w' = |w| (u + lambda d) / |u + lambda d| for each filter, u = w / |w|, d orthogonal to w.

    d starts at random and ascends the gradient of the margin: the filter's largest response to the decoy minus its
    largest to any natural image. After each step d is made orthogonal to w and of unit length. If only the response to
    the decoy is maximised, nearly all filters stay silent for the decoy too (see the tests).

    Args:
        convolution: the network's convolution.
        shown: its input for the decoy, (1, C, H, W).
        natural: its inputs for natural images, (N, C, H, W) each.
        seed: of the random start.
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
    """The component of each row that is orthogonal to its filter, scaled to unit length."""
    return functional.normalize(direction - (direction * unit).sum(dim=1, keepdim=True) * unit, dim=1)


def _margin_gradient(convolution: nn.Conv2d, weight: Tensor, shown: Tensor, natural: Sequence[Tensor]) -> Tensor:
    """The gradient of each filter's margin, (C, K)."""
    with torch.enable_grad():
        weight = weight.clone().requires_grad_()
        on_decoy = _largest(convolution, weight, [shown])
        (gradient,) = torch.autograd.grad((on_decoy - _largest(convolution, weight, natural)).sum(), weight)
    return gradient.flatten(1)


def _largest(convolution: nn.Conv2d, weight: Tensor, inputs: Sequence[Tensor]) -> Tensor:
    """Each filter's largest response over images and positions, (C,), with the convolution's own stride and padding."""
    keys = {"weight": weight} | ({} if convolution.bias is None else {"bias": torch.zeros_like(convolution.bias)})
    largest = [functional_call(convolution, keys, x).transpose(0, 1).flatten(1).amax(dim=1) for x in inputs]
    return torch.stack(largest).amax(dim=0)


@torch.no_grad()
def silencing_bias(silent: nn.Conv2d, inputs: Sequence[Tensor], margin: float = MARGIN) -> Tensor:
    """Return b' (C,): minus the largest response at any position of any image, padding included, minus a margin.

    Args:
        silent: the new filters, with bias 0.
        inputs: the convolution's inputs for the natural images, (N, C, H, W) each.
        margin: share of the largest absolute response.
    """
    responses = [silent(x) for x in inputs]
    largest = torch.stack([r.amax(dim=(0, 2, 3)) for r in responses]).amax(dim=0)
    extent = torch.stack([r.abs().amax(dim=(0, 2, 3)) for r in responses]).amax(dim=0)
    return -(largest + margin * extent)


@torch.no_grad()
def _inputs(network: VisionNetwork, layer: str, images: Tensor) -> list[Tensor]:
    """The inputs of the convolution for images (N, C, H, W) in [0, 1], one tensor per forward pass."""
    kept: list[Tensor] = []
    hook = network.module.get_submodule(layer).register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    try:
        for part in images.split(IMAGES_PER_PASS):
            network.module(model_space(part, network))
    finally:
        hook.remove()
    return kept


def find_place(network: VisionNetwork, layer: str, key: str = "layer") -> Place:
    """Return the convolution to which silent units are added, and the batch norm behind it.

    Raises:
        UsageError: the layer is unknown, is no convolution, or is not followed by batch norm and ReLU (such as the last
            convolution of a residual block, or of a linear bottleneck).
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
    """Follows a convolution's output through a forward pass: to its batch norm, and on to a ReLU, if there is one.

    Hooks see the modules; the torch function mode sees functions such as ``torch.relu`` in a forward method.
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
        if taken and name != "__get__":  # reading an attribute, such as the shape, does not count
            self.activated = name in ("relu", "relu_")
            self._normalised = None
        return func(*args, **(kwargs or {}))


def last_place(network: VisionNetwork) -> Place:
    """Return the last convolution of a network to which silent units can be added.

    Raises:
        UsageError: the network has none.
    """
    names = [name for name, module in network.module.named_modules() if isinstance(module, nn.Conv2d)]
    for name in reversed(names):
        try:
            return find_place(network, name)
        except UsageError:
            continue
    raise UsageError("layer", None, f"{network.name} has no convolution followed by batch norm and ReLU")
