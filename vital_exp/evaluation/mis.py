"""The machine interpretability score: would a machine pass the two-alternative task that people are given?

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
REFERENCES = 9  # K, on each side of a task
# Images on one side, at most, of all: of 1.2 million the published 200 are extremes, of 500 they would be nearly half.
SHARE = 0.1
# The published 0.16 as a temperature is our reading; re-implementations multiply by it. ``fraction`` is free of it.
TEMPERATURE = 0.16


@dataclass(frozen=True)
class Task:
    """Indices of natural images: K references and one query on each side."""

    strong: Tensor  # (K,)
    weak: Tensor  # (K,)
    strong_query: int
    weak_query: int


@dataclass(frozen=True)
class Interpretability:
    """Of one unit: the mean probability of the right answer, and the share of right answers."""

    score: float
    fraction: float


def tasks(activations: Tensor, seed: int = 0, count: int = TASKS) -> Iterator[Task]:
    """Yield the tasks of a unit, sampled as in IMI.

    Natural images are sorted by activation; the strongest 10 * count and the weakest are cut into 10 bins each, and a
    task takes one image of each bin. The one of the most extreme bin is the query (our reading), the other nine are
    graded references. A side has at most a tenth of all images, so with fewer than 2,000 there are fewer tasks.

    Args:
        activations: (M,) of the unit for natural images.
        seed: which image of a bin goes to which task.
        count: tasks.

    Raises:
        NotComputed: fewer than 20 images.
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
    """Bins of ``count`` images, each shuffled: (bins, count); a column is a task."""
    bins = ordered.view(-1, count)
    return torch.stack([one[torch.randperm(count, generator=generator)] for one in bins])


def natural_interpretability(features: Tensor, activations: Tensor, seed: int = 0) -> Interpretability:
    """Return the score of a unit explained by natural images: the ceiling of pictures.

    Args:
        features: (M, D) embeddings of natural images; cosines are their similarities.
        activations: (M,) of the unit.
        seed: of the tasks.

    Raises:
        NotComputed: fewer than 20 natural images.
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
    """Return the score of a unit explained by its pictures, on the same queries.

    Pictures take the place of strong references; in the place of weak ones, for which minimising pictures are rarely
    made, are the pictures of other units.

    Args:
        features, activations, seed: as above.
        pictures: (P, D) embeddings of the unit's pictures.
        others: (Q, D) those of other units.

    Raises:
        NotComputed: fewer than 20 natural images, or no other unit.
    """
    if not len(others):
        raise NotComputed("needs pictures of at least 2 units, and there is 1")
    unit = _unit(features)
    direction = _unit(pictures).mean(dim=0) - _unit(others).mean(dim=0)
    return _interpretability([_margin(unit, task, direction) for task in tasks(activations, seed)])


def _margin(unit: Tensor, task: Task, direction: Tensor) -> float:
    """D(q+) - D(q-): D is the mean similarity to the strong side less that to the weak side, a product of vectors."""
    return float((unit[task.strong_query] - unit[task.weak_query]) @ direction)


def _interpretability(margins: list[float]) -> Interpretability:
    found = torch.tensor(margins, dtype=torch.float64)
    # An undecided task counts half, as a guess would.
    right = (found > 0).double() + (found == 0).double() / 2
    return Interpretability(float((found / TEMPERATURE).sigmoid().mean()), float(right.mean()))


def _unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows.double(), dim=1)
