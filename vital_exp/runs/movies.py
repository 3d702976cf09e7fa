"""The optimisation as a film: frames of the pictures on their way, and the file of each."""

from __future__ import annotations

from typing import IO, Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from vital_exp.images.output import as_image, to_uint8
from vital_exp.models.channels import as_rgb

FORMATS = {"gif": "GIF", "apng": "PNG"}  # option: Pillow's name
SUFFIXES = {"gif": "gif", "apng": "png"}
FRAMES = 60  # about: a film of some seconds, which browsers and slides take
FRAME, LAST_FRAME = 80, 1500  # milliseconds


class Film(Callback):
    """Keeps the pictures of a batch every so many steps; a checkpoint takes them along.

    Args:
        steps: of the optimisation.
    """

    def __init__(self, steps: int) -> None:
        self.every = max(1, steps // FRAMES)
        self.frames: list[Tensor] = []  # (N, 3, H, W) uint8 each

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Take a frame if one is due; the last step always is."""
        if (trainer.global_step - 1) % self.every == 0 or trainer.global_step == pl_module.steps:
            pictures = pl_module.pictures().float().clamp(0, 1)
            self.frames.append(to_uint8(as_rgb(pictures, pl_module.pictures.preprocessing.preview)))

    def state_dict(self) -> dict[str, Any]:
        """Return the frames, for a checkpoint."""
        return {"frames": self.frames}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the frames of a checkpoint back."""
        self.frames = list(state_dict["frames"])

    def of(self, number: int) -> list[Tensor]:
        """Return the frames of one picture of the batch, (3, H, W) uint8 each."""
        return [frame[number] for frame in self.frames]


def write_film(file: IO[bytes], frames: list[Tensor], kind: str) -> None:
    """Write frames (3, H, W) uint8 as an animation that repeats and rests on its last frame.

    Args:
        file: open for writing.
        frames: the pictures in order.
        kind: one of ``FORMATS``.
    """
    images = [as_image(frame) for frame in frames]
    durations = [FRAME] * (len(images) - 1) + [LAST_FRAME]
    images[0].save(file, FORMATS[kind], save_all=True, append_images=images[1:], duration=durations, loop=0)
