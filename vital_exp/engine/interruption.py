"""The response to Ctrl-C and SIGTERM: the current step ends, the unfinished batch is saved, and the job ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption(Callback):
    """Ends the optimisation after the current step on a first signal, and at once on a second Ctrl-C.

    Args:
        save: saves the unfinished batch; None saves nothing.

    Attributes:
        asked: whether a signal came.
    """

    def __init__(self, save: Callable[[Trainer], None] | None) -> None:
        self.save = save
        self.asked = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install the signal handlers; Lightning restores the earlier handlers after the fit."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._ask)

    def _ask(self, number: int, _frame: object) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Save the batch and end the fit if a signal came."""
        if self.asked and trainer.global_step < pl_module.steps:
            if self.save:
                self.save(trainer)
            trainer.should_stop = True
