"""Lightning callbacks of the optimisation: progress, checkpoints, loggers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from tqdm import tqdm

from vital_exp.engine.module import VisualizationModule
from vital_exp.images.output import as_image, to_uint8
from vital_exp.models.channels import as_rgb
from vital_exp.progress_bars import hidden

# Reading the loss synchronises with the GPU, and a few updates of the bar a second are enough.
STEPS_PER_UPDATE = 10
NO_KIND = ("total", "total_variation", "l2")  # names that do not tell losses apart: the sum, and priors of any method


class Progress(Callback):
    """One bar over all batches: pictures done, the loss, the time left.

    The bar appears with the first step, so that an earlier error message stands alone on the terminal.
    """

    def __init__(self, pictures: int, steps: int, batches: int, shown: bool) -> None:
        self.pictures = pictures
        self.steps = steps * batches
        self.shown = shown
        self.done = 0
        self.bar: tqdm | None = None

    def _describe(self) -> None:
        if self.bar is not None:
            self.bar.set_description(f"pictures {self.done}/{self.pictures}")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the bar, and advance it by the steps that a checkpoint has already done."""
        if self.bar is None:
            self.bar = tqdm(total=self.steps, unit="step", disable=hidden(self.shown), dynamic_ncols=True)
            self._describe()
        self.bar.update(trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Advance by one step; every ``STEPS_PER_UPDATE`` steps show the loss."""
        if self.bar is None or self.bar.disable:
            return
        if trainer.global_step % STEPS_PER_UPDATE == 0:
            self.bar.set_postfix(loss=f"{float(pl_module.latest_loss()):.4g}", refresh=False)
        self.bar.update(1)

    def add_done(self, pictures: int) -> None:
        """Count finished pictures."""
        self.done += pictures
        self._describe()

    def close(self) -> None:
        """Close the bar at its present count."""
        if self.bar is not None:
            self.bar.close()


class Checkpoint(Callback):
    """Saves the state of an unfinished batch at regular steps.

    Args:
        save: writes the trainer's state to disk.
        every: steps between checkpoints.
    """

    def __init__(self, save: Callable[[Trainer], None], every: int) -> None:
        self.save = save
        self.every = every

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Save after every ``every`` steps, but not after the last step: the finished pictures are saved then."""
        if trainer.global_step % self.every == 0 and trainer.global_step < pl_module.steps:
            self.save(trainer)


class LogTerms(Callback):
    """Sends the terms' means over the batch, and pictures at longer intervals, to Lightning loggers.

    Args:
        loggers: the loggers.
        first_step: number of steps in earlier batches; it is added, so that step numbers grow over the whole run.
        names: names of the batch's targets.
        every: steps between two logs of the terms.
        pictures_every: steps between two logs of the pictures.
        each: whether the terms of each target are sent too.
    """

    def __init__(
        self,
        loggers: Sequence[Logger],
        first_step: int,
        names: Sequence[str],
        every: int,
        pictures_every: int,
        each: bool = False,
    ) -> None:
        self.loggers, self.each = loggers, each
        self.first_step = first_step
        self.names = names
        self.every = every
        self.pictures_every = pictures_every

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Log what is due at this step."""
        step = trainer.global_step - 1
        last = trainer.global_step == pl_module.steps
        if step % self.every == 0 or last:
            terms = self._terms(pl_module, step)
            for logger in self.loggers:
                logger.log_metrics(terms, self.first_step + step)
        if step % self.pictures_every == 0 or last:
            log_pictures(self.loggers, pl_module, self.names, self.first_step + step)

    def _terms(self, module: Any, step: int) -> dict[str, float]:
        """The values of a step that loggers receive, by name.

        A name contains the kind of the loss (:func:`loss_kind`), so that losses of different kinds never share a panel.
        """
        count = len(self.names)
        means = module.terms_at(step, count)
        kind = loss_kind(means)
        sent = {f"loss/{kind}/{name}": value for name, value in means.items()}
        if self.each:
            for name, values in module.each_at(step, count).items():
                for target, value in zip(self.names, values, strict=True):
                    sent[f"targets/{target}/{kind}/{name}"] = value
        return sent


def loss_kind(terms: Iterable[str]) -> str:
    """Return the kind of a loss: the names of its terms without priors, joined by "+"; "priors" if none is left."""
    return "+".join(name for name in terms if name not in NO_KIND) or "priors"


@torch.no_grad()
def log_pictures(loggers: Sequence[Logger], module: VisualizationModule, names: Sequence[str], step: int) -> None:
    """Send the current pictures, uint8 as in their files, to the loggers of Weights & Biases and TensorBoard.

    Each target has its own panel, in which the pictures from all jobs of a sweep stand side by side.
    """
    preview = module.pictures.preprocessing.preview
    shown = as_rgb(module.pictures()[: len(names)].float(), preview)  # (n, 3, H, W)
    pictures = dict(zip(names, to_uint8(shown), strict=True))  # wandb cuts floats in [0, 1] to 0
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            import wandb

            images = {f"pictures/{name}": wandb.Image(as_image(picture)) for name, picture in pictures.items()}
            logger.experiment.log({**images, "trainer/global_step": step})
        elif isinstance(logger, TensorBoardLogger):
            for name, picture in pictures.items():
                logger.experiment.add_image(f"pictures/{name}", picture, step)
