"""ReLUs made smooth while a network is fine-tuned by its gradients (Gradient Slingshots, arXiv 2401.06122)."""

from __future__ import annotations

from torch.nn import functional
from torch.overrides import TorchFunctionMode

SHARPNESS = 10.0  # beta of the softplus, which exceeds the ReLU by at most ln 2 / beta, at 0


class SmoothReLU(TorchFunctionMode):
    """A context in which each ReLU, module or function, computes softplus(beta x) / beta.

    The gradient of a ReLU network is constant within each linear piece, so it cannot be trained to point to a decoy
    from each input.
    """

    def __init__(self, sharpness: float = SHARPNESS) -> None:
        super().__init__()
        self.sharpness = sharpness

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        """Call softplus in place of a ReLU."""
        if getattr(func, "__name__", "") in ("relu", "relu_"):
            x = args[0] if args else (kwargs or {})["input"]
            return functional.softplus(x, beta=self.sharpness)
        return func(*args, **(kwargs or {}))
