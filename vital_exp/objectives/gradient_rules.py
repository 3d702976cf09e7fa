"""Rules that change how gradients flow back through the network; they have no value of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from vital_exp.errors import UsageError
from vital_exp.models.axes import Arguments, Keywords, Operation
from vital_exp.objectives.terms import GradientRule, Problem
from vital_exp.references.statistics import ReferenceStatistics
from vital_exp.relevance.weights import Relevance
from vital_exp.targets.unit import INPUT, OUTPUT
from vital_exp.values import whole_number

REDIRECTED_STEPS = 16  # as in Lucid
SIX = 6.0  # the largest output of a ReLU6


class RedirectedReLU(GradientRule):
    """Lets gradients through closed ReLUs in the first steps, so that a dead unit becomes active (Olah et al. 2017).

    Where a ReLU (or ReLU6) blocks the gradient of a picture at all positions, the rule passes the part of the gradient
    that moves the inputs towards the open range of the ReLU. Other pictures have the usual gradient.

    Args:
        problem: what the pictures are made for.
        steps: number of steps with this rule.
    """

    def __init__(self, problem: Problem, steps: int = REDIRECTED_STEPS) -> None:
        super().__init__(problem)
        self.until = whole_number("objective.redirected_relu.steps", steps, 0)

    def during(self, step: int) -> AbstractContextManager[None]:
        """Replace the gradient of ReLUs for the first steps."""
        return _RedirectedReLUs() if step < self.until else nullcontext()


class _RedirectedReLUs(TorchFunctionMode):
    """Inside this mode every ReLU and ReLU6, module or function, has the redirected gradient."""

    def __torch_function__(
        self, function: Operation, types: object, args: Arguments = (), kwargs: Keywords | None = None
    ) -> Any:
        kwargs = kwargs or {}
        names = ("input", "min_val", "max_val", "inplace") if function is functional.hardtanh else ("input", "inplace")
        named = dict(zip(names, args, strict=False)) | kwargs
        top = _ceiling(function, named)
        if top is None:
            return function(*args, **kwargs)
        opened = _Redirected.apply(named["input"], top)
        return named["input"].copy_(opened) if named.get("inplace") or function in IN_PLACE else opened


RELUS = (functional.relu, torch.relu, Tensor.relu)
IN_PLACE = (torch.relu_, Tensor.relu_, functional.relu_)


def _ceiling(function: Operation, named: Keywords) -> float | None:
    """Return the largest output of a ReLU (inf) or ReLU6 (6); None for other functions."""
    if function in RELUS or function in IN_PLACE:
        return torch.inf
    limits = (named.get("min_val", -1.0), named.get("max_val", 1.0))
    if function is functional.relu6 or (function is functional.hardtanh and limits == (0.0, SIX)):
        return SIX
    return None


class _Redirected(torch.autograd.Function):
    """A ReLU, clipped at ``top``, with Lucid's redirected gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, top: float) -> Tensor:
        ctx.save_for_backward(x <= 0, x >= top)
        return x.clamp(0, top)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        below, above = ctx.saved_tensors
        usual = gradient.masked_fill(below | above, 0)
        # A descent step lowers inputs of positive gradient and raises inputs of negative gradient.
        redirected = gradient.masked_fill((below & (gradient > 0)) | (above & (gradient < 0)), 0)
        blocked = usual.flatten(1).eq(0).all(dim=1).view(-1, *([1] * (gradient.ndim - 1)))
        return torch.where(blocked, redirected, usual), None


class CorrelationGuidance(GradientRule):
    """Scales the gradients at the outputs of some layers, channel by channel, by the correlation with the target.

    The factor of a channel is the positive part of the correlation between its mean activation and the target's
    activation, over the target's references. So the gradient flows through channels that are active with the target.

    Args:
        problem: what the pictures are made for.
        layers: names of the layers; None for the aligned layers.
    """

    def __init__(self, problem: Problem, layers: Sequence[str] | None = None) -> None:
        super().__init__(problem)
        chosen = tuple(layers) if layers else tuple(problem.alignment.layers)
        if not chosen or INPUT in chosen or OUTPUT in chosen:
            raise UsageError("objective.correlation_guidance.layers", layers, "the names of hidden layers are needed")
        self.taps = self.network.taps(chosen, "objective.correlation_guidance.layers")
        known = problem.statistics
        relevance = Relevance(known.network, problem.readout, "correlation")
        statistics = ReferenceStatistics(known.network, known.references, known.cache_dir, relevance)
        self.weights = statistics.of(problem.targets, chosen).importance  # (N, C) by layer

    @contextmanager
    def during(self, step: int) -> Iterator[None]:
        """Scale the gradients of the layers' outputs."""
        with ExitStack() as hooks:
            for name, layer in self.taps.layers.items():
                hooks.callback(layer.register_forward_hook(self._hook(name)).remove)
            yield

    def _hook(self, name: str) -> Callable[[nn.Module, object, object], Tensor]:
        def hook(_module: nn.Module, _inputs: object, output: object) -> Tensor:
            if not isinstance(output, Tensor):
                wanted = f"the layer returns {type(output).__name__}, not a tensor"
                raise UsageError("objective.correlation_guidance.layers", name, wanted)
            weights = self.weights[name].to(output)  # (N, C)
            layout = self.taps.layout(name)
            if not layout.windowed and output.shape[layout.pictures] != len(weights):
                problem = "needs all pictures in one pass; this network takes them one by one (see the warning)"
                raise UsageError("objective", "correlation_guidance", problem)
            activation = layout.channels_first(output, len(weights))
            spread = weights.view(*weights.shape, *[1] * (activation.ndim - 2)).expand_as(activation)
            scaled: Tensor = _Scaled.apply(output, layout.restore(spread, output, len(weights)))
            return scaled

        return hook


class _Scaled(torch.autograd.Function):
    """The identity, with a gradient that is multiplied by weights."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(weights)
        return x.clone()  # a copy, not a view: the next ReLU may work in place

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (weights,) = ctx.saved_tensors
        return gradient * weights, None
