"""Time of one step of hidden units against one of classes, of the same network at the same size, in one run.

    python benchmarks/unit_step_time.py

ResNet-50 with random weights, one picture: a class step aligns conv1 and the four stages; a step of a channel of
layer4.1 aligns conv1 and three stages, with the relevance of the picture computed anew. Prints the median ratio over
rounds that alternate between the two.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch
import torchvision

from vital_exp import load_model
from vital_exp.engine import setup
from vital_exp.engine.problem import problem_of
from vital_exp.engine.request import Request
from vital_exp.images.randomness import RandomStreams

LAYERS = "model.layers=[conv1,layer1,layer2,layer3{}]"


def step(target: str, relevance: str, size: int) -> Callable[[], None]:
    """Return a function that takes one step, forward and backward, for a target."""
    network = load_model(torchvision.models.resnet50(weights=None), size=size)
    hidden = not target.startswith("class")
    asked = [LAYERS.format("" if hidden else ",layer4"), "references.cache=false"]
    asked += [f"relevance={relevance}"] if hidden else []
    request = Request.of(network, target, references=torch.rand(2, 3, size, size), overrides=asked)
    objective = setup.objective_of(
        request.config, problem_of(request.config, network, request.targets, request.references)
    )
    streams = RandomStreams(0, [request.targets[0].name])
    transform, pictures = (
        setup.transform_of(request.config, network),
        setup.pictures_of(request.config, network, streams),
    )

    def take() -> None:
        losses, _ = objective(transform(pictures.network_input(), streams, 0))
        losses.sum().backward()

    return take


def seconds(take: Callable[[], None]) -> float:
    """Return the time of one step."""
    started = time.perf_counter()
    take()
    return time.perf_counter() - started


def main(arguments: Sequence[str] | None = None) -> None:
    """Time both and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--relevance", nargs="+", default=["lrp", "guided_backprop", "none"])
    options = parser.parse_args(arguments)
    of_class = step("class:0", "none", options.size)
    for relevance in options.relevance:
        of_unit = step("layer4.1:7", relevance, options.size)
        of_class(), of_unit()
        ratios = [seconds(of_unit) / seconds(of_class) for _ in range(options.rounds)]
        low, high = min(ratios), max(ratios)
        print(f"{relevance}: a unit's step takes {statistics.median(ratios):.2f} class steps ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
