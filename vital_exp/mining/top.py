"""The running top k of many units; memory is units x k, whatever the number of values."""

from __future__ import annotations

import torch
from torch import Tensor

NOTHING = -1  # the number in a place that is free, as fewer than k values were added
UNITS_AT_ONCE = 512  # sorted together


class TopK:
    """The k largest values of each unit, and the numbers that were added with them.

    Equal values are ordered by their second values, descending; if these are equal too, by the order of addition.

    Attributes:
        values: (U, k) float32, descending; -inf in free places.
        seconds: (U, k) float32, the second values, which break ties.
        numbers: (U, k) int64; NOTHING in free places.
    """

    def __init__(self, units: int, k: int, device: torch.device | str = "cpu") -> None:
        self.values = torch.full((units, k), -torch.inf, device=device)
        self.seconds = torch.zeros(units, k, device=device)
        self.numbers = torch.full((units, k), NOTHING, dtype=torch.int64, device=device)

    def add(self, values: Tensor, numbers: Tensor, seconds: Tensor | None = None) -> None:
        """Add values (N, U) with their numbers (N, U) or (N,) and second values (N, U); NaN never ranks."""
        values = torch.where(values.isnan(), -torch.inf, values.float()).T  # (U, N)
        seconds = torch.zeros_like(values) if seconds is None else seconds.float().nan_to_num().T
        seconds = torch.where(values == -torch.inf, -torch.inf, seconds)  # free places, whose second is 0, rank above
        numbers = (numbers[:, None] if numbers.ndim == 1 else numbers).T.expand_as(values)
        # Once many images have passed, few units change: only these are sorted.
        last, second = self.values[:, -1:], self.seconds[:, -1:]
        changed = ((values > last) | ((values == last) & (seconds > second))).any(dim=1).nonzero().flatten()
        for units in changed.split(UNITS_AT_ONCE):
            self._rank(units, values, numbers, seconds)

    def _rank(self, units: Tensor, values: Tensor, numbers: Tensor, seconds: Tensor) -> None:
        """Rank new values (U, N) of some units among those that are kept."""
        k = self.values.shape[1]
        joined = {
            "values": torch.cat([self.values[units], values[units]], dim=1),  # (changed, k + N)
            "seconds": torch.cat([self.seconds[units], seconds[units]], dim=1),
            "numbers": torch.cat([self.numbers[units], numbers[units]], dim=1),
        }
        # Two stable sorts, by the second key and then by the first, order by both keys.
        order = joined["seconds"].sort(dim=1, descending=True, stable=True).indices
        ranked = joined["values"].gather(1, order).sort(dim=1, descending=True, stable=True).indices
        order = order.gather(1, ranked)[:, :k]
        for name, old_and_new in joined.items():
            getattr(self, name)[units] = old_and_new.gather(1, order)
