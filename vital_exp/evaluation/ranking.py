"""Area under the ROC curve: how well a score tells positives from negatives."""

from __future__ import annotations

import torch
from torch import Tensor


def auc(positive: Tensor, negative: Tensor) -> float:
    """Return the share of (positive, negative) pairs in which the positive is larger; ties count half.

    Args:
        positive, negative: (P,) and (Q,), at least one each.
    """
    ordered = negative.contiguous().sort().values
    below = torch.searchsorted(ordered, positive.contiguous(), right=False)
    not_above = torch.searchsorted(ordered, positive.contiguous(), right=True)
    wins = (below + not_above).double().sum() / 2
    return float(wins / (positive.numel() * negative.numel()))
