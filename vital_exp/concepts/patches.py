"""Activations of patches: a layer's mean activation for each window of images, enlarged to the network's input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vital_exp.errors import UsageError
from vital_exp.images.output import resized
from vital_exp.mining.images import ImageFolder
from vital_exp.mining.patches import Box, PatchSettings, crops
from vital_exp.models.network import VisionNetwork, model_space
from vital_exp.models.precision import exact
from vital_exp.models.taps import Taps
from vital_exp.progress_bars import hidden
from vital_exp.references.decoding import printable


@dataclass(frozen=True)
class PatchActivations:
    """Reads a layer's activation for each patch of the images of a folder, the mean over positions.

    Attributes:
        network: the frozen network, on its device.
        layer: module name.
        folder: the images.
        patch: which windows are read.
        limit: the most patches that are read; of more, a random choice.
        seed: of the random choice.
        batch_size: patches in the network at once.
        workers: processes that decode images.
        progress: whether a progress bar is shown on a terminal.
        check: called with each image's activations (n, C); raises for those that cannot be used, before all are read.
    """

    network: VisionNetwork
    layer: str
    folder: ImageFolder
    patch: PatchSettings
    limit: int
    seed: int = 0
    batch_size: int = 32
    workers: int = 0
    progress: bool = False
    check: Callable[[Tensor], None] | None = None

    def __call__(self) -> Tensor:
        """Return the activations of n patches, (n, C) float32 on the CPU; tokens are positions.

        Raises:
            UsageError: no image can be read.
        """
        boxes = self.patch.windows(*self.network.preprocessing.size)
        chosen = self._chosen(len(self.folder.paths), len(boxes))
        taps, found = self.network.taps([self.layer], "layers"), []
        numbers = sorted(chosen)
        bar = tqdm(total=len(numbers), desc="patches", unit="image", disable=hidden(self.progress))
        with bar, torch.inference_mode():
            for batch in self.folder.batches(numbers, 1, self.workers):
                if batch.pixels is not None:
                    image = batch.rgb(self.network.device)
                    found.append(self._of(taps, image, [boxes[i] for i in chosen[int(batch.numbers[0])]]))
                    if self.check:
                        self.check(found[-1])
                bar.update(batch.count)
        if not found:
            raise UsageError(self.folder.key, printable(self.folder.root), "none of its images can be read")
        return torch.cat(found)

    def _of(self, taps: Taps, image: Tensor, boxes: Sequence[Box]) -> Tensor:
        """Return the activations (n, C) of boxes of an image (1, C, H, W)."""
        windows = crops(image, boxes)[0]  # (n, C, side, side)
        size = self.network.preprocessing.size
        parts = [
            exact(taps(model_space(resized(chunk, size), self.network))[0][self.layer]).flatten(2).mean(dim=2)
            for chunk in windows.split(self.batch_size)
        ]
        return torch.cat(parts).float().cpu()

    def _chosen(self, images: int, windows: int) -> dict[int, list[int]]:
        """Return by number of an image the numbers of its windows that are read."""
        everything = images * windows
        order: Sequence[int] = range(everything)
        if everything > self.limit:
            order = sorted(np.random.default_rng(self.seed).choice(everything, self.limit, replace=False).tolist())
        chosen: dict[int, list[int]] = {}
        for number in order:
            chosen.setdefault(number // windows, []).append(number % windows)
        return chosen
