"""The parts of a step's time: forward, sorts, relevance, backward, optimiser, transforms, Lightning, logging.

    python benchmarks/step_profile.py                                        # all cases, a few minutes
    python benchmarks/step_profile.py --cases "resnet50 class" --precision bf16
    python benchmarks/step_profile.py --cases "vit_b_16 hidden" --accelerator cuda
    python benchmarks/step_profile.py --cases resnet50 --with channels_last=true fold_batch_norms=true

The engine makes the pictures inside Lightning's loop, with the CSV logger, as ``visualize`` does. Stopwatches around
the parts give their shares, torch.profiler the shares of operators. The floor is the time that the machine needs for
the operations of a forward pass up to the last tapped layer and of the backward pass to the picture, at its rate of a
matrix product, and for the bytes that the operators read and write, at its rate of a copy; both rates are measured
here. Networks have random weights, on which the time does not depend.
"""

from __future__ import annotations

import argparse
import functools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger
from machine_rates import copy_rate, matrix_rate, operations_and_bytes
from step_time import CLOCKS, PRECISIONS, REFERENCES_SEED, Stopwatch, random_network
from torch.profiler import ProfilerActivity, profile

from vital_exp import load_model
from vital_exp.engine.batch import Batch
from vital_exp.engine.callbacks import LogTerms
from vital_exp.engine.module import VisualizationModule
from vital_exp.engine.step import ObjectiveValues, StepObjective
from vital_exp.images.pixels import Pixels
from vital_exp.images.transforms import Compose
from vital_exp.models.network import VisionNetwork
from vital_exp.models.taps import Taps
from vital_exp.objectives import alignment
from vital_exp.objectives.terms import Objective
from vital_exp.relevance.weights import Relevance
from vital_exp.setup.request import Request
from vital_exp.targets.unit import Target
from vital_exp.visualization.run import Visualization

WARM_UP = 2  # steps that are not counted
STEPS = 25  # that are: as many as between two entries of the log, of which one falls among them
PROFILED = 3  # steps under torch.profiler
REFERENCES = 2  # their number changes no step
UNITS = 10  # different ones of a batch, at most
NETWORKS = {"resnet50": "layer4.1:7", "vit_b_16": "encoder.layers.encoder_layer_9:7"}  # torchvision's; a hidden unit
EMBEDDED = {"embedded_resnet": "layer4:7", "embedded_vit": "blocks.4:7"}
BATCHES = {**dict.fromkeys(NETWORKS, (1,)), **dict.fromkeys(EMBEDDED, (1, 64))}
LIGHTNING = "Lightning"  # the rest of a step
# The functions that a part is made of. What other parts do within is theirs; all that relevance does is relevance.
RELEVANCE = "relevance"
PARTS: Mapping[str, Sequence[tuple[Any, str]]] = {
    "transforms": [(Compose, "__call__")],
    "forward": [(Taps, "__call__")],
    "sorts": [(alignment, "match_sorted")],
    RELEVANCE: [(Relevance, "masks")],
    "losses": [(Objective, "__call__")],
    "backward": [(torch.autograd, "grad")],
    "optimiser": [(import_module("torch.optim.adam"), "adam"), (Pixels, "project")],
    "records": [(StepObjective, "__call__"), (VisualizationModule, "surrogate")],
    "logging": [(LogTerms, "on_train_batch_end")],
}
# Kinds of operators, by what their names hold; the first that fits.
KINDS: Mapping[str, Sequence[str]] = {
    "convolutions": ("conv",),
    "matrix products, attention": ("mm", "linear", "attention"),
    "norms": ("norm",),
    "sorts, gathers": ("sort", "gather", "scatter", "index"),
    "pooling": ("pool",),
    "copies": ("copy", "clone", "contiguous", "cat", "fill", "zero", "reorder"),
    "element-wise, sums": ("",),
}


@dataclass
class Parts:
    """Seconds in each part, without the time of other parts inside it.

    Args:
        clock: returns the seconds.
        wait: waits until a device has finished its work.
    """

    clock: Callable[[], float]
    wait: Callable[[], None]
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    open: list[str] = field(default_factory=list)
    since: float = 0.0

    @contextmanager
    def inside(self, name: str) -> Iterator[None]:
        """Count the time in this context as that of a part; inside relevance, all counts as relevance."""
        self._turn()
        self.open.append(RELEVANCE if RELEVANCE in self.open else name)
        try:
            yield
        finally:
            self._turn()
            self.open.pop()

    def _turn(self) -> None:
        self.wait()
        now = self.clock()
        if self.open:
            self.seconds[self.open[-1]] += now - self.since
        self.since = now

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Wrap the functions of all parts in this context."""
        with ExitStack() as patches:
            for name, functions in PARTS.items():
                for owner, attribute in functions:
                    patches.enter_context(
                        patch.object(owner, attribute, self._wrapped(name, getattr(owner, attribute)))
                    )
            yield

    def _wrapped(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*arguments: Any, **keywords: Any) -> Any:
            with self.inside(name):
                return function(*arguments, **keywords)

        return timed


class Restart(Callback):
    """Discards the steps of the warm-up."""

    def __init__(self, parts: Parts, stopwatch: Stopwatch) -> None:
        self.parts, self.stopwatch = parts, stopwatch

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        """Start to count after the last step of the warm-up."""
        if trainer.global_step == WARM_UP:
            self.parts.wait()
            self.parts.seconds.clear()
            self.stopwatch.started = self.stopwatch.clock()


class Case:
    """A network, a kind of target and a batch, as the engine makes its pictures.

    Args:
        network: the network, on its device.
        unit: a hidden unit, ``layer:channel``; None: classes.
        batch: the number of pictures that are made together.
        options: the options of the command line.
        overrides: further overrides.
    """

    def __init__(
        self,
        network: VisionNetwork,
        unit: str | None,
        batch: int,
        options: argparse.Namespace,
        overrides: Sequence[str] = (),
    ) -> None:
        layer, kind = (unit.split(":")[0], "channel") if unit else (None, "class")
        targets = [Target(kind, i % UNITS, layer, variation=1 + i // UNITS) for i in range(batch)]
        asked = [
            *("references.cache=false", "evaluation=none", f"batch_size={batch}", "progress=false"),
            *(f"trainer.accelerator={options.accelerator}", f"trainer.precision={PRECISIONS[options.precision]}"),
            *(("relevance=lrp",) if unit else ()),
            *overrides,
        ]
        generator = torch.Generator().manual_seed(REFERENCES_SEED)
        references = torch.rand(REFERENCES, 3, *network.preprocessing.size, generator=generator)
        self.request = Request.of(
            network, targets, references=references, steps=WARM_UP + options.steps, overrides=asked
        )
        self.device, self.steps = self.request.network.device, options.steps
        self.clock, self.bf16 = CLOCKS[options.clock], options.precision == "bf16"

    def work(self) -> Visualization:
        """Return a run of the case in memory."""
        return Visualization(self.request)

    def wait(self) -> None:
        """Wait until the device has finished its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def parts(self) -> dict[str, float]:
        """Return the seconds of a step in each part; the rest is Lightning's loop."""
        work, parts = self.work(), Parts(self.clock, self.wait)
        stopwatch = Stopwatch(WARM_UP + self.steps, self.clock)
        with TemporaryDirectory() as folder, parts.watching():
            work.loggers = [CSVLogger(folder)]
            batch = Batch(self.request.setup, self.request.targets)
            parts.seconds.clear()
            work._fit(0, batch, [stopwatch, Restart(parts, stopwatch)])
        seconds = {name: parts.seconds[name] / self.steps for name in PARTS}
        total = (stopwatch.ended - stopwatch.started) / self.steps
        return {**seconds, LIGHTNING: total - sum(seconds.values())}

    def step(self) -> Callable[[], ObjectiveValues]:
        """Return a function that computes losses and gradient of one step, without Lightning."""
        module = Batch(self.request.setup, self.request.targets).module().to(self.device)
        pictures = module.pictures.network_input().detach()

        def take() -> ObjectiveValues:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                return module.objective(pictures, 0)

        take()
        return take

    def operators(self) -> dict[str, float]:
        """Return the seconds of a step in operators of each kind."""
        take, on_gpu = self.step(), self.device.type == "cuda"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
        with profile(activities=activities) as record:
            for _ in range(PROFILED):
                take()
            self.wait()
        seconds: dict[str, float] = dict.fromkeys(KINDS, 0.0)
        for event in record.key_averages():
            spent = event.self_device_time_total if on_gpu else event.self_cpu_time_total
            if event.key.startswith("aten::") and spent:
                kind = next(kind for kind, parts in KINDS.items() if any(part in event.key for part in parts))
                seconds[kind] += spent / 1e6 / PROFILED
        return seconds

    def floor(self) -> tuple[float, float]:
        """Return operations and bytes of a step."""
        return operations_and_bytes(self.step())


def cases(options: argparse.Namespace, overrides: Sequence[str] = ()) -> Iterator[tuple[str, Case]]:
    """Yield the cases of the options, with their names."""
    for name, unit in {**NETWORKS, **EMBEDDED}.items():
        for kind, target in (("class", None), ("hidden", unit)):
            if options.cases and not any(f"{name} {kind}".startswith(asked) for asked in options.cases):
                continue
            network = load_model(name) if name in EMBEDDED else load_model(random_network(name), size=224)
            for batch in options.batches or BATCHES[name]:
                yield f"{name} {kind}, {batch}", Case(network, target, batch, options, overrides)


def table(rows: Mapping[str, Mapping[str, str]], corner: str) -> str:
    """Return a Markdown table, a line for each row."""
    columns = list(next(iter(rows.values())))
    lines = [f"| {' | '.join([corner, *columns])} |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {' | '.join([name, *cells.values()])} |" for name, cells in rows.items()]
    return "\n".join(lines)


def spread(ratios: Sequence[float]) -> str:
    """Return the median of ratios, with the smallest and the largest."""
    return f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def shares(seconds: Mapping[str, float]) -> dict[str, str]:
    """Return the total in milliseconds and the share of each part."""
    total = sum(seconds.values())
    return {"ms": f"{total * 1e3:.3g}", **{name: f"{value / total:.1%}" for name, value in seconds.items()}}


def floors(operations: float, moved: float, rates: tuple[float, float], seconds: float) -> dict[str, str]:
    """Return a row of the table of floors."""
    least = {"ms for operations": operations / rates[0], "ms for bytes": moved / rates[1]}
    return {
        "GFLOP": f"{operations / 1e9:.3g}",
        "GB": f"{moved / 1e9:.3g}",
        **{name: f"{value * 1e3:.3g}" for name, value in least.items()},
        "step, ms": f"{seconds * 1e3:.3g}",
        "step / sum of both": f"{seconds / sum(least.values()):.2f}",
    }


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return the parser of the options of cases."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", help="those whose names begin so: resnet50, 'embedded_vit hidden', ...")
    parser.add_argument("--batches", type=int, nargs="*", help="pictures made together, in place of the cases' own")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--precision", default="32", choices=list(PRECISIONS))
    parser.add_argument("--accelerator", default="cpu")
    parser.add_argument("--clock", default="wall", choices=list(CLOCKS), help="cpu: processor time of all threads")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    reader = parser(__doc__)
    reader.add_argument("--with", dest="overrides", nargs="+", default=[], help="of the configuration; parts only")
    options = reader.parse_args(arguments)
    seconds = {name: (case, case.parts()) for name, case in cases(options, options.overrides)}
    if not seconds:
        raise SystemExit(f"no case begins with {options.cases}")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, precision {options.precision}, ", end="")
    print(f"{options.clock} clock, {options.steps} steps")
    tables = {"Parts of a step": {name: shares(spent) for name, (_, spent) in seconds.items()}}
    if not options.overrides:  # packed convolutions are none of torch's operators
        tables |= _operators_and_floor({name: (case, sum(spent.values())) for name, (case, spent) in seconds.items()})
    for title, rows in tables.items():
        print(f"\n{title}\n\n{table(rows, 'network, target, pictures')}")


def _operators_and_floor(steps: Mapping[str, tuple[Case, float]]) -> dict[str, dict[str, dict[str, str]]]:
    """Return two tables of cases, each with the seconds of its step."""
    device, bf16 = next((case.device, case.bf16) for case, _ in steps.values())
    rates = matrix_rate(device, torch.bfloat16 if bf16 else torch.float32), copy_rate(device)
    print(f"matrix product {rates[0] / 1e9:.4g} GFLOP/s, copy {rates[1] / 1e9:.3g} GB/s")
    return {
        "Operators of losses and gradient": {name: shares(case.operators()) for name, (case, _) in steps.items()},
        "Floor": {name: floors(*case.floor(), rates, seconds) for name, (case, seconds) in steps.items()},
    }


if __name__ == "__main__":
    main()
