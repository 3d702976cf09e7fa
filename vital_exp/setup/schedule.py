"""Learning rates: a linear warm-up, then a cosine decay to zero (docs/methods/vital.md) or a constant rate."""

from __future__ import annotations

import math
from collections.abc import Callable

WARMUP_STEPS = 100  # for runs of any length
SCHEDULES = ("cosine", "constant")


def learning_rate(
    step: int, steps: int, *, peak: float = 1.0, warmup: int = WARMUP_STEPS, schedule: str = "cosine"
) -> float:
    """Return the rate of step ``step`` (from 0) of ``steps``.

    peak * (step + 1) / warmup while step < warmup, then peak * (1 + cos(pi (step - warmup) / (steps - warmup))) / 2, or
    with the schedule ``"constant"`` peak.

    Examples:
        >>> from vital_exp.setup.schedule import learning_rate
        >>> [learning_rate(step, 300) for step in (0, 99, 100, 200)]
        [0.01, 1.0, 1.0, 0.5]
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule == "constant":
        return peak
    return peak * 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def restarted(rate: Callable[..., float], steps: int, at: int) -> Callable[[int], float]:
    """Return a schedule that runs twice: over the steps before ``at``, and over the steps from ``at`` on.

    Args:
        rate: :func:`learning_rate`, possibly with some arguments fixed.
        steps: number of steps of the run.
        at: the step at which the schedule starts again.

    Examples:
        >>> from functools import partial
        >>> from vital_exp.setup.schedule import learning_rate, restarted
        >>> rate = restarted(partial(learning_rate, warmup=0), 8, at=4)
        >>> [round(rate(step), 2) for step in range(8)]
        [1.0, 0.85, 0.5, 0.15, 1.0, 0.85, 0.5, 0.15]
    """
    return lambda step: rate(step, at) if step < at else rate(step - at, steps - at)
