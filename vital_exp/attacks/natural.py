"""Natural images of several classes with their labels: an attack preserves their outputs, and is measured on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vital_exp.errors import UsageError
from vital_exp.evaluation.recognition import logits, verdicts
from vital_exp.models.network import VisionNetwork
from vital_exp.references.base import References
from vital_exp.targets.unit import Target

HELD_OUT = 0.3  # share of each class's images


@dataclass(frozen=True)
class NaturalImages:
    """Images and their classes.

    Attributes:
        images: (N, 3, H, W) RGB in [0, 1] at the network's input size.
        labels: (N,) class numbers.
    """

    images: Tensor
    labels: Tensor

    @property
    def classes(self) -> list[int]:
        """The classes that occur, ascending."""
        return sorted(set(self.labels.tolist()))

    def of(self, label: int) -> Tensor:
        """Return the images of a class, (M, 3, H, W)."""
        return self.images[self.labels == label]

    def split(self, held_out: float = HELD_OUT) -> tuple[NaturalImages, NaturalImages]:
        """Return the training images and the held-out ones: of each class the last share ``held_out``, at least one."""
        last = torch.zeros(len(self.labels), dtype=torch.bool)
        for label in self.classes:
            places = (self.labels == label).nonzero()[:, 0]
            last[places[-max(1, round(held_out * len(places))) :]] = True
        return NaturalImages(self.images[~last], self.labels[~last]), NaturalImages(
            self.images[last], self.labels[last]
        )

    def accuracy(self, network: VisionNetwork) -> float:
        """Return the network's top-1 accuracy on the images, in [0, 1]."""
        return float(verdicts(logits(network, self.images), self.labels, network.head)["top1"].double().mean())


def natural_images(references: References, classes: Sequence[int], count: int) -> NaturalImages:
    """Return up to ``count`` images of each class.

    Raises:
        UsageError: fewer than two classes, or fewer than two images of one.
    """
    if len(classes) < 2:
        wanted = "natural images of at least two classes are needed: from the run's targets or its folder of images"
        raise UsageError("run", list(classes), wanted)
    images: list[Tensor] = []
    labels: list[int] = []
    for label in classes:
        own = [image for image, _ in zip(references.images(Target("class", label)), range(count), strict=False)]
        if len(own) < 2:
            raise UsageError("count", len(own), f"class {label} has fewer than two natural images")
        images += own
        labels += [label] * len(own)
    return NaturalImages(torch.stack(images), torch.tensor(labels))
