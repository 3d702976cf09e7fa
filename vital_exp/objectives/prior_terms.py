"""Terms that ask for smooth and small pictures, whatever the target."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from vital_exp.errors import UsageError
from vital_exp.objectives.priors import ORDERS, l2_norm, total_variation
from vital_exp.objectives.terms import Problem, Term


class TotalVariation(Term):
    """Total variation of the pictures in normalised space; weight None takes the network's (METHODS 1.2)."""

    knows_target = False

    def __init__(self, problem: Problem, weight: float | None = None, order: str = "l2") -> None:
        super().__init__(problem, problem.alignment.total_variation if weight is None else weight)
        if order not in ORDERS:
            raise UsageError("objective.total_variation.order", order, f"one of {', '.join(ORDERS)}", ORDERS)
        self.order = order

    def __call__(self, pictures: Tensor, activations: Mapping[str, Tensor]) -> Tensor:
        """Return the (N,) total variations."""
        return total_variation(pictures, self.order)


class L2(Term):
    """The norm of the pictures in normalised space; weight None takes the network's (METHODS 1.2)."""

    knows_target = False

    def __init__(self, problem: Problem, weight: float | None = None) -> None:
        super().__init__(problem, problem.alignment.l2 if weight is None else weight)

    def __call__(self, pictures: Tensor, activations: Mapping[str, Tensor]) -> Tensor:
        """Return the (N,) norms."""
        return l2_norm(pictures)
