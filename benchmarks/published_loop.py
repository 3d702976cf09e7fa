"""The published optimisation of class neurons (VITAL, arXiv 2503.22399), transcribed plainly from its description.

At each step it does three things that the library does not: it computes gradients of all weights of the network, sorts
the activations of all references again, and uses sort, argsort and gather where one sort is enough. Apart from that it
is as fast as possible: the references pass through the network once, tapped activations are not copied, the pictures of
a batch share the sorted references, and gradients of weights are dropped, not summed. ``keep_sorted`` sorts the
references once.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

JITTER = 30  # px, the largest circular shift
RATE = 1.0  # Adam's, at the end of the warm-up
BETAS = (0.5, 0.9)
EPSILON = 1e-8
WARM_UP = 100  # steps
REFERENCES_PER_PASS = 10  # through the network, once, before the first step


class _TapsFilled(Exception):
    """Raised to end a forward pass when all tapped layers have run."""


def tapped(network: nn.Module, layers: Sequence[str], pictures: Tensor) -> dict[str, Tensor]:
    """Return the outputs of named layers for normalised pictures (N, 3, H, W), each (N, C, P) float32.

    The network must not change a tapped layer's output in place; torchvision's networks do not.
    """
    found: dict[str, Tensor] = {}
    with contextlib.ExitStack() as hooks:
        for name in layers:

            def keep(_module: nn.Module, _inputs: object, output: Tensor, name: str = name) -> None:
                positions = output.flatten(2) if output.ndim == 4 else output.transpose(1, 2)  # (N, T, D): tokens
                found[name] = positions.float()  # (N, C, P)
                if len(found) == len(layers):
                    raise _TapsFilled

            hooks.callback(network.get_submodule(name).register_forward_hook(keep).remove)
        with contextlib.suppress(_TapsFilled):
            network(pictures)
    return found


@torch.no_grad()
def reference_activations(network: nn.Module, layers: Sequence[str], references: Tensor) -> dict[str, Tensor]:
    """Return the activations of normalised references (B, 3, H, W), each (B, C, P)."""
    parts = [tapped(network, layers, chunk) for chunk in references.split(REFERENCES_PER_PASS)]
    return {name: torch.cat([part[name] for part in parts]) for name in layers}


def mean_sorted(activations: Tensor) -> Tensor:
    """Sort the positions of each channel of each reference (B, C, P), and average over the references: (C, P)."""
    return activations.sort(dim=-1).values.mean(dim=0)


class PublishedLoop:
    """One batch of pictures, optimised by the published loop without its image priors (their weight is 0 for CNNs).

    Args:
        network: the network, whose parameters require gradients but do not change.
        weights: the weight of each tapped layer in the loss.
        activations: of the references, {layer: (B, C, P)}; the same for all pictures.
        start: normalised pictures (N, 3, H, W).
        valid: the normalised values of RGB 0 and 1, each (3, 1, 1).
        steps: the number of steps of the whole schedule.
        seed: of the jitter.
        keep_sorted: whether to sort the references once instead of at each step.
        bf16: whether to run the network in bfloat16, where autocast does.
    """

    def __init__(
        self,
        network: nn.Module,
        weights: Mapping[str, float],
        activations: Mapping[str, Tensor],
        start: Tensor,
        valid: tuple[Tensor, Tensor],
        *,
        steps: int = 2000,
        seed: int = 0,
        keep_sorted: bool = False,
        bf16: bool = False,
    ) -> None:
        self.network = network.eval().requires_grad_(True)
        self.weights = dict(weights)
        self.activations = {} if keep_sorted else activations
        self.kept = {name: mean_sorted(activations[name]) for name in weights} if keep_sorted else {}
        self.pictures = start.clone().requires_grad_(True)
        self.valid = valid
        self.steps = steps
        self.generator = torch.Generator().manual_seed(seed)
        self.bf16 = bf16
        self.optimizer = torch.optim.Adam([self.pictures], lr=RATE, betas=BETAS, eps=EPSILON)
        self.rates = rates(steps)

    def losses(self, pictures: Tensor) -> Tensor:
        """Return the loss of each normalised picture, (N,)."""
        with torch.autocast(pictures.device.type, torch.bfloat16, enabled=self.bf16):
            features = tapped(self.network, list(self.weights), pictures)
        total = pictures.new_zeros(len(pictures))
        for name, weight in self.weights.items():
            matched = self.matched(name, features[name].detach())
            total = total + weight * (features[name] - matched).square().mean(dim=(1, 2))
        return total

    @torch.no_grad()
    def matched(self, name: str, features: Tensor) -> Tensor:
        """Return for each feature (N, C, P) the references' mean value at the feature's rank."""
        wanted = self.kept[name] if self.kept else mean_sorted(self.activations[name])
        order = features.sort(dim=-1).indices
        ranks = order.argsort(dim=-1)
        return wanted.expand_as(features).gather(-1, ranks)

    def descend(self, losses: Tensor) -> None:
        """Compute the gradients."""
        losses.sum().backward()

    def step(self) -> Tensor:
        """Take one step; return the losses before it, (N,)."""
        for group in self.optimizer.param_groups:
            group["lr"] = next(self.rates)
        down, right = torch.randint(-JITTER, JITTER + 1, (2,), generator=self.generator).tolist()
        losses = self.losses(self.pictures.roll((down, right), dims=(2, 3)))
        self.optimizer.zero_grad()
        self.network.zero_grad()
        self.descend(losses)
        self.optimizer.step()
        with torch.no_grad():
            self.pictures.clamp_(*self.valid)
        return losses.detach()


def rates(steps: int) -> Iterator[float]:
    """Yield the learning rate of each step: a linear warm-up, then half a cosine to 0."""
    for step in range(steps):
        if step < WARM_UP:
            yield RATE * (step + 1) / WARM_UP
        else:
            yield RATE * 0.5 * (1 + math.cos(math.pi * (step - WARM_UP) / (steps - WARM_UP)))
