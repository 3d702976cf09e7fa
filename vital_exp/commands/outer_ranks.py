"""Which of several processes this one is, that something started as one job. Imports no torch where nothing did."""

from __future__ import annotations

import os
from contextlib import suppress

from vital_exp.errors import UsageError


def outer_ranks() -> tuple[int, int]:
    """Return this process's number, and how many there are, of the ranks that something started as one job."""
    if not {"LOCAL_RANK", "SLURM_NTASKS"} & set(os.environ):
        return 0, 1
    from vital_exp.visualization.starters import environment

    with suppress(UsageError):  # which the job tells
        if (started := environment()) is not None:
            return started.global_rank(), started.world_size()
    return 0, 1
