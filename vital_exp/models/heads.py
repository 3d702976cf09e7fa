"""What a network's outputs say of its classes: the probabilities of a softmax, of a sigmoid each, or none."""

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
# The logit above which a sigmoid says yes, and the probability.
YES_LOGIT, YES_PROBABILITY = 0.0, 0.5


@dataclass(frozen=True)
class Head:
    """How a network's outputs become probabilities.

    Attributes:
        kind: ``"softmax"``: the classes exclude each other; ``"sigmoid"``: each is there or not, whatever the others;
            ``"none"``: the outputs are no classes' scores, such as features or a regression's values.
        inside: whether the network ends in it: what it returns are probabilities already.
    """

    kind: str = SOFTMAX
    inside: bool = False

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Return the probabilities (N, classes) of outputs (N, classes).

        Raises:
            ValueError: the head is ``"none"``.
        """
        if self.kind == NONE:
            raise ValueError("outputs of a network without a head are no classes' scores")
        if self.inside:
            return outputs
        return outputs.softmax(dim=1) if self.kind == SOFTMAX else outputs.sigmoid()

    def log_probabilities(self, outputs: Tensor) -> Tensor:
        """Return their logarithms, (N, classes)."""
        if self.inside:
            return self.probabilities(outputs).clamp(min=torch.finfo(outputs.dtype).tiny).log()
        return functional.log_softmax(outputs, dim=1) if self.kind == SOFTMAX else functional.logsigmoid(outputs)

    def says_yes(self, outputs: Tensor) -> Tensor:
        """Return which classes are there for a sigmoid, (N, classes) bool: a probability above one half."""
        return outputs > (YES_PROBABILITY if self.inside else YES_LOGIT)

    def decisions(self, outputs: Tensor) -> Tensor:
        """Return what the network decides for each picture, (N, ...): the best class; of a sigmoid, yes or no for each.

        Raises:
            ValueError: the head is ``"none"``.
        """
        if self.kind == NONE:
            raise ValueError("outputs of a network without a head decide nothing")
        return outputs.argmax(dim=1, keepdim=True) if self.kind == SOFTMAX else self.says_yes(outputs)

    @property
    def unjudged(self) -> str:
        """Why nothing can be recognised by it; empty where something can."""
        if self.kind != NONE:
            return ""
        return (
            "model.head=none: the network's outputs are no classes' scores; model.head=softmax or sigmoid if they are"
        )

    @property
    def words(self) -> str:
        """How pictures are recognised, for people; empty where nothing is."""
        own = ", which the network ends in" if self.inside else ""
        if self.kind == SOFTMAX:
            return f"softmax over the classes{own}"
        return f"sigmoid of the class's logit, yes above one half{own}" if self.kind == SIGMOID else ""


def head_of(asked: str | None, outputs: int | None, ends_in: str | None = None) -> Head:
    """Return a network's head.

    Args:
        asked: ``"softmax"``, ``"sigmoid"`` or ``"none"``; None: what the network ends in, else sigmoid for one output
            and softmax for several.
        outputs: how many the network has; None: none that are classes'.
        ends_in: ``"softmax"`` or ``"sigmoid"`` where the network applies it itself.

    Raises:
        UsageError: no such head, or one that the network's outputs cannot have.
    """
    if asked is not None:
        one_of(KEY, asked, HEADS)
    if outputs is None:
        if asked in (SOFTMAX, SIGMOID):
            raise UsageError(
                KEY, asked, "the network has no outputs (N, classes): none, or model.output=key names them"
            )
        return Head(NONE)
    if asked in (SOFTMAX, SIGMOID) and ends_in not in (None, asked):
        raise UsageError(KEY, asked, f"the network ends in a {ends_in}: {ends_in} or none")
    if outputs == 1 and SOFTMAX in (asked, ends_in) and asked != NONE:
        raise UsageError(KEY, SOFTMAX, "the softmax of one output is 1 whatever the picture: sigmoid or none")
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
        """Return what the pass ended in if ``output`` is what that returned, or a view of it; else None."""
        if self._last is None:
            return None
        name, result = self._last
        same = result.untyped_storage().data_ptr() == output.untyped_storage().data_ptr()
        return name if same and result.numel() == output.numel() else None
