"""The optimisation as a film: frames of a batch's pictures, and one animation file for each picture."""

from __future__ import annotations

from typing import IO, Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from vital_exp.images.output import as_image, to_uint8
from vital_exp.models.channels import as_rgb

FORMATS = {"gif": "GIF", "apng": "PNG"}  # value of movie: Pillow's name of the format
SUFFIXES = {"gif": "gif", "apng": "png"}
FRAMES = 60  # approximately: the film lasts some seconds
FRAME, LAST_FRAME = 80, 1500  # durations in ms


class Film(Callback):
    """Keeps about ``FRAMES`` frames of a batch's pictures; a checkpoint holds the frames too.

    Args:
        steps: number of optimisation steps.
    """

    def __init__(self, steps: int) -> None:
        self.every = max(1, steps // FRAMES)
        self.frames: list[Tensor] = []  # (N, 3, H, W) uint8 each

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Take a frame every ``every`` steps, and at the last step."""
        if (trainer.global_step - 1) % self.every == 0 or trainer.global_step == pl_module.steps:
            pictures = pl_module.pictures().float().clamp(0, 1)
            self.frames.append(to_uint8(as_rgb(pictures, pl_module.pictures.preprocessing.preview)))

    def state_dict(self) -> dict[str, Any]:
        """Return the frames, for a checkpoint."""
        return {"frames": self.frames}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the frames of a checkpoint."""
        self.frames = list(state_dict["frames"])

    def of(self, number: int) -> list[Tensor]:
        """Return the frames of one picture of the batch, by its number, each (3, H, W) uint8."""
        return [frame[number] for frame in self.frames]


def write_film(file: IO[bytes], frames: list[Tensor], kind: str) -> None:
    """Write frames (3, H, W) uint8 as an animation that loops and shows the last frame longer.

    Args:
        file: a binary file, open for writing.
        frames: the pictures in order.
        kind: one of ``FORMATS``.
    """
    images = [as_image(frame) for frame in frames]
    durations = [FRAME] * (len(images) - 1) + [LAST_FRAME]
    images[0].save(file, FORMATS[kind], save_all=True, append_images=images[1:], duration=durations, loop=0)
