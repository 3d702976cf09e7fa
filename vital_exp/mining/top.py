"""The running top k of many units: memory units x k, however many values pass by."""

from __future__ import annotations

import torch
from torch import Tensor

NOTHING = -1  # the number where fewer than k values have passed


class TopK:
    """The k largest values of each unit, and the numbers that came with them.

    Of equal values those with the larger second value stay and come first; where that is equal too, those that came
    first.

    Attributes:
        values: (U, k) float32, descending; -inf where there are fewer.
        seconds: (U, k) float32, what decides between equal values.
        numbers: (U, k) int64; NOTHING where there are fewer.
    """

    def __init__(self, units: int, k: int, device: torch.device | str = "cpu") -> None:
        self.values = torch.full((units, k), -torch.inf, device=device)
        self.seconds = torch.zeros(units, k, device=device)
        self.numbers = torch.full((units, k), NOTHING, dtype=torch.int64, device=device)

    def add(self, values: Tensor, numbers: Tensor, seconds: Tensor | None = None) -> None:
        """Take in values (N, U) with their numbers (N, U) or (N,) and second values (N, U); NaN never ranks."""
        k = self.values.shape[1]
        values = torch.where(values.isnan(), -torch.inf, values.float()).T  # (U, N)
        seconds = torch.zeros_like(values) if seconds is None else seconds.float().nan_to_num().T
        seconds = torch.where(values == -torch.inf, -torch.inf, seconds)  # below the places that are free
        numbers = (numbers[:, None] if numbers.ndim == 1 else numbers).T.expand_as(values)
        # Few units change once many images have passed: only those are sorted.
        last, second = self.values[:, -1:], self.seconds[:, -1:]
        units = ((values > last) | ((values == last) & (seconds > second))).any(dim=1).nonzero().flatten()
        kept = {
            "values": torch.cat([self.values[units], values[units]], dim=1),  # (changed, k + N)
            "seconds": torch.cat([self.seconds[units], seconds[units]], dim=1),
            "numbers": torch.cat([self.numbers[units], numbers[units]], dim=1),
        }
        order = kept["seconds"].sort(dim=1, descending=True, stable=True).indices
        ranked = kept["values"].gather(1, order).sort(dim=1, descending=True, stable=True).indices
        order = order.gather(1, ranked)[:, :k]
        for name, both in kept.items():
            getattr(self, name)[units] = both.gather(1, order)
