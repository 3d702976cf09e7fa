"""Terms that penalise rough pictures and large pixel values, for all targets alike."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from vital_exp.errors import UsageError
from vital_exp.objectives.priors import ORDERS, boundary_complexity, high_frequency, l1_norm, l2_norm, total_variation
from vital_exp.objectives.terms import Problem, Term
from vital_exp.values import number, one_of, whole_number


class TotalVariation(Term):
    """Total variation of the pictures in normalised space; weight None: that of the network's recipe."""

    knows_target = False

    def __init__(self, problem: Problem, weight: float | None = None, order: str = "l2") -> None:
        super().__init__(problem, problem.alignment.total_variation if weight is None else weight)
        one_of("objective.total_variation.order", order, ORDERS)
        self.order = order

    def __call__(self, pictures: Tensor, activations: Mapping[str, Tensor]) -> Tensor:
        """Return the (N,) total variations."""
        return total_variation(pictures, self.order)


class L2(Term):
    """The norm of the pictures in normalised space; weight None: that of the network's recipe."""

    knows_target = False

    def __init__(self, problem: Problem, weight: float | None = None) -> None:
        super().__init__(problem, problem.alignment.l2 if weight is None else weight)

    def __call__(self, pictures: Tensor, activations: Mapping[str, Tensor]) -> Tensor:
        """Return the (N,) norms."""
        return l2_norm(pictures)


class L1(Term):
    """The sum of absolute values of the pictures in normalised space, where 0 is the mean colour of natural images."""

    knows_target = False

    def __init__(self, problem: Problem, weight: float = 1.0) -> None:
        super().__init__(problem, weight)

    def __call__(self, pictures: Tensor, activations: Mapping[str, Tensor]) -> Tensor:
        """Return the (N,) sums."""
        return l1_norm(pictures)


class HighFrequency(Term):
    """The mean square of the pictures' components above a frequency, in normalised space.

    Prototype Generation (Tagade and Rumbelow 2023) uses a penalty of high frequencies. We found no published formula;
    this one is ours.

    Args:
        problem: what the pictures are made for.
        weight: factor of the term.
        cutoff: in cycles per pixel, in [0, 0.5); 0.25 is a period of four pixels.
    """

    knows_target = False

    def __init__(self, problem: Problem, weight: float = 1.0, cutoff: float = 0.25) -> None:
        super().__init__(problem, weight)
        self.cutoff = number("objective.high_frequency.cutoff", cutoff, 0)
        if self.cutoff >= 0.5:
            raise UsageError("objective.high_frequency.cutoff", cutoff, "must be below 0.5 cycles per pixel")

    def __call__(self, pictures: Tensor, activations: Mapping[str, Tensor]) -> Tensor:
        """Return the (N,) mean squares."""
        return high_frequency(pictures, self.cutoff)


class Boundary(Term):
    """Lucid's boundary penalty, which makes the frame of a picture smooth and grey; on pictures in [0, 1].

    Args:
        problem: what the pictures are made for.
        weight: factor of the term.
        width: width of the frame in pixels.
        colour: grey value of the frame, in [0, 1].
    """

    knows_target = False

    def __init__(self, problem: Problem, weight: float = 1.0, width: int = 20, colour: float = 0.5) -> None:
        super().__init__(problem, weight)
        self.width = whole_number("objective.boundary.width", width, 1)
        self.colour = number("objective.boundary.colour", colour, 0)
        if self.colour > 1:
            raise UsageError("objective.boundary.colour", colour, "between 0 and 1")
        self.preprocessing = problem.network.preprocessing

    def __call__(self, pictures: Tensor, activations: Mapping[str, Tensor]) -> Tensor:
        """Return the (N,) penalties."""
        return boundary_complexity(self.preprocessing.denormalise(pictures), self.width, self.colour)
