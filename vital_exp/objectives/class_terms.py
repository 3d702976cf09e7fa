"""Terms for output classes."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional

from vital_exp.errors import UsageError
from vital_exp.objectives.terms import Problem, Term


class CrossEntropy(Term):
    """Cross-entropy of the target class, -log softmax(logits)[class] (DeepInversion, Yin et al. 2020)."""

    def __init__(self, problem: Problem, weight: float = 1.0) -> None:
        super().__init__(problem, weight)
        kind = problem.targets[0].kind
        if kind != "class":
            wanted = "cross-entropy is of output classes only: target=class, or objective=[activation] for hidden units"
            raise UsageError("target", kind, wanted)
        self.readout = problem.readout
        self.layers = (self.readout.layer,)

    def __call__(self, pictures: Tensor, activations: Mapping[str, Tensor]) -> Tensor:
        """Return the (N,) cross-entropies in nats."""
        logits = activations[self.readout.layer].flatten(1)  # (N, classes)
        return -(functional.log_softmax(logits, dim=1) * self.readout.vectors.to(logits)).sum(dim=1)
