"""The machine interpretability score (MIS): how well a machine solves the two-alternative task that people are given.

Zimmermann, Klindt, Brendel, "Measuring Mechanistic Interpretability at Scale Without Humans", 2024; formula and
constants: docs/methods/metrics.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vital_exp.evaluation.score import NotComputed

TASKS = 20  # per unit
REFERENCES = 9  # K, references on each side of a task
# The largest share of all images on one side of the tasks (ours). The published 200 are extremes among 1.2 million
# images; among 500 they would be nearly half.
SHARE = 0.1
# That the published 0.16 divides is our reading; re-implementations multiply by it. ``fraction`` does not depend on it.
TEMPERATURE = 0.16


@dataclass(frozen=True)
class Task:
    """One task, in numbers of natural images: on each side, strong and weak, K references and one query."""

    strong: Tensor  # (K,)
    weak: Tensor  # (K,)
    strong_query: int
    weak_query: int


@dataclass(frozen=True)
class Interpretability:
    """One unit's interpretability: the mean probability of the right answer, and the share of right answers."""

    score: float
    fraction: float


def tasks(activations: Tensor, seed: int = 0, count: int = TASKS) -> Iterator[Task]:
    """Yield the tasks of a unit, sampled as in the IMI data set.

    Natural images are sorted by activation. The strongest 10 * count and the weakest 10 * count are split into 10 bins
    each, and a task takes one image of each bin. The image of the most extreme bin is the query (our reading), the
    other nine are the references. A side has at most a tenth of all images: below 2,000 images there are fewer tasks.

    Args:
        activations: (M,), the unit's activations on natural images.
        seed: decides which image of a bin goes to which task.
        count: the largest number of tasks.

    Raises:
        NotComputed: there are fewer than 20 images.
    """
    bins = REFERENCES + 1
    count = min(count, max(1, int(SHARE * len(activations)) // bins))
    if len(activations) < 2 * bins:
        raise NotComputed(f"needs at least {2 * bins} natural images, and there are {len(activations)}")
    order = activations.argsort(descending=True, stable=True)
    generator = torch.Generator().manual_seed(seed)
    strong = _dealt(order[: count * bins], count, generator)
    weak = _dealt(order.flip(0)[: count * bins], count, generator)
    for number in range(count):
        plus, minus = strong[:, number], weak[:, number]
        yield Task(plus[1:], minus[1:], int(plus[0]), int(minus[0]))


def _dealt(ordered: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Images split into bins, each shuffled, (bins, count): a column holds the images of one task."""
    bins = ordered.view(-1, count)
    return torch.stack([one[torch.randperm(count, generator=generator)] for one in bins])


def natural_interpretability(features: Tensor, activations: Tensor, seed: int = 0) -> Interpretability:
    """Return the score of a unit that natural images explain: the ceiling for its pictures.

    Args:
        features: (M, D), embeddings of natural images, compared by their cosines.
        activations: (M,), the unit's activations on natural images.
        seed: see :func:`tasks`.

    Raises:
        NotComputed: there are fewer than 20 natural images.
    """
    unit = _unit(features)
    margins = []
    for task in tasks(activations, seed):
        direction = unit[task.strong].mean(dim=0) - unit[task.weak].mean(dim=0)
        margins.append(_margin(unit, task, direction))
    return _interpretability(margins)


def picture_interpretability(
    features: Tensor, activations: Tensor, pictures: Tensor, others: Tensor, seed: int = 0
) -> Interpretability:
    """Return the score of a unit that its pictures explain, on the same queries.

    The unit's pictures replace the strong references. Pictures of other units replace the weak ones, because minimising
    pictures are rarely made.

    Args:
        features, activations, seed: see :func:`natural_interpretability`.
        pictures: (P, D), embeddings of the unit's pictures.
        others: (Q, D), embeddings of pictures of other units.

    Raises:
        NotComputed: there are fewer than 20 natural images, or no picture of another unit.
    """
    if not len(others):
        raise NotComputed("needs pictures of at least 2 units, and there is 1")
    unit = _unit(features)
    direction = _unit(pictures).mean(dim=0) - _unit(others).mean(dim=0)
    return _interpretability([_margin(unit, task, direction) for task in tasks(activations, seed)])


def _margin(unit: Tensor, task: Task, direction: Tensor) -> float:
    """D(q+) - D(q-), D the mean similarity to the strong references minus that to the weak ones, q @ direction."""
    return float((unit[task.strong_query] - unit[task.weak_query]) @ direction)


def _interpretability(margins: list[float]) -> Interpretability:
    found = torch.tensor(margins, dtype=torch.float64)
    # A tie counts half, the expectation of a guess.
    right = (found > 0).double() + (found == 0).double() / 2
    return Interpretability(float((found / TEMPERATURE).sigmoid().mean()), float(right.mean()))


def _unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows.double(), dim=1)
