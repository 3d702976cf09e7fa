"""ReLUs made smooth while a network is fine-tuned by its gradients (Gradient Slingshots, arXiv 2401.06122)."""

from __future__ import annotations

from torch.nn import functional
from torch.overrides import TorchFunctionMode

SHARPNESS = 10.0  # beta of softplus: at 0 it is ln 2 / beta above the ReLU


class SmoothReLU(TorchFunctionMode):
    """While it is active every ReLU, module or function, is softplus(beta x) / beta.

    The gradient of a network of ReLUs does not change with the input inside a linear piece, so that it could not be
    taught to point to a picture.
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
