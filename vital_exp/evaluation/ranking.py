"""The area under the ROC curve."""

from __future__ import annotations

import torch
from torch import Tensor


def auc(positive: Tensor, negative: Tensor) -> float:
    """Return the area under the ROC curve: the share of pairs in which the positive is larger; ties count half.

    Args:
        positive, negative: scores (P,) and (Q,), at least one each.

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
