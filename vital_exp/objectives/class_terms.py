"""Terms for output classes."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from vital_exp.errors import UsageError
from vital_exp.objectives.terms import Problem, Term


class CrossEntropy(Term):
    """Cross-entropy of the target class, -log of its probability (DeepInversion, Yin et al. 2020).

    The network's head decides on the probability: softmax(logits)[class], or sigmoid(logit of the class) for heads of
    independent classes.

    Raises:
        UsageError: hidden units, or a network whose outputs are not scores of classes.
    """

    def __init__(self, problem: Problem, weight: float = 1.0) -> None:
        super().__init__(problem, weight)
        kind = problem.targets[0].kind
        if kind != "class":
            wanted = "cross-entropy needs output classes: target=class; for hidden units: objective=[activation]"
            raise UsageError("target", kind, wanted)
        self.head = problem.network.head
        if self.head.unjudged:
            raise UsageError("objective", "cross_entropy", f"needs probabilities of classes; {self.head.unjudged}")
        self.readout = problem.readout
        self.layers = (self.readout.layer,)

    def __call__(self, pictures: Tensor, activations: Mapping[str, Tensor]) -> Tensor:
        """Return the (N,) cross-entropies in nats."""
        logits = activations[self.readout.layer].flatten(1)  # (N, classes)
        return -(self.head.log_probabilities(logits) * self.readout.vectors.to(logits)).sum(dim=1)
