"""Terms of activation maximisation: minus the activation of the target or of its whole layer, and diversity.

Formulas and sources: docs/methods/objectives.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vital_exp.errors import UsageError
from vital_exp.objectives.activation import gram_cosines, mean_square, read_activation
from vital_exp.objectives.terms import Problem, Term
from vital_exp.targets.readout import Position, Readout
from vital_exp.targets.unit import OUTPUT, Target
from vital_exp.values import number, whole_number

CENTRE = "centre"


class Activation(Term):
    """Minus the mean read-out of the target over its positions: class logit, channel, neuron or direction.

    Args:
        problem: what the pictures are made for.
        weight: factor of the term.
        cosine_power: p of dot * max(0.1, cos)^p; 0 leaves the cosine out.
        position: [row, column] or ``"centre"`` of the layer's map, for a neuron or a direction at one position as in
            Lucid; None for the target's own positions.
    """

    def __init__(
        self,
        problem: Problem,
        weight: float = 1.0,
        cosine_power: float = 0.0,
        position: Sequence[int] | str | None = None,
    ) -> None:
        super().__init__(problem, weight)
        self.cosine_power = number("objective.activation.cosine_power", cosine_power, 0)
        self.position = _position(position)
        self.readout = problem.readout
        self.layers = (self.readout.layer,)

    def __call__(self, pictures: Tensor, activations: Mapping[str, Tensor]) -> Tensor:
        """Return minus the (N,) activations."""
        activation = activations[self.readout.layer]
        return -read_activation(activation, self._placed(activation), self.cosine_power)

    def _placed(self, activation: Tensor) -> Readout:
        """Return the read-out, moved to the chosen position where there is one."""
        if self.position is None:
            return self.readout
        height, width = activation.shape[-2:] if activation.ndim == 4 else (1, activation.shape[-1])
        row, column = (height // 2, width // 2) if isinstance(self.position, str) else self.position
        if row >= height or column >= width:
            wanted = f"a [row, column] of the {height}x{width} map of {self.readout.layer}, counted from 0"
            raise UsageError("objective.activation.position", self.position, wanted)
        return replace(self.readout, positions=((row, column),) * len(activation))


class Interpolation(Term):
    """Minus an interpolation between the activations of two units, over the variations of a target (Lucid).

    Variation v of V weighs the target by 1 - t and the other unit by t = (v - 1) / (V - 1).

    Args:
        problem: what the pictures are made for.
        weight: factor of the term.
        other: number of the other channel (or class).
        other_layer: layer of the other channel; None for the target's.
        variations: V, at least 2.
    """

    def __init__(
        self,
        problem: Problem,
        weight: float = 1.0,
        other: int | None = None,
        other_layer: str | None = None,
        variations: int = 2,
    ) -> None:
        super().__init__(problem, weight)
        whole_number("target.variations", variations, 2)
        self.other = whole_number("objective.interpolation.other", other, 0)
        self.readout = problem.readout
        self.other_layer = other_layer or problem.readout.layer
        if self.other_layer != OUTPUT:
            problem.network.taps([self.other_layer], "objective.interpolation.other_layer")
        self.layers = tuple(dict.fromkeys((self.readout.layer, self.other_layer)))
        self.shares = torch.tensor([(target.variation - 1) / (variations - 1) for target in problem.targets])

    def __call__(self, pictures: Tensor, activations: Mapping[str, Tensor]) -> Tensor:
        """Return minus the (N,) interpolated activations."""
        activation = activations[self.other_layer]
        if self.other >= activation.shape[1]:
            wanted = f"a channel of {self.other_layer}, 0 to {activation.shape[1] - 1}"
            raise UsageError("objective.interpolation.other", self.other, wanted)
        first = read_activation(activations[self.readout.layer], self.readout)
        second = activation.flatten(2)[:, self.other].mean(dim=1)
        return -torch.lerp(first, second, self.shares.to(first))


class DeepDream(Term):
    """Minus the mean squared activation of a layer (Mordvintsev et al. 2015).

    Args:
        problem: what the pictures are made for.
        weight: factor of the term.
        layer: name of the layer; None for the target's layer, or the last aligned layer for classes.
    """

    def __init__(self, problem: Problem, weight: float = 1.0, layer: str | None = None) -> None:
        super().__init__(problem, weight)
        self.layer = layer_of(problem, layer, "objective.deepdream.layer")
        self.layers = (self.layer,)

    def __call__(self, pictures: Tensor, activations: Mapping[str, Tensor]) -> Tensor:
        """Return minus the (N,) mean squares."""
        return -mean_square(activations[self.layer])


class Diversity(Term):
    """Similarity of the variations of a unit: cosines between their Gram matrices (Olah et al. 2017).

    The value of a variation is the sum of its cosines with the other variations, divided by the number V of
    variations, so that the V values sum to Lucid's value. Pictures of other units do not count, nor do the repeated
    pictures that pad a batch.

    Args:
        problem: what the pictures are made for.
        weight: factor of the term.
        layer: name of the layer; None for the target's layer, or the last aligned layer for classes.
    """

    def __init__(self, problem: Problem, weight: float = 1.0, layer: str | None = None) -> None:
        super().__init__(problem, weight)
        self.layer = layer_of(problem, layer, "objective.diversity.layer")
        self.layers = (self.layer,)
        targets = problem.targets
        if weight and all(target.variation == 1 for target in targets):
            raise UsageError("target.variations", 1, "diversity compares the variations of a target: 2 or more")
        pairs, self.copies = _pairs(targets[: len(targets) // problem.views])
        # Each view is compared with the same view of the other variations.
        pairs, self.copies = torch.block_diag(*[pairs] * problem.views) > 0, self.copies.repeat(problem.views)
        self.shares = pairs / (pairs.sum(dim=1, keepdim=True) + 1)  # (N, N)

    def __call__(self, pictures: Tensor, activations: Mapping[str, Tensor]) -> Tensor:
        """Return the (N,) similarities of each picture with the other variations of its unit."""
        cosines = gram_cosines(activations[self.layer])
        similarity = (cosines * self.shares.to(cosines)).sum(dim=1)
        # The value of a copy has no gradient, which would reach the pictures that the copy is compared with once more.
        return torch.where(self.copies.to(cosines.device), similarity.detach(), similarity)


def _pairs(targets: Sequence[Target]) -> tuple[Tensor, Tensor]:
    """Return which targets are other variations of the same unit, (N, N), and which are copies for padding, (N,)."""
    units = [replace(target, variation=1) for target in targets]
    # A batch is padded with copies of its last target.
    copies = torch.tensor([target in targets[:i] for i, target in enumerate(targets)])
    others = [[a == b and one != other for b, other in zip(units, targets, strict=True)]
              for a, one in zip(units, targets, strict=True)]  # fmt: skip
    return torch.tensor(others) & ~copies, copies


def layer_of(problem: Problem, layer: str | None, key: str) -> str:
    """Return the layer that a term reads: the given layer, else the target's hidden layer, else the last aligned layer.

    Raises:
        UsageError: no such layer, or no layer given for a class of a network without aligned layers.
    """
    if layer is None and problem.readout.layer != OUTPUT:
        return problem.readout.layer
    if layer is None:
        layer = next(reversed(problem.alignment.layers), None)
    if layer is None:
        raise UsageError(key, layer, "the name of a layer is needed; list=layers prints them")
    problem.network.taps([layer], key)
    return layer


def _position(position: Sequence[int] | str | None) -> Position | str | None:
    if position is None:
        return None
    if position == CENTRE:
        return CENTRE
    if isinstance(position, str) or [type(p) for p in position] != [int, int] or min(position) < 0:
        raise UsageError("objective.activation.position", position, f"[row, column] from 0, {CENTRE} or null")
    return position[0], position[1]
