"""Relevance passes every k steps: how much maps change, the time of a step, and judges' ratings of the pictures.

    VITAL_TEST_DATA=... python benchmarks/relevance_every.py
    VITAL_TEST_DATA=... python benchmarks/relevance_every.py --network mobilenet --seeds

The hidden units are the ten outputs of the classifier layer, so that judges know what the pictures should show. Prints
the correlation, over positions, of the relevance masks of a view with those of the same view k steps later, and with
those of the view of that later step; and one row per k. Without seeds no pictures are made, and only steps are timed.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from class_pictures import CONTESTS, configuration, judges_of, opinions, specs, table
from torch import Tensor

from vital_exp.engine.step import StepObjective
from vital_exp.images.output import quantised
from vital_exp.models.named import named_network
from vital_exp.models.network import VisionNetwork
from vital_exp.setup.request import Request
from vital_exp.targets.unit import Target
from vital_exp.visualization.run import Visualization
from vital_exp.visualization.step_time import seconds_per_step, trial

CLASSIFIERS = {"cifar": "linear", "mobilenet": "classifier", "lite0": "classifier"}
OVERRIDES = ("references.facets=1", "progress=false", "evaluation=none")
MEASURED_AT = (0.025, 0.1, 0.25, 0.5, 0.75, 0.925)  # shares of the steps at which correlations are measured
TIMED_STEPS = 8


class Units:
    """The outputs of a network's classifier as hidden units, with the references of their classes.

    Args:
        options: the command line.
        network: the network that is visualised.
    """

    def __init__(self, options: argparse.Namespace, network: VisionNetwork) -> None:
        self.options, self.network = options, network
        self.classes = Request.from_config(configuration(options, options.method, 0))
        self.index = torch.tensor([target.index for target in self.classes.targets])
        self.references = {
            f"{CLASSIFIERS[options.network]}:{target.index}": self._images(target) for target in self.classes.targets
        }

    def _images(self, target: Target) -> Tensor:
        """Return a class's references; a blank one where no pictures are made."""
        images = list(self.classes.references.images(target)) if self.options.seeds else []
        return torch.stack(images) if images else self.network.blank().cpu()

    def request(self, every: int, seed: int = 0) -> Request:
        """Return the request of the pictures."""
        return Request.of(
            self.network,
            list(self.references),
            method=self.options.method,
            references=self.references,
            seed=seed,
            steps=self.options.steps,
            overrides=[f"relevance={self.options.relevance}", f"relevance.every={every}", *OVERRIDES],
        )


@contextmanager
def watched() -> Iterator[tuple[list[StepObjective], dict[int, Tensor]]]:
    """Collect the objective of a batch and the pictures (N, C, H, W) at each step."""
    objectives: list[StepObjective] = []
    pictures: dict[int, Tensor] = {}
    real = StepObjective.__call__

    def call(self: StepObjective, now: Tensor, step: int, **options: bool) -> Any:
        objectives.append(self)
        pictures[step] = now.detach().clone()
        return real(self, now, step, **options)

    with patch.object(StepObjective, "__call__", call):
        yield objectives, pictures


def correlation(masks: dict[str, Tensor], others: dict[str, Tensor]) -> float:
    """Return the mean over layers, pictures and channels of the correlation over positions."""
    means = []
    for layer, mask in masks.items():
        a, b = (one - one.mean(dim=-1, keepdim=True) for one in (mask, others[layer]))
        norms = a.norm(dim=-1) * b.norm(dim=-1)
        means.append((((a * b).sum(dim=-1) / norms)[norms > 0]).mean())
    return float(torch.stack(means).mean())


def correlations(units: Units, steps: Sequence[int]) -> dict[str, dict[str, float]]:
    """Return, for each number of steps, the correlations of masks of the same view and of another one."""
    with watched() as (objectives, pictures):
        Visualization(units.request(1)).run()
    own, rows = objectives[0], {}

    def masks(step: int, view: int) -> dict[str, Tensor]:
        return own.objective.masks(own.transform(pictures[step], own.streams, view))

    for later in steps:
        row = {}
        for step in (int(share * units.options.steps) for share in MEASURED_AT):
            before = masks(step, step)
            row[f"step {step}, same view"] = correlation(before, masks(step + later, step))
            row[f"step {step}, another view"] = correlation(before, masks(step + later, step + later))
        rows[str(later)] = row
    return rows


def milliseconds(request: Request) -> float:
    """Return the processor time of one picture's step, in ms."""
    return 1000 * seconds_per_step(trial(request.setup, request.targets[:1], 1, 1), TIMED_STEPS, time.process_time)


def ratings(units: Units, every: int, judges: dict[str, VisionNetwork]) -> dict[str, float]:
    """Return the judges' mean log-probabilities over seeds and classes, and the processor seconds of a picture."""
    found: dict[str, list[Tensor]] = {}
    for seed in units.options.seeds:
        started = time.process_time()
        made = Visualization(units.request(every, seed)).run()
        found.setdefault("processor seconds", []).append(
            torch.tensor([(time.process_time() - started) / len(made.images)])
        )
        for name, columns in opinions(judges, quantised(made.images), units.index).items():
            for column in ("top1", "log p"):
                found.setdefault(f"{name} {column}", []).append(columns[column])
    return {name: float(torch.cat(values).mean()) for name, values in found.items()}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=list(CLASSIFIERS), default="cifar")
    parser.add_argument("--method", default="vital_fourier")
    parser.add_argument("--relevance", default="lrp")
    parser.add_argument("--every", nargs="+", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("VITAL_TEST_DATA", ".")))
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print the tables."""
    options = parse(arguments)
    options.overrides, options.data = [*OVERRIDES[1:]], options.data.resolve()
    units = Units(options, named_network(specs(options.data)[CONTESTS[options.network][0]]))
    if options.seeds:
        print(table(correlations(units, options.every)), flush=True)
    judges = judges_of(options) if options.seeds else {}
    of_class = milliseconds(units.classes)
    rows = {}
    for every in options.every:
        time_of_step = milliseconds(units.request(every))
        row = {"ms of a step": time_of_step, "in steps of a class": time_of_step / of_class}
        rows[f"relevance.every={every}"] = row | (ratings(units, every, judges) if options.seeds else {})
    print(f"\n{table(rows)}")


if __name__ == "__main__":
    main()
