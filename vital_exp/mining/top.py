"""The running top k of many units: memory units x k, however many values pass by."""

from __future__ import annotations

import torch
from torch import Tensor

NOTHING = -1  # the number where fewer than k values have passed


class TopK:
    """The k largest values of each unit, and the numbers that came with them.

    Of equal values those that came first stay, and come first.

    Attributes:
        values: (U, k) float32, descending; -inf where there are fewer.
        numbers: (U, k) int64; NOTHING where there are fewer.
    """

    def __init__(self, units: int, k: int, device: torch.device | str = "cpu") -> None:
        self.values = torch.full((units, k), -torch.inf, device=device)
        self.numbers = torch.full((units, k), NOTHING, dtype=torch.int64, device=device)

    def add(self, values: Tensor, numbers: Tensor) -> None:
        """Take in values (N, U) with their numbers (N, U) or (N,); values that are no numbers never rank."""
        k = self.values.shape[1]
        values = torch.where(values.isnan(), -torch.inf, values.float()).T  # (U, N)
        numbers = (numbers[:, None] if numbers.ndim == 1 else numbers).T.expand_as(values)
        # Few units change once many images have passed: only those are sorted.
        units = (values > self.values[:, -1:]).any(dim=1).nonzero().flatten()
        all_values = torch.cat([self.values[units], values[units]], dim=1)  # (changed, k + N)
        all_numbers = torch.cat([self.numbers[units], numbers[units]], dim=1)
        order = all_values.sort(dim=1, descending=True, stable=True).indices[:, :k]
        self.values[units] = all_values.gather(1, order)
        self.numbers[units] = all_numbers.gather(1, order)
