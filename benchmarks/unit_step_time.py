"""Time of a hidden unit's step against a class's, and against the published loop for hidden units.

    python benchmarks/unit_step_time.py                       # against a class step
    python benchmarks/unit_step_time.py --with channels_last=true fold_batch_norms=true
    python benchmarks/unit_step_time.py --published --references 10

ResNet-50 with random weights, one picture. A class's step aligns conv1 and the four stages; a step of a channel of
layer4.1 aligns conv1 and three stages, and computes the relevance of the picture. The two alternate; printed is the
median ratio over rounds. ``--published`` compares with a plain transcription of the published loop
(published_unit_loop.py), which keeps the graph of all references, 0.1 GB each. Exit code 1 if the losses differ or the
goal is missed.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
from collections.abc import Callable, Sequence

import torch
from published_unit_loop import PublishedUnitLoop
from step_time import CLOCKS, random_network
from torch import Tensor

from vital_exp import load_model
from vital_exp.engine.batch import Batch
from vital_exp.engine.module import VisualizationModule
from vital_exp.models.network import model_space
from vital_exp.setup.request import Request

LAYERS = "model.layers=[conv1,layer1,layer2,layer3{}]"
PRIORS = ["objective.total_variation.weight=0", "objective.l2.weight=0"]
MOST_CLASS_STEPS = 4.0  # that a unit's step may take
GOAL = 10.0  # times the library's step, with 50 references
LOSS_TOLERANCE = 1e-4


def step(
    target: str, relevance: str, size: int, references: Tensor | None = None, overrides: Sequence[str] = ()
) -> tuple[Request, VisualizationModule]:
    """Return a run that makes one picture of a target of ResNet-50."""
    network = load_model(random_network("resnet50"), size=size)
    hidden = not target.startswith("class")
    asked = [LAYERS.format("" if hidden else ",layer4"), "references.cache=false", "batch_size=1", *PRIORS, *overrides]
    asked += [f"relevance={relevance}"] if hidden else []
    images = torch.rand(2, 3, size, size) if references is None else references
    request = Request.of(network, target, references=images, overrides=asked)
    return request, Batch(request.setup, request.targets).module()


def taking(module: VisualizationModule) -> Callable[[], object]:
    """Return a function that computes losses and gradient of one step."""
    return lambda: module.objective(module.pictures.network_input(), 0)


def seconds(take: Callable[[], object], clock: Callable[[], float]) -> float:
    """Return the time of one step."""
    started = clock()
    take()
    return clock() - started


def ratios(slow: Callable[[], object], fast: Callable[[], object], options: argparse.Namespace) -> list[float]:
    """Return the ratio of the two times in each round, ascending; the first round warms up and is left out."""
    clock = CLOCKS[options.clock]
    return sorted([seconds(slow, clock) / seconds(fast, clock) for _ in range(options.rounds + 1)][1:])


def published(options: argparse.Namespace) -> tuple[list[float], float]:
    """Return the ratios of the published loop's step to the library's, and the difference of their first losses."""
    size, generator = options.size, torch.Generator().manual_seed(0)
    references = torch.rand(options.references, 3, size, size, generator=generator)
    request, module = step("layer4.1:7", "lrp", size, references)
    problem = request.setup.problem(request.targets)
    start = module.pictures.network_input().detach()
    loop = PublishedUnitLoop(
        copy.deepcopy(request.network.module),
        problem.alignment.layers,
        problem.readout,
        model_space(references, request.network),
        start,
        request.network.preprocessing.valid_range(start),
    )
    module.objective.transform = lambda pictures, *_: pictures  # the same picture for both
    with torch.enable_grad():
        theirs, ours = loop.losses(start).detach(), module.objective(start, 0).losses
    return ratios(loop.step, taking(module), options), float((theirs / ours - 1).abs().max())


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--relevance", nargs="+", default=["lrp", "guided_backprop", "none"])
    parser.add_argument("--with", dest="overrides", nargs="*", default=[], help="overrides for class and unit")
    parser.add_argument("--published", action="store_true", help="compare with the published loop for hidden units")
    parser.add_argument("--references", type=int, default=50, help="of the published loop")
    parser.add_argument("--clock", default="wall", choices=list(CLOCKS), help="cpu: processor time of all threads")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Time and print the ratios; return 1 if a goal is missed."""
    options = parse(arguments)
    if options.published:
        found, difference = published(options)
        middle = statistics.median(found)
        print(
            f"the published loop's step, {options.references} references, takes {middle:.1f} times the "
            f"library's ({found[0]:.1f} to {found[-1]:.1f}); first losses agree to {difference:.0e}"
        )
        missed = options.references == 50 and middle < GOAL
        return int(missed or difference > LOSS_TOLERANCE)
    return against_class(options)


def against_class(options: argparse.Namespace) -> int:
    """Print the ratio of a unit's step to a class's for each relevance; return 1 if it exceeds the goal."""
    size, overrides = options.size, options.overrides
    of_class, most = taking(step("class:0", "none", size, overrides=overrides)[1]), 0.0
    for relevance in options.relevance:
        of_unit = taking(step("layer4.1:7", relevance, size, overrides=overrides)[1])
        found = ratios(of_unit, of_class, options)
        middle = statistics.median(found)
        most = max(most, middle)
        print(f"{relevance}: a unit's step takes {middle:.2f} class steps ({found[0]:.2f} to {found[-1]:.2f})")
    return int(most > MOST_CLASS_STEPS)


if __name__ == "__main__":
    sys.exit(main())
