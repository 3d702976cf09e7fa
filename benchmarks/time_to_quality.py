"""Speed-up of vital_fourier over the published loop of 2,000 steps, for pictures that judges rate equally.

    VITAL_TEST_DATA=... python benchmarks/time_to_quality.py --networks cifar mobilenet vit

The table of class_pictures.py has the ratings, over ten classes and three seeds. This benchmark measures the cost for
one class of each of its networks: a step of a plain transcription of the published loop times 2,000, and a whole run of
vital_fourier, with reading the references. Times are CPU seconds, on which a busy machine has less effect.
"""

from __future__ import annotations

import argparse
import copy
import os
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch
from class_pictures import CONTESTS, configuration
from published_loop import PublishedLoop, reference_activations

from vital_exp.engine import objective_and_gradient
from vital_exp.models.network import model_space
from vital_exp.setup.request import Request
from vital_exp.visualization.run import Visualization

PUBLISHED_STEPS = 2000
CLASS = "0"  # airplane, and tench: what a step costs does not depend on it
LOSS_TOLERANCE = 1e-4  # relative


def published_loop(request: Request) -> PublishedLoop:
    """Return the transcription of the published loop for the request's first target.

    Raises:
        RuntimeError: its first loss differs from the library's.
    """
    network, targets = request.network, request.targets[:1]
    problem = request.setup.problem(targets)
    weights = problem.alignment.layers
    module = copy.deepcopy(network.module)
    references = torch.stack(list(request.references.images(targets[0])))
    activations = reference_activations(module, list(weights), model_space(references, network))
    start = torch.rand(1, 3, *network.preprocessing.size, generator=torch.Generator().manual_seed(0))
    normalised = model_space(start, network)
    loop = PublishedLoop(module, weights, activations, normalised, network.preprocessing.valid_range(normalised))
    alone = ["transforms=none", "objective=alignment", f"cache_dir={request.config.cache}"]  # without ~
    library, _ = objective_and_gradient(network, targets, start, references=references, overrides=alone)
    with torch.no_grad():
        own = loop.losses(normalised)
    if not torch.allclose(own, library, rtol=LOSS_TOLERANCE):
        raise RuntimeError(f"the first losses differ: {own.tolist()}, and the library's {library.tolist()}")
    return loop


def published_seconds(options: argparse.Namespace, network: str) -> float:
    """Return the CPU seconds of one step of the published loop, a median."""
    loop = published_loop(_request(options, network, "vital"))
    loop.step()  # warm-up
    seconds = []
    for _ in range(options.rounds):
        started = time.process_time()
        loop.step()
        seconds.append(time.process_time() - started)
    return median(seconds)


def library_seconds(options: argparse.Namespace, network: str) -> tuple[int, float]:
    """Return the steps of vital_fourier and the CPU seconds of a picture."""
    request = _request(options, network, "vital_fourier")
    started = time.process_time()
    Visualization(request).run()
    return int(request.config.steps), time.process_time() - started


def _request(options: argparse.Namespace, network: str, method: str) -> Request:
    asked = argparse.Namespace(
        network=network, steps=options.steps if method == "vital_fourier" else None, data=options.data.resolve()
    )
    asked.overrides = [f"target.index={CLASS}", "progress=false", "references.cache=false"]
    return Request.from_config(configuration(asked, method, seed=0))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure each network and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=list(CONTESTS), default=list(CONTESTS))
    parser.add_argument("--steps", type=int, help="of vital_fourier; by default its own")
    parser.add_argument("--rounds", type=int, default=3, help="steps of the published loop that are timed")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("VITAL_TEST_DATA", ".")))
    options = parser.parse_args(arguments)
    print("| network | a published step | times 2,000 | vital_fourier, steps | a picture | times sooner |")
    print("|---|---|---|---|---|---|")
    for network in options.networks:
        step = published_seconds(options, network)
        steps, seconds = library_seconds(options, network)
        whole = step * PUBLISHED_STEPS
        cells = (f"{step:.3f} s", f"{whole:.0f} s", steps, f"{seconds:.1f} s", f"{whole / seconds:.0f}")
        print(f"| {network} | {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main()
