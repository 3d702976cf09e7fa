"""How much each concept matters for a class: total Sobol indices (as in CRAFT), or gradient times coefficient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.quasirandom import SobolEngine

from vital_exp.concepts.factors import Factors
from vital_exp.concepts.rest import Rest

SOBOL, GRADIENT, NONE = "sobol", "gradient", "none"
KINDS = (SOBOL, GRADIENT, NONE)
NAMES = {SOBOL: "total Sobol index", GRADIENT: "gradient x coefficient"}
DESIGNS = 32  # points of each of the two designs, as in CRAFT; a power of 2 keeps Sobol sequences balanced
MASKS_PER_PASS = 64


def total_sobol(function: Callable[[Tensor], Tensor], inputs: int, designs: int = DESIGNS, seed: int = 0) -> Tensor:
    """Return the total Sobol index of each input of a function on the unit cube, (inputs,), by Jansen's estimator.

    S_i = mean (f(A) - f(A with column i of B))^2 / 2 / Var f, with A and B two halves of a scrambled Sobol sequence.
    S_i is the share of the variance that is left when all inputs except i are known; 0 where the function is constant.

    Args:
        function: maps points (n, inputs) to values (n,).
        inputs: number of inputs of the function.
        designs: number of points in A and in B; the function is evaluated ``designs * (inputs + 2)`` times.
        seed: of the scrambling.

    Examples:
        >>> from vital_exp.concepts.importance import total_sobol
        >>> shares = total_sobol(lambda x: x[:, 0], inputs=2)  # all of the variance comes from the first input
        >>> [round(float(share), 1) for share in shares]
        [1.0, 0.0]
    """
    points = SobolEngine(2 * inputs, scramble=True, seed=seed).draw(designs)
    a, b = points[:, :inputs], points[:, inputs:]
    mixed = a.repeat(inputs, 1, 1)  # (inputs, designs, inputs)
    for i in range(inputs):
        mixed[i, :, i] = b[:, i]
    values = function(torch.cat([a, b, mixed.flatten(0, 1)])).double()
    at_a, at_mixed = values[:designs], values[2 * designs :].view(inputs, designs)
    variance = values[: 2 * designs].var(correction=0)
    if variance <= torch.finfo(torch.float32).eps * values.square().mean():
        return torch.zeros(inputs)
    return ((at_a - at_mixed).square().mean(dim=1) / (2 * variance)).float()


@dataclass(frozen=True)
class Explained:
    """The logit of a class for one image, as a function of the share of each concept that is kept in a layer.

    Attributes:
        rest: the network from the layer on, for the image.
        factors: the concepts.
        of_class: the class.
    """

    rest: Rest
    factors: Factors
    of_class: int

    @cached_property
    def parts(self) -> Tensor:
        """The part of each concept in the image's activation, (K, C, P)."""
        values = self.rest.activation.flatten(1)  # (C, P)
        coefficients = self.factors.coefficients(values.T)  # (P, K)
        components = self.factors.components.to(values)
        return torch.einsum("pk,kc->kcp", coefficients.to(values), components)

    def logits(self, masks: Tensor) -> Tensor:
        """Return the logits (n,) where the part of concept k is multiplied by masks[:, k] in [0, 1], (n, K).

        The part of the activation that no concept explains stays.
        """
        activation = self.rest.activation.flatten(1)
        taken = torch.einsum("nk,kcp->ncp", 1 - masks.to(activation), self.parts)
        return self.rest((activation - taken).view(-1, *self.rest.activation.shape))[:, self.of_class]

    @torch.no_grad()
    def sobol(self, designs: int, seed: int) -> Tensor:
        """Return the concepts' total Sobol indices, (K,)."""

        def function(masks: Tensor) -> Tensor:
            return torch.cat([self.logits(chunk).cpu() for chunk in masks.split(MASKS_PER_PASS)])

        return total_sobol(function, len(self.parts), designs, seed)

    def gradient(self) -> Tensor:
        """Return the derivative of the logit by each concept's mask at 1, (K,): gradient times coefficient."""
        masks = torch.ones(1, len(self.parts), requires_grad=True)
        with torch.enable_grad():
            (found,) = torch.autograd.grad(self.logits(masks).sum(), masks)
        return found[0].cpu()
