"""The optimisation of one batch by Lightning, which ends finished, interrupted, or with an error message."""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from lightning.pytorch import Callback, Trainer

from vital_exp.engine.callbacks import Checkpoint
from vital_exp.engine.interruption import Interruption
from vital_exp.engine.module import VisualizationModule
from vital_exp.errors import UsageError
from vital_exp.models.refusals import unsupported
from vital_exp.runs.checkpoints import Checkpoints
from vital_exp.setup.run_setup import RunSetup

# Lightning gives these warnings for every batch, and a user can do nothing about them.
LIGHTNING_WARNINGS = (
    r".*LeafSpec.*",  # Lightning 2.6 calls a function that torch 2.15 deprecates
    r"(GPU|MPS) available but not used",  # the user chose the accelerator
    r".*resuming from a checkpoint that ended before the epoch ended.*",  # the module counts its steps itself
)


def fit(
    setup: RunSetup,
    module: VisualizationModule,
    names: Sequence[str],
    callbacks: Sequence[Callback],
    checkpoints: Checkpoints | None = None,
) -> None:
    """Optimise a batch of pictures, from its checkpoint on if there is one.

    Args:
        setup: of the run.
        module: the module of the batch.
        names: names of the batch's targets, which identify its checkpoint.
        callbacks: further callbacks of Lightning's trainer.
        checkpoints: the checkpoints of unfinished batches; None saves none.

    Raises:
        UsageError: out of memory; an operation that the network's device or precision does not support.
        KeyboardInterrupt: a signal came; the unfinished batch is saved.
    """
    callbacks, begun, save = list(callbacks), None, None
    if checkpoints:
        save = partial(_save, checkpoints, names)
        callbacks.append(Checkpoint(save, setup.checkpoint_every))
        begun = checkpoints.begin(names)
    interruption = Interruption(save)
    try:
        with quiet_lightning(), _interruptible(), _explained(setup, module):
            trainer = setup.trainer([*callbacks, interruption])
            trainer.fit(module, ckpt_path=begun, weights_only=True if begun else None)
    finally:
        module.trainer = None  # breaks a reference cycle, which would keep the batch's tensors in memory
    if interruption.asked:
        raise KeyboardInterrupt


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Suppress the messages and warnings that Lightning prints for every batch."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for message in LIGHTNING_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        yield


@contextmanager
def _interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt instead of Lightning's SystemExit on Ctrl-C, and restore Python's signal handler."""
    try:
        yield
    except SystemExit as ending:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        raise KeyboardInterrupt from ending


@contextmanager
def _explained(setup: RunSetup, module: VisualizationModule) -> Iterator[None]:
    """Turn errors that a user can avoid into a UsageError."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        _explain_memory(error, len(module.objective.streams.names), module.objective.views_per_pass)
        if told := unsupported(setup.network, error):
            raise told from error
        raise


def _explain_memory(error: BaseException, batch_size: int, views_per_pass: int) -> None:
    """Raise UsageError if ``error`` means that memory ran out."""
    text = str(error).lower()
    if (
        isinstance(error, (MemoryError, torch.OutOfMemoryError))
        or "out of memory" in text
        or "can't allocate memory" in text
    ):
        smaller = f"try batch_size={batch_size // 2}" if batch_size > 1 else "try a smaller image.size"
        advice = "try views_per_pass=1" if views_per_pass > 1 else smaller
        raise UsageError("batch_size", batch_size, f"out of memory: {advice}") from error


def _save(checkpoints: Checkpoints, names: Sequence[str], trainer: Trainer) -> None:
    checkpoints.save(names, trainer.save_checkpoint)
