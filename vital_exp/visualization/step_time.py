"""The time of a step, measured on a few steps with blank references, before the real references are read."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from vital_exp.engine.batch import Batch
from vital_exp.engine.module import Stage
from vital_exp.references.tensors import TensorReferences
from vital_exp.setup.run_setup import RunSetup
from vital_exp.targets.class_names import ClassNames
from vital_exp.targets.unit import Target

TIMED_STEPS = 3


def trial(setup: RunSetup, targets: Sequence[Target], batch_size: int, together: int) -> Batch:
    """Return a batch with blank references, whose steps take the same time as with the real references."""
    network = setup.network
    blank = TensorReferences(network.blank().cpu(), ClassNames.numbered(1), network.preprocessing.channels)
    return Batch(setup.without_cache(blank), targets, batch_size, together)


def seconds_per_step(batch: Batch, steps: int = TIMED_STEPS, clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the mean time of a step in seconds, from ``steps`` steps of each stage, weighted by the stage's length."""
    total, before = 0.0, 0
    for stage in batch.stages:
        total += (stage.until - before) * _seconds(stage, steps, clock)
        before = stage.until
    return total / before


def _seconds(stage: Stage, steps: int, clock: Callable[[], float]) -> float:
    """Return the mean time of at least ``steps`` steps of a stage, in seconds, after one step that does not count."""
    every = stage.objective.every
    steps, started = -(-steps // every) * every, 0.0  # relevance passes have their share of any ``every`` steps
    for step in range(steps + 1):
        if step == 1:
            started = clock()
        x = stage.network_input()
        found = stage.objective(x, step)
        (x * found.gradient).sum().backward()
        float(found.losses.sum())  # waits until the device has finished
    return (clock() - started) / steps
