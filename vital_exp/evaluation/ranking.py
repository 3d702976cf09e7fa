"""The area under the ROC curve."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
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


def auc_of_ranks(ranks: NDArray[np.float64], positive: NDArray[np.bool_]) -> Any:
    """Return the area under the ROC curve from ranks: that of :func:`auc`, for several scores of each item at once.

    Args:
        ranks: (N,) or (N, U), the ranks of N items from 1 by each score, ties at their mean rank.
        positive: (N,), which items are positive; at least one is, and at least one is not.

    Returns:
        A number, or (U,).

    Examples:
        >>> import numpy as np
        >>> from vital_exp.evaluation.ranking import auc_of_ranks
        >>> float(auc_of_ranks(np.array([1.0, 2.5, 2.5, 4.0]), np.array([False, False, True, True])))
        0.875
    """
    count = int(positive.sum())
    return (ranks[positive].sum(axis=0) - count * (count + 1) / 2) / (count * (len(positive) - count))
