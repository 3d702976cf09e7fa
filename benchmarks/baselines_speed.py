"""Seconds per picture and step of our MACO and Fourier and of Horama's, for the same network, size, crops and steps.

    python benchmarks/baselines_speed.py --network resnet50 mobilenetv2_100 --rounds 5

Horama (the extra ``peers``) runs as its users run it: its own function, with an objective that calls the network, one
picture at a time. Ours is the engine's step with parameterisation and optimiser, for one picture and for a batch. The
two alternate; reported are median and range of the ratio of the two times within a round. Networks have random weights,
on which the time does not depend. ``--check`` exits with 1 if a goal is missed.
"""

from __future__ import annotations

import argparse
import importlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn

from vital_exp import load_model
from vital_exp.engine.batch import Batch
from vital_exp.engine.module import Stage, VisualizationModule
from vital_exp.models.network import VisionNetwork
from vital_exp.setup.request import Request

# At least so many times as fast per picture as Horama.
GOALS: Mapping[str, float] = {"resnet50": 1.5, "mobilenetv2_100": 2.0}
SPECTRUM = "spectrum_decorrelated.npy"  # the name under which Horama looks for it in the working folder
HORAMA_MODULES = {"maco": "horama.maco_fv", "fourier": "horama.fourier_fv"}
VIEWS = 6  # Horama's
CLOCKS: Mapping[str, Callable[[], float]] = {"wall": time.perf_counter, "processor": time.process_time}
CLASS = 0


def overrides(method: str, size: int) -> list[str]:
    """Return Horama's recipe for a method in our configuration."""
    base = ["method=maco_horama"] if method == "maco" else ["method=fourier", "transforms=maco_horama"]
    objective = "objective=[activation]"
    return [
        *base,
        objective,
        "optimizer=nadam_maco",
        f"image.size={size}",
        f"views={VIEWS}",
        "steps=1000",
        "evaluation=none",
    ]


def ours(network: VisionNetwork, method: str, options: argparse.Namespace, batch: int) -> Callable[[], None]:
    """Return a function that makes a batch of pictures by the engine's step, without Lightning's loop."""
    request = Request.of(
        network, [f"class:{CLASS + i}" for i in range(batch)], overrides=overrides(method, options.size)
    )
    setup = request.setup
    objective = Batch(setup, request.targets).objective

    def make() -> None:
        pictures = setup.pictures(request.targets, None)
        stage = Stage(setup.steps, objective, pictures.network_input)
        module = VisualizationModule(pictures, [stage], setup.optimizer, setup.rate)
        optimizer = setup.optimizer(list(pictures.parameters()))
        for step in range(1, options.steps + 1):  # the first and the last do a little more, of a thousand
            optimizer.zero_grad()
            module.surrogate(step).backward()
            optimizer.step()
            pictures.project()

    return make


def horamas(module: nn.Module, method: str, options: argparse.Namespace) -> Callable[[], None]:
    """Return a function that makes one picture with Horama."""
    horama = importlib.import_module(HORAMA_MODULES[method])

    def objective(images: Tensor) -> Tensor:
        value: Tensor = module(images)[:, CLASS].mean()
        return value

    function: Any = getattr(horama, method)

    def make() -> None:
        function(
            objective, total_steps=options.steps, image_size=options.size, model_input_size=options.input, device="cpu"
        )

    return make


@contextmanager
def in_a_folder_with_a_spectrum() -> Iterator[None]:
    """Put a spectrum into the working folder, since Horama downloads one otherwise; its values do not matter here."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / SPECTRUM, np.random.default_rng(0).random((3, 64, 33)) + 0.1)
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


def seconds(make: Callable[[], None], pictures: int, options: argparse.Namespace) -> float:
    """Return the seconds per picture and step by the clock of the options."""
    clock = CLOCKS[options.clock]
    started = clock()
    make()
    return (clock() - started) / pictures / options.steps


def contest(name: str, method: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return one row per batch size: medians, and the median and range of Horama's time over ours."""
    # Each has a network of its own: Horama's gradients pile up in its weights, ours are frozen.
    module = timm.create_model(name, pretrained=False).eval()
    network = load_model(timm.create_model(name, pretrained=False), size=options.input)
    peer = horamas(module, method, options)
    makers = {batch: ours(network, method, options, batch) for batch in options.batches}
    rounds: list[dict[str, float]] = []
    for number in range(options.rounds + 1):  # the first warms up
        times = {"horama": seconds(peer, 1, options)}
        times |= {str(batch): seconds(make, batch, options) for batch, make in makers.items()}
        rounds += [times] if number else []
    rows = []
    for batch in options.batches:
        ratios = [one["horama"] / one[str(batch)] for one in rounds]
        rows.append({
            "network": name, "method": method, "pictures together": batch,
            "Horama, s": statistics.median(one["horama"] for one in rounds),
            "ours, s": statistics.median(one[str(batch)] for one in rounds),
            "times as fast": statistics.median(ratios), "least": min(ratios), "most": max(ratios),
        })  # fmt: skip
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a Markdown table."""
    lines = [f"| {' | '.join(rows[0])} |", "|---" * len(rows[0]) + "|"]
    for row in rows:
        lines.append(f"| {' | '.join(f'{v:.3g}' if isinstance(v, float) else str(v) for v in row.values())} |")
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", nargs="+", default=list(GOALS), help="timm's names")
    parser.add_argument("--method", nargs="+", choices=list(HORAMA_MODULES), default=list(HORAMA_MODULES))
    parser.add_argument("--size", type=int, default=1280, help="side of the pictures; Horama's default")
    parser.add_argument("--input", type=int, default=224, help="side of what the network sees")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="pictures of ours made together")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="processor: on a machine with other work")
    parser.add_argument("--check", action="store_true", help="end with 1 if a goal is missed")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; with ``--check``, return 1 if a goal is missed."""
    options = parse(arguments)
    rows = []
    with in_a_folder_with_a_spectrum():
        for name in options.network:
            for method in options.method:
                rows += contest(name, method, options)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.clock} clock")
    print(f"pictures of {options.size} px, {VIEWS} crops of {options.input} px a step\n\n{table(rows)}")
    missed = [row for row in rows if row["times as fast"] < GOALS.get(row["network"], 0)]
    for row in missed:
        print(f"missed: {row['network']} {row['method']} x{row['pictures together']}: {row['times as fast']:.2f}")
    return int(bool(missed) and options.check)


if __name__ == "__main__":
    raise SystemExit(main())
