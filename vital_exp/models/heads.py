"""A network's head: how its outputs become probabilities of classes, by a softmax, by a sigmoid each, or not at all."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from vital_exp.errors import UsageError
from vital_exp.models.axes import Arguments, Keywords, Operation
from vital_exp.values import one_of

KEY = "model.head"
SOFTMAX, SIGMOID, NONE = "softmax", "sigmoid", "none"
HEADS = (SOFTMAX, SIGMOID, NONE)
# A sigmoid says yes above this logit, which is this probability.
YES_LOGIT, YES_PROBABILITY = 0.0, 0.5


@dataclass(frozen=True)
class Head:
    """How a network's outputs become probabilities.

    Attributes:
        kind: ``"softmax"``: the classes exclude each other; ``"sigmoid"``: each class is present or not, whatever the
            others; ``"none"``: the outputs are not scores of classes, but an embedding or a regression's values.
        inside: whether the network itself ends in the softmax or sigmoid, so that its outputs are probabilities.
    """

    kind: str = SOFTMAX
    inside: bool = False

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Return the probabilities (N, classes) of outputs (N, classes).

        Raises:
            ValueError: the head is ``"none"``.
        """
        if self.kind == NONE:
            raise ValueError("outputs of a network without a head are not scores of classes")
        if self.inside:
            return outputs
        return outputs.softmax(dim=1) if self.kind == SOFTMAX else outputs.sigmoid()

    def log_probabilities(self, outputs: Tensor) -> Tensor:
        """Return the logarithms of the probabilities, (N, classes)."""
        if self.inside:
            return self.probabilities(outputs).clamp(min=torch.finfo(outputs.dtype).tiny).log()
        return functional.log_softmax(outputs, dim=1) if self.kind == SOFTMAX else functional.logsigmoid(outputs)

    def says_yes(self, outputs: Tensor) -> Tensor:
        """Return which classes a sigmoid finds present, (N, classes) bool: the probability is above one half."""
        return outputs > (YES_PROBABILITY if self.inside else YES_LOGIT)

    def decisions(self, outputs: Tensor) -> Tensor:
        """Return the decision for each picture: the best class (N, 1); by a sigmoid, yes or no per class (N, classes).

        Raises:
            ValueError: the head is ``"none"``.
        """
        if self.kind == NONE:
            raise ValueError("outputs of a network without a head decide nothing")
        return outputs.argmax(dim=1, keepdim=True) if self.kind == SOFTMAX else self.says_yes(outputs)

    @property
    def unjudged(self) -> str:
        """Why the network can recognise no picture; empty where it can."""
        if self.kind != NONE:
            return ""
        return "model.head=none: outputs are not scores of classes; if they are, choose model.head=softmax or sigmoid"

    @property
    def words(self) -> str:
        """How the network recognises pictures, as a phrase for a caption; empty for ``"none"``."""
        own = ", which the network ends in" if self.inside else ""
        if self.kind == SOFTMAX:
            return f"softmax over the classes{own}"
        return f"sigmoid of the class's logit, yes above one half{own}" if self.kind == SIGMOID else ""


def head_of(asked: str | None, outputs: int | None, ends_in: str | None = None) -> Head:
    """Return a network's head.

    Args:
        asked: ``"softmax"``, ``"sigmoid"`` or ``"none"``; None: what the network ends in, else sigmoid for one output
            and softmax for several.
        outputs: how many outputs the network has; None: it has none of shape (N, classes).
        ends_in: ``"softmax"`` or ``"sigmoid"`` where the network applies it itself.

    Raises:
        UsageError: no such head, or a head that contradicts the network's outputs.
    """
    if asked is not None:
        one_of(KEY, asked, HEADS)
    if outputs is None:
        if asked in (SOFTMAX, SIGMOID):
            problem = "the network has no outputs (N, classes): choose none, or name the logits by model.output=key"
            raise UsageError(KEY, asked, problem)
        return Head(NONE)
    if asked in (SOFTMAX, SIGMOID) and ends_in not in (None, asked):
        raise UsageError(KEY, asked, f"the network ends in a {ends_in}: choose {ends_in} or none")
    if outputs == 1 and SOFTMAX in (asked, ends_in) and asked != NONE:
        raise UsageError(KEY, SOFTMAX, "the softmax of one output is 1 for every picture: choose sigmoid or none")
    kind = asked or ends_in or (SIGMOID if outputs == 1 else SOFTMAX)
    return Head(kind, inside=kind == ends_in)


class Ending(TorchFunctionMode):
    """Watches a forward pass for a softmax or a sigmoid at its end."""

    def __init__(self) -> None:
        super().__init__()
        self._last: tuple[str, Tensor] | None = None

    def __torch_function__(
        self, func: Operation, types: object, args: Arguments = (), kwargs: Keywords | None = None
    ) -> object:
        """Remember the last softmax or sigmoid."""
        result = func(*args, **(kwargs or {}))
        name = str(getattr(func, "__name__", "")).rstrip("_")
        if name in (SOFTMAX, SIGMOID) and isinstance(result, Tensor):
            self._last = name, result
        return result

    def of(self, output: Tensor) -> str | None:
        """Return ``"softmax"`` or ``"sigmoid"`` if its result is ``output`` or has ``output`` as a view, else None."""
        if self._last is None:
            return None
        name, result = self._last
        same = result.untyped_storage().data_ptr() == output.untyped_storage().data_ptr()
        return name if same and result.numel() == output.numel() else None
