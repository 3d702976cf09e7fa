"""What started this process as one of several: torchrun, srun, or vital_exp itself; and what to type where none did."""

from __future__ import annotations

import os
import sys

from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)

from vital_exp.errors import UsageError

TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
SLURM = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS")
STEP_SIZE = "SLURM_STEP_NUM_TASKS"  # what one srun has started, where SLURM_NTASKS is what the job may start
STEP = "SLURM_STEP_ID"  # srun sets it, sbatch and salloc do not
SHELLS = ("bash", "interactive")  # names of SLURM jobs in which somebody types
MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS")


class SrunEnvironment(SLURMEnvironment):
    """Processes of one srun."""

    def __init__(self) -> None:
        # Lightning refuses --ntasks alone, for strategies that need as many ranks on every machine.
        os.environ.setdefault("SLURM_NTASKS_PER_NODE", os.environ["SLURM_NTASKS"])
        super().__init__()

    def world_size(self) -> int:
        """Return how many the step has."""
        return int(os.environ.get(STEP_SIZE, os.environ["SLURM_NTASKS"]))


def environment() -> ClusterEnvironment | None:
    """Return what started this process as one of several; None when it was started alone.

    Raises:
        UsageError: the environment variables that say so hold no such numbers.
    """
    found: ClusterEnvironment | None = None
    if TorchElasticEnvironment.detect():
        _check(TORCHRUN)
        found = TorchElasticEnvironment()
    elif set(TORCHRUN) <= set(os.environ):
        _check(TORCHRUN)
        found = LightningEnvironment()
        found.set_world_size(int(os.environ["WORLD_SIZE"]))
        found.set_global_rank(int(os.environ["RANK"]))
    elif set(SLURM) <= set(os.environ) and os.environ.get("SLURM_JOB_NAME") not in SHELLS:
        _check((*SLURM[:-1], STEP_SIZE if STEP_SIZE in os.environ else SLURM[-1]))
        found = SrunEnvironment()
    return found if found is not None and found.world_size() > 1 else None


def script_environment() -> ClusterEnvironment | None:
    """Return what started this Python script as one of several; None in a notebook, a console or SLURM without srun."""
    interactive = hasattr(sys, "ps1") or bool(sys.flags.interactive)
    started = None if interactive else environment()
    return None if isinstance(started, SrunEnvironment) and STEP not in os.environ else started


def _check(names: tuple[str, ...]) -> None:
    """Check the numbers of the rank, of the rank on its machine and of all ranks."""
    rank, _, size = names
    for name in names:
        value = os.environ.get(name, "0" if name != size else "1")
        if not value.isdecimal():
            raise UsageError(
                name, value, f"a whole number; unset {' '.join(names)} where nothing started several ranks"
            )
    if int(os.environ.get(rank, 0)) >= int(os.environ.get(size, 1)) > 1:
        raise UsageError(rank, os.environ[rank], f"{size}={os.environ[size]} ranks are numbered from 0")


def said_by(started: ClusterEnvironment) -> tuple[str, int]:
    """Return the environment variable that says how many ranks there are, and how many."""
    slurm = STEP_SIZE if STEP_SIZE in os.environ else SLURM[-1]
    return (slurm if isinstance(started, SrunEnvironment) else "WORLD_SIZE"), started.world_size()


def how_to_start(started: ClusterEnvironment) -> str:
    """Return what to type to start the ranks, or to have none."""
    size = started.world_size()
    if isinstance(started, SrunEnvironment):
        return f"type srun --ntasks={size} before the command to start them, or unset SLURM_NTASKS to have none"
    more = " TORCHELASTIC_RUN_ID" if TorchElasticEnvironment.detect() else ""
    start = f"torchrun --nproc-per-node={size} -m vital_exp visualize ..."
    return f"type {start} to start them, or unset {' '.join(TORCHRUN)}{more} to have none"


def mpi_processes() -> str:
    """Return a line for processes that mpirun started, which do not share the targets; empty for others."""
    for name in MPI_SIZES:
        size = os.environ.get(name, "")
        if size.isdecimal() and int(size) > 1:
            instead = f"torchrun --nproc-per-node={size} -m vital_exp visualize ..., or srun, starts ranks that do"
            return f"{name}={size}: processes of mpirun do not share the targets, this one makes them all; {instead}"
    return ""
