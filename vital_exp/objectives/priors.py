"""Image priors: smoothness and size of the pixels in the network's normalised space (METHODS 1.2)."""

from __future__ import annotations

from torch import Tensor

from vital_exp.errors import UsageError

ORDERS = ("l1", "l2")


def total_variation(x: Tensor, order: str = "l2") -> Tensor:
    """Return the total variation of each picture, (N,).

    Over the differences to the right, down and along both diagonals: ``"l2"`` sums their four Frobenius norms (neither
    squared nor averaged), ``"l1"`` their four mean absolute values.

    Args:
        x: (N, C, H, W) pictures.
        order: ``"l1"`` or ``"l2"``.

    Raises:
        UsageError: another order.
    """
    if order not in ORDERS:
        raise UsageError("objective.total_variation.order", order, f"one of {', '.join(ORDERS)}", ORDERS)
    differences = (
        x[:, :, :, :-1] - x[:, :, :, 1:],
        x[:, :, :-1, :] - x[:, :, 1:, :],
        x[:, :, 1:, :-1] - x[:, :, :-1, 1:],
        x[:, :, :-1, :-1] - x[:, :, 1:, 1:],
    )
    sizes = (d.abs().mean(dim=(1, 2, 3)) if order == "l1" else d.flatten(1).norm(dim=1) for d in differences)
    return sum(sizes, start=x.new_zeros(len(x)))


def l2_norm(x: Tensor) -> Tensor:
    """Return the Frobenius norm of each picture (N, C, H, W): (N,)."""
    return x.flatten(1).norm(dim=1)
