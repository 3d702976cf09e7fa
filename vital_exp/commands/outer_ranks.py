"""The rank of this process, where a launcher outside vital_exp has started several as one job.

Imports no torch in a process that stands alone.
"""

from __future__ import annotations

import os
from contextlib import suppress

from vital_exp.errors import UsageError


def outer_ranks() -> tuple[int, int]:
    """Return this process's rank, and the number of ranks; (0, 1) for a process that stands alone."""
    if not {"LOCAL_RANK", "SLURM_NTASKS"} & set(os.environ):
        return 0, 1
    from vital_exp.visualization.starters import environment

    with suppress(UsageError):  # the job reports the mistake
        if (started := environment()) is not None:
            return started.global_rank(), started.world_size()
    return 0, 1
