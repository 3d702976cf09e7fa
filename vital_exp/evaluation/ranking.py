"""Area under the ROC curve: how well a score tells positives from negatives."""

from __future__ import annotations

import torch
from torch import Tensor


def auc(positive: Tensor, negative: Tensor) -> float:
    """Return the share of (positive, negative) pairs in which the positive is larger; ties count half.

    Args:
        positive, negative: (P,) and (Q,), at least one each.

    Examples:
        >>> import torch
        >>> from vital_exp.evaluation.ranking import auc
        >>> auc(torch.tensor([2.0, 3.0]), torch.tensor([0.0, 2.0]))  # three pairs won, one is a tie
        0.875
    """
    ordered = negative.contiguous().sort().values
    below = torch.searchsorted(ordered, positive.contiguous(), right=False)
    not_above = torch.searchsorted(ordered, positive.contiguous(), right=True)
    wins = (below + not_above).double().sum() / 2
    return float(wins / (positive.numel() * negative.numel()))
