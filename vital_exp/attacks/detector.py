"""The detector of the fooling circuit: is an input a natural image, or a picture under optimisation?

Geirhos et al., ICML 2024; formulas and constants: docs/methods/attacks.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel

from vital_exp.models.channels import RGB

# Channels and kernels of Geirhos et al. 2024: 3 -> 16, four strided 16 -> 16, 16 -> 3. The padding is ours: without it
# nothing is left of a 32 px input.
CHANNELS, FIRST_KERNEL, STRIDED, STRIDED_KERNEL, LAST_CHANNELS = 16, 3, 4, 5, 3
DROPOUT = 0.3
BATCHES_PER_PASS = 4


@dataclass(frozen=True)
class DetectorTraining:
    """How a detector is trained; the defaults are those of Geirhos et al. 2024.

    Attributes:
        epochs: passes over the images.
        least_updates: epochs are added up to this number of updates (ours: the published set of images is large).
        batch_size: images per update, half natural images and half pictures.
        lr, momentum, weight_decay: of SGD.
    """

    epochs: int = 8
    least_updates: int = 500
    batch_size: int = 64
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-5


class Detector(nn.Module):
    """A small convolutional classifier of normalised images; a score above 0 means natural.

    Args:
        size: (height, width) of its input in px; other images are resized.
        channels: C, the image channels.
    """

    def __init__(self, size: tuple[int, int], channels: int = RGB) -> None:
        super().__init__()
        self.size = size
        layers: list[nn.Module] = [nn.Conv2d(channels, CHANNELS, FIRST_KERNEL, padding=FIRST_KERNEL // 2), nn.ReLU()]
        for _ in range(STRIDED):
            strided = nn.Conv2d(CHANNELS, CHANNELS, STRIDED_KERNEL, stride=2, padding=STRIDED_KERNEL // 2)
            layers += [strided, nn.ReLU()]
        layers += [nn.Conv2d(CHANNELS, LAST_CHANNELS, FIRST_KERNEL, padding=FIRST_KERNEL // 2), nn.ReLU()]
        self.features = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(DROPOUT))
        with torch.no_grad():
            width = self.features(torch.zeros(1, channels, *size)).shape[1]
        self.linear = nn.Linear(width, 1)

    def forward(self, pictures: Tensor) -> Tensor:
        """Return (N,) scores of normalised pictures (N, C, H, W)."""
        if tuple(pictures.shape[-2:]) != self.size:
            pictures = functional.interpolate(pictures, self.size, mode="bilinear", antialias=True)
        scores: Tensor = self.linear(self.features(pictures))[:, 0]
        return scores

    @torch.no_grad()
    def natural(self, pictures: Tensor) -> Tensor:
        """Return E, the hard decision (N,): 1 for a natural image, 0 for a picture; it has no gradient."""
        decided: Tensor = (self(pictures) > 0).to(pictures.dtype)
        return decided


def train_detector(
    natural: Tensor, pictures: Tensor, seed: int = 0, training: DetectorTraining | None = None
) -> Detector:
    """Train a detector on equally many natural images and pictures: an epoch repeats the images of the smaller set.

    Two additions of ours help where there are few images: half of each batch is mirrored, and the returned weights
    are averaged over the second half of the training.

    Args:
        natural: (N, C, H, W) normalised natural images.
        pictures: (M, C, H, W) normalised pictures.
        seed: seeds the initial weights, the order and the dropout.
        training: the settings; None: the defaults.
    """
    training = training or DetectorTraining()
    size = (natural.shape[-2], natural.shape[-1])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        detector = Detector(size, natural.shape[1]).train()
        optimizer = torch.optim.SGD(
            detector.parameters(), training.lr, training.momentum, weight_decay=training.weight_decay
        )
        updates = -(-max(len(natural), len(pictures)) // max(1, training.batch_size // 2))
        epochs, averaged = max(training.epochs, -(-training.least_updates // updates)), AveragedModel(detector)
        for epoch in range(epochs):
            for _ in _updates(detector, optimizer, natural, pictures, training.batch_size):
                if 2 * epoch >= epochs - 1:
                    averaged.update_parameters(detector)
    mean = averaged.module
    assert isinstance(mean, Detector)
    return mean.eval()


def _updates(
    detector: Detector, optimizer: torch.optim.Optimizer, natural: Tensor, pictures: Tensor, size: int
) -> Iterator[None]:
    """One epoch: a pass over the larger set, with as many images of the smaller; yields after each update."""
    length, half = max(len(natural), len(pictures)), max(1, size // 2)
    orders = [_order(len(side), length) for side in (natural, pictures)]
    for start in range(0, length, half):
        real, made = (
            _mirrored(side[order[start : start + half]])
            for side, order in zip((natural, pictures), orders, strict=True)
        )
        truth = torch.cat([torch.ones(len(real)), torch.zeros(len(made))])
        loss = functional.binary_cross_entropy_with_logits(detector(torch.cat([real, made])), truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield


def _mirrored(images: Tensor) -> Tensor:
    """Mirror each image (N, C, H, W) with probability one half."""
    return torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, images.flip(dims=(3,)), images)


def _order(count: int, length: int) -> Tensor:
    """Return ``length`` of ``count`` places in random order; a place comes again when all others have come as often."""
    rounds = -(-length // count)
    return torch.cat([torch.randperm(count) for _ in range(rounds)])[:length]


def detector_accuracy(detector: Detector, natural: Tensor, pictures: Tensor) -> float:
    """Return the balanced accuracy: the mean of the accuracies on natural images and on pictures, both normalised."""
    shares = []
    for inputs, truth in ((natural, 1.0), (pictures, 0.0)):
        decisions = torch.cat([detector.natural(part) for part in inputs.split(256)])
        shares.append(float((decisions == truth).double().mean()))
    return sum(shares) / len(shares)
