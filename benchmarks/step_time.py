"""Time of a VITAL step by the library against a plain transcription of the published loop, interleaved in one run.

    python benchmarks/step_time.py                  # ResNet-50, 224 px, 50 references
    python benchmarks/step_time.py --short          # under a minute on two idle cores
    python benchmarks/step_time.py --clock cpu      # ratios of CPU time, for a busy machine
    python benchmarks/step_time.py --precision 32 bf16   # the library in both, against the same steps of the loops

The library's step is timed inside Lightning's loop as ``visualize`` runs it. Networks have random weights, on which the
time does not depend. Exit code 1 if the losses differ or a ratio is below its goal.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torchvision
from lightning.pytorch import LightningModule, Trainer
from published_loop import PublishedLoop, reference_activations
from torch import Tensor, nn

from vital_exp import load_model
from vital_exp.engine import objective_and_gradient
from vital_exp.engine.batch import Batch
from vital_exp.engine.callbacks import Progress
from vital_exp.engine.fitting import fit
from vital_exp.models.network import VisionNetwork, model_space
from vital_exp.setup.request import Request

NETWORKS = ("resnet18", "resnet50", "densenet121", "convnext_base")  # those without image priors
PUBLISHED, KEPT = "published", "published, references kept sorted"
LIBRARY = {"32": "library", "bf16": "library, bf16"}  # by precision
# Times the library's step, for ResNet-50 at 224 px on a CPU; bfloat16 where the processor multiplies it.
GOALS = {"32": {PUBLISHED: 15.0, KEPT: 1.8}, "bf16": {PUBLISHED: 20.0, KEPT: 3.0}}
LOSS_TOLERANCE = {"32": 1e-4, "bf16": 1e-2}  # relative; bfloat16 keeps 8 bits
PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed"}
# What makes the library's step fast and is not on for method=vital.
SWITCHES = ["channels_last=true", "fold_batch_norms=true"]
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
LIBRARY_STEPS = 6  # per round: a fit of one step would time the start of a loop
ENDS = 2  # of them, the first and the last, ask for a second gradient (is the unit dead?) and are not timed
LONG_ROUNDS, SHORT_ROUNDS = 7, 3
NETWORK_SEED, STATISTICS_SEED, REFERENCES_SEED, START_SEED = 0, 100, 1, 2


class Stopwatch(Progress):
    """The engine's progress callback without output, which times the loop from its first step to its last."""

    def __init__(self, steps: int, clock: Callable[[], float]) -> None:
        super().__init__(1, steps, 1, shown=False)
        self.clock = clock
        self.started = self.ended = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock, when trainer, optimiser and pictures exist."""
        self.started = self.clock()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Note the end of a step, after its loss was read."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self.ended = self.clock()


class InnerStopwatch(Stopwatch):
    """Times from the end of the first step to the end of the last but one."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Start after the first step, and end before the last."""
        ended = self.ended
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if trainer.global_step == 1:
            self.started = self.ended
        elif trainer.global_step == pl_module.steps:
            self.ended = ended


def random_network(name: str) -> nn.Module:
    """Return a torchvision network with seeded random weights and batch-norm statistics."""
    torch.manual_seed(NETWORK_SEED)
    network: nn.Module = torchvision.models.get_model(name, weights=None).eval()
    generator = _generator(STATISTICS_SEED)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features, generator=generator) * 0.1
            module.running_var = torch.rand(module.num_features, generator=generator) + 0.5
    return network


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Contest:
    """The library in one or more precisions and both transcriptions, on the same network, references and start.

    Args:
        options: the options of the command line.
        folder: the folder for the library's cache of reference statistics.
    """

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.clock = CLOCKS[options.clock]
        self.loop_bf16 = options.loop_precision == "bf16"
        shape = (3, options.size, options.size)
        self.references = torch.rand(options.references, *shape, generator=_generator(REFERENCES_SEED))
        self.start = torch.rand(options.batch, *shape, generator=_generator(START_SEED))
        self.overrides = [
            f"cache_dir={folder}",
            "trainer.accelerator=cpu",
            f"batch_size={options.batch}",
            *options.with_,
        ]
        module = random_network(options.network)
        network = load_model(copy.deepcopy(module), size=options.size)
        self.requests = {precision: self._request(network, precision) for precision in options.precision}
        self.loops = self._loops(module)

    def _request(self, network: VisionNetwork, precision: str) -> Request:
        """The request to the library in one precision."""
        return Request.of(
            network,
            [f"class:{index}" for index in range(len(self.start))],
            references=self.references,
            steps=LIBRARY_STEPS,
            overrides=[*self.overrides, f"trainer.precision={PRECISIONS[precision]}", "evaluation=none"],
        )

    def _loops(self, module: nn.Module) -> dict[str, PublishedLoop]:
        """Make both transcriptions and the library's statistics, which are not timed."""
        request, loop_bf16 = next(iter(self.requests.values())), self.loop_bf16
        network = request.network
        problem = request.setup.problem(request.targets)
        weights = problem.alignment.layers
        problem.statistics.of(request.targets, list(weights))
        start = model_space(self.start, network)
        valid = network.preprocessing.valid_range(start)
        activations = reference_activations(module, list(weights), model_space(self.references, network))
        return {
            name: PublishedLoop(module, weights, activations, start, valid, keep_sorted=name == KEPT, bf16=loop_bf16)
            for name in (PUBLISHED, KEPT)
        }

    def first_losses(self) -> dict[str, Tensor]:
        """Return each contestant's losses (N,) of the start, without jitter."""
        overrides = [*self.overrides, "transforms=none"]
        losses = {}
        for precision, request in self.requests.items():
            own = ["trainer.precision=bf16-mixed"] if precision == "bf16" else []
            losses[LIBRARY[precision]], _ = objective_and_gradient(
                request.network, request.targets, self.start, references=self.references, overrides=[*overrides, *own]
            )
        normalised = model_space(self.start, request.network)
        with torch.no_grad():
            return losses | {name: loop.losses(normalised) for name, loop in self.loops.items()}

    def library_seconds(self, request: Request) -> float:
        """Return the seconds of one step, from a short fit by the engine."""
        given, size = dict(zip(request.targets, self.start, strict=True)), (self.start.shape[-2], self.start.shape[-1])
        batch = Batch(request.setup, request.targets, picture_size=size, given=given)
        stopwatch = InnerStopwatch(LIBRARY_STEPS, self.clock)
        fit(request.setup, batch.module(), batch.names, [stopwatch])
        stopwatch.close()
        return (stopwatch.ended - stopwatch.started) / (LIBRARY_STEPS - ENDS)

    def loop_seconds(self, name: str) -> float:
        """Return the seconds of one step of a transcription."""
        started = self.clock()
        self.loops[name].step()
        return self.clock() - started

    def round(self) -> dict[str, float]:
        """Return the seconds of a step of each contestant, one after the other."""
        times = {LIBRARY[precision]: self.library_seconds(request) for precision, request in self.requests.items()}
        return times | {name: self.loop_seconds(name) for name in self.loops}


def summary(rounds: Sequence[Mapping[str, float]], precision: str) -> dict[str, dict[str, float]]:
    """Return median and smallest seconds of the library in a precision and of the loops, and ratios within rounds."""
    table = {}
    for name in (LIBRARY[precision], PUBLISHED, KEPT):
        seconds = [times[name] for times in rounds]
        ratios = [times[name] / times[LIBRARY[precision]] for times in rounds]
        table[name] = {
            "seconds": median(seconds),
            "least_seconds": min(seconds),
            "least_ratio": min(ratios),
            "ratio": median(ratios),
            "largest_ratio": max(ratios),
        }
    return table


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run the comparison; return the lines to print."""
    with tempfile.TemporaryDirectory() as folder:
        contest = Contest(options, Path(folder))
        losses = contest.first_losses()
        contest.round()  # warm-up
        rounds = [contest.round() for _ in range(options.rounds)]
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        **{key: value for key, value in vars(options).items() if key != "json"},
        "first_loss": {name: loss.tolist() for name, loss in losses.items()},
        "loss_difference": {precision: _difference(losses, precision) for precision in options.precision},
        "rounds_seconds": rounds,
        "steps": {precision: summary(rounds, precision) for precision in options.precision},
    }


def _difference(losses: Mapping[str, Tensor], precision: str) -> float:
    """Return the largest relative difference between the loops' losses and the library's."""
    return max(float((losses[name] / losses[LIBRARY[precision]] - 1).abs().max()) for name in (PUBLISHED, KEPT))


def problems(result: Mapping[str, Any]) -> list[str]:
    """Return a line for each goal that is missed; goals of speed are for ResNet-50."""
    found = []
    for precision, rows in result["steps"].items():
        name, difference = LIBRARY[precision], result["loss_difference"][precision]
        if difference > LOSS_TOLERANCE[precision]:
            found.append(f"{name}: the first losses differ by {difference:.1e}")
        if (result["network"], result["size"], result["references"]) == ("resnet50", 224, 50):
            found += [
                f"{loop}: {rows[loop]['ratio']:.2f} times the step of {name}, not {goal:g}"
                for loop, goal in GOALS[precision].items()
                if rows[loop]["ratio"] < goal
            ]
    return found


def bfloat16_support() -> str:
    """Return words on the processor's support of bfloat16 products."""
    if torch.cpu._is_amx_tile_supported():
        return "AMX tiles"
    return "AVX-512" if torch.cpu._is_avx512_bf16_supported() else "none"


def report(result: Mapping[str, Any]) -> str:
    """Return the result as a table."""
    lines = [
        f"{result['network']}, {result['size']} px, batch of {result['batch']}, {result['references']} references "
        f"(loops in {result['loop_precision']}; bfloat16 in the processor: {bfloat16_support()}); "
        f"torch {result['torch']}, {result['threads']} threads, {result['clock']} clock, {result['rounds']} rounds",
    ]
    for precision, rows in result["steps"].items():
        lines += [
            f"\nprecision {precision}, first losses agree to {result['loss_difference'][precision]:.1e}\n",
            f"{'one step of':34}{'seconds':>10}{'least':>9}{'ratio':>10}{'(least':>9}{'largest)':>10}",
        ]
        lines += [
            f"{name:34}{row['seconds']:10.3f}{row['least_seconds']:9.3f}{row['ratio']:10.2f}"
            f"{row['least_ratio']:9.2f}{row['largest_ratio']:10.2f}"
            for name, row in rows.items()
        ]
    return "\n".join([*lines, *(f"short of the goal: {line}" for line in problems(result))])


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet50", choices=NETWORKS, help="of torchvision, random weights")
    parser.add_argument("--size", type=int, default=224, help="side of the pictures in px")
    parser.add_argument("--references", type=int, default=50, help="reference images")
    parser.add_argument("--batch", type=int, default=1, help="pictures optimised together")
    parser.add_argument("--rounds", type=int, help=f"after one of warm-up; {LONG_ROUNDS}, or {SHORT_ROUNDS} if --short")
    parser.add_argument(
        "--precision", nargs="+", default=["32"], choices=list(PRECISIONS), help="of the library's network"
    )
    parser.add_argument(
        "--loop-precision", default="32", choices=list(PRECISIONS), help="of the loops', as published 32"
    )
    parser.add_argument("--clock", default="wall", choices=list(CLOCKS), help="cpu: processor time of all threads")
    parser.add_argument("--with", dest="with_", nargs="*", help=f"switches of the library's step; {' '.join(SWITCHES)}")
    parser.add_argument("--short", action="store_true", help="fewer rounds")
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    options = parser.parse_args(arguments)
    if options.with_ is None:
        options.with_ = SWITCHES
    if options.rounds is None:
        options.rounds = SHORT_ROUNDS if options.short else LONG_ROUNDS
    for key in ("size", "references", "batch", "rounds"):
        if getattr(options, key) < 1:
            parser.error(f"--{key} {getattr(options, key)}: at least 1")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and return 1 if a goal is missed."""
    options = parse(arguments)
    result = measure(options)
    print(report(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 1 if problems(result) else 0


if __name__ == "__main__":
    sys.exit(main())
