"""What happens beside the optimisation: progress, checkpoints, loggers."""

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

# Reading the loss makes a device wait, and a bar needs no more than a few updates a second.
STEPS_PER_UPDATE = 10
NO_KIND = ("total", "total_variation", "l2")  # of a loss: its sum, and priors that every method may have


class Progress(Callback):
    """One bar over all batches: pictures done, the loss, the time left.

    It appears with the first step: a mistake that is found before is one line on a clean terminal.
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
        """Skip the steps a checkpoint has."""
        if self.bar is None:
            self.bar = tqdm(total=self.steps, unit="step", disable=hidden(self.shown), dynamic_ncols=True)
            self._describe()
        self.bar.update(trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Advance; now and then read the loss."""
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
        """Leave the bar as it is."""
        if self.bar is not None:
            self.bar.close()


class Checkpoint(Callback):
    """Keeps a half-made batch.

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
        """Save after every so many steps, but not after the last: then the pictures follow."""
        if trainer.global_step % self.every == 0 and trainer.global_step < pl_module.steps:
            self.save(trainer)


class LogTerms(Callback):
    """Sends the terms' means over the batch, and now and then pictures, to Lightning loggers.

    Args:
        loggers: where to.
        first_step: steps of the batches before, so that one run's steps only grow.
        names: the targets of the batch.
        every: steps between terms.
        pictures_every: steps between pictures.
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
        """What loggers are sent at a step, by name.

        The names say what the loss is of, "alignment" or "activation": losses of different kinds never share a panel.
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
    """Return what a loss of these terms is of: "alignment", "activation", or "priors" alone."""
    return "+".join(name for name in terms if name not in NO_KIND) or "priors"


@torch.no_grad()
def log_pictures(loggers: Sequence[Logger], module: VisualizationModule, names: Sequence[str], step: int) -> None:
    """Send the pictures as they are now, in the bytes of their files, to the loggers that can show them.

    Each target has a name of its own, so that a panel shows its pictures by all jobs of a sweep side by side.
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
