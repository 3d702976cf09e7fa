"""The environments that start several ranks (torchrun, srun, vital_exp itself), and hints how to start ranks."""

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
STEP_SIZE = "SLURM_STEP_NUM_TASKS"  # the number of tasks of one srun; SLURM_NTASKS is the number of the whole job
STEP = "SLURM_STEP_ID"  # set by srun, not by sbatch and salloc
SHELLS = ("bash", "interactive")  # names of interactive SLURM jobs
MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS")


class SrunEnvironment(SLURMEnvironment):
    """The processes that one srun has started."""

    def __init__(self) -> None:
        # Lightning refuses --ntasks without --ntasks-per-node: some strategies need equally many ranks per machine.
        os.environ.setdefault("SLURM_NTASKS_PER_NODE", os.environ["SLURM_NTASKS"])
        super().__init__()

    def world_size(self) -> int:
        """Return the number of processes of the SLURM step."""
        return int(os.environ.get(STEP_SIZE, os.environ["SLURM_NTASKS"]))


def environment() -> ClusterEnvironment | None:
    """Return the environment that started this process as one of several ranks; None if it was started alone.

    Raises:
        UsageError: an environment variable with a number of ranks, or of this rank, is not valid.
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
    """Return :func:`environment` for a Python script; None in a notebook, in a console, or in SLURM without srun."""
    interactive = hasattr(sys, "ps1") or bool(sys.flags.interactive)
    started = None if interactive else environment()
    return None if isinstance(started, SrunEnvironment) and STEP not in os.environ else started


def _check(names: tuple[str, ...]) -> None:
    """Check the three variables: number of the rank, its number on its machine, and number of ranks.

    Raises:
        UsageError: not a whole number, or a rank that is not below the number of ranks.
    """
    rank, _, size = names
    for name in names:
        value = os.environ.get(name, "0" if name != size else "1")
        if not value.isdecimal():
            wanted = f"must be a whole number; for a single process: unset {' '.join(names)}"
            raise UsageError(name, value, wanted)
    if int(os.environ.get(rank, 0)) >= int(os.environ.get(size, 1)) > 1:
        raise UsageError(rank, os.environ[rank], f"must be below {size}={os.environ[size]}: ranks are numbered from 0")


def said_by(started: ClusterEnvironment) -> tuple[str, int]:
    """Return the environment variable with the number of ranks, and this number."""
    slurm = STEP_SIZE if STEP_SIZE in os.environ else SLURM[-1]
    return (slurm if isinstance(started, SrunEnvironment) else "WORLD_SIZE"), started.world_size()


def how_to_start(started: ClusterEnvironment) -> str:
    """Return a hint: how to start the ranks, and how to run without ranks."""
    size = started.world_size()
    if isinstance(started, SrunEnvironment):
        return f"type srun --ntasks={size} before the command to start the ranks, or unset SLURM_NTASKS for one process"
    more = " TORCHELASTIC_RUN_ID" if TorchElasticEnvironment.detect() else ""
    start = f"torchrun --nproc-per-node={size} -m vital_exp visualize ..."
    return f"type {start} to start the ranks, or unset {' '.join(TORCHRUN)}{more} for one process"


def mpi_processes() -> str:
    """Return a warning for processes that mpirun started, which do not share the targets; '' for other processes."""
    for name in MPI_SIZES:
        size = os.environ.get(name, "")
        if size.isdecimal() and int(size) > 1:
            instead = f"start them by torchrun --nproc-per-node={size} -m vital_exp visualize ..., or by srun"
            return f"{name}={size}: processes of mpirun do not share the targets, each makes them all; {instead}"
    return ""
