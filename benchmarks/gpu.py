"""Pictures per hour on a GPU: a table for ResNet-50 and ViT-L/16, class and hidden units, several batch sizes.

    python benchmarks/gpu.py                       # under 9 minutes on one GPU; needs no network, weights are random
    python benchmarks/gpu.py --networks resnet50 --batches 64 --switches channels_last=false

Each case times a few of the engine's steps inside Lightning's loop, as ``visualize`` runs them, and extrapolates to
--steps steps per picture (2,000 as published for classes and hidden units). The share relates the operations of a step
per second to the machine's own rate of a large matrix product in the same precision, measured here. The time for 1,000
classes is extrapolated, without references, saving and evaluation. The most important cases come first; cases that do
not fit into --seconds are left out and listed. A case that fails, such as for lack of memory, is a row with the reason.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision
from machine_rates import matrix_rate, operations_and_bytes, peak_bytes, synchronise
from step_profile import table
from step_time import PRECISIONS, Stopwatch
from torch import nn

from vital_exp import load_model
from vital_exp.engine.batch import Batch
from vital_exp.engine.fitting import fit
from vital_exp.models.network import VisionNetwork
from vital_exp.setup.request import Request
from vital_exp.targets.unit import Target

# torchvision's name: the layer whose channels are the hidden units.
NETWORKS: Mapping[str, str] = {"resnet50": "layer4.1", "vit_l_16": "encoder.layers.encoder_layer_20"}
BATCHES = (64, 16, 1, 256)  # the first is what batch_size=auto takes at most
TIMED = 10  # steps, at least; more if they take less than LEAST_SECONDS
LEAST_SECONDS = 2.0
WARM_UP = 3
SIZE, REFERENCES, CLASSES = 224, 2, 1000
BUDGET = 480.0  # seconds, so that all ends within nine minutes
DTYPES = {"32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Measured:
    """The measurements of a case.

    Attributes:
        seconds: of a step.
        operations: floating-point operations of a step.
        memory: the largest in use, in bytes.
    """

    seconds: float
    operations: float
    memory: float


def random_network(name: str, size: int) -> VisionNetwork:
    """Return a torchvision network with random weights."""
    torch.manual_seed(0)
    module: nn.Module = torchvision.models.get_model(name, weights=None)
    return load_model(module, size=size)


def request_of(
    network: VisionNetwork, layer: str | None, batch: int, steps: int, options: argparse.Namespace
) -> Request:
    """Return the request to the engine."""
    kind = "channel" if layer else "class"
    targets = [Target(kind, index, layer) for index in range(batch)]
    generator = torch.Generator().manual_seed(0)
    return Request.of(
        network,
        targets,
        references=torch.rand(REFERENCES, 3, *network.preprocessing.size, generator=generator),
        steps=steps,
        overrides=[
            *("references.cache=false", "evaluation=none", "progress=false", f"batch_size={batch}"),
            *(f"trainer.accelerator={options.accelerator}", f"trainer.precision={PRECISIONS[options.precision]}"),
            *(["relevance=lrp"] if layer else []),
            *options.switches,
        ],
    )


def fit_seconds(request: Request) -> float:
    """Return the seconds of a step, from a fit by the engine without its first steps."""
    batch = Batch(request.setup, request.targets)
    stopwatch = Stopwatch(request.config.steps, time.perf_counter)
    warm = WarmUp(request.network.device, stopwatch)
    fit(request.setup, batch.module(), batch.names, [stopwatch, warm])
    synchronise(request.network.device)
    return (time.perf_counter() - stopwatch.started) / (request.config.steps - WARM_UP)


class WarmUp(Stopwatch):
    """Restarts a stopwatch after the steps of the warm-up."""

    def __init__(self, device: torch.device, other: Stopwatch) -> None:
        super().__init__(0, other.clock)
        self.device, self.other = device, other

    def on_train_batch_end(self, trainer, *_: object) -> None:  # type: ignore[no-untyped-def]
        """Start when the device has finished the warm-up."""
        if trainer.global_step == WARM_UP:
            synchronise(self.device)
            self.other.started = self.clock()


def operations(request: Request, bf16: bool) -> float:
    """Return the floating-point operations of a step of the request."""
    device = request.network.device
    module = Batch(request.setup, request.targets).module().to(device)
    pictures = module.pictures.network_input().detach()
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        return operations_and_bytes(lambda: module.objective(pictures, 0))[0]


def measure(network: VisionNetwork, layer: str | None, batch: int, options: argparse.Namespace) -> Measured:
    """Time a case; the operations are those of one picture, times the batch."""
    bf16 = options.precision == "bf16"
    each = operations(request_of(network, layer, 1, 1, options), bf16)
    forget, peak = peak_bytes(network.device)
    forget()
    seconds = fit_seconds(request_of(network, layer, batch, WARM_UP + 1, options))
    timed = max(TIMED if seconds * TIMED < options.seconds_per_case else 1, int(LEAST_SECONDS / seconds))
    timed = min(timed, max(1, int(options.seconds_per_case / seconds)))
    seconds = fit_seconds(request_of(network, layer, batch, WARM_UP + timed, options))
    return Measured(seconds, each * batch, peak())


def row(found: Measured, batch: int, steps: int, rate: float) -> dict[str, str]:
    """Return a line of the table."""
    per_picture = found.seconds / batch * steps
    return {
        "step, ms": f"{found.seconds * 1e3:.4g}",
        "pictures per hour": f"{3600 / per_picture:.4g}",
        "share of the matrix rate": f"{found.operations / found.seconds / rate:.1%}",
        "memory, GiB": f"{found.memory / 2**30:.3g}",
        "1,000 classes, minutes (extrapolated)": f"{per_picture * CLASSES / 60:.4g}",
    }


def cases(options: argparse.Namespace) -> Iterator[tuple[str, str, str | None, int]]:
    """Yield name, network, layer of hidden units or None, and batch size, the most important first."""
    layers = dict(NETWORKS) | dict(zip(options.networks, options.layers or [], strict=False))
    for batch in options.batches:
        for network in options.networks:
            for layer in (None, layers[network]):
                yield f"{network} {'hidden' if layer else 'class'}, {batch}", network, layer, batch


def run(options: argparse.Namespace) -> tuple[dict[str, dict[str, str]], list[str], float]:
    """Return the rows of the table, the cases left out, and the matrix rate."""
    started, rows, left_out = time.perf_counter(), {}, []
    device = torch.device(options.accelerator)
    rate = matrix_rate(device, DTYPES[options.precision])
    networks: dict[str, VisionNetwork] = {}
    for name, network, layer, batch in cases(options):
        if time.perf_counter() - started > options.seconds:
            left_out.append(name)
            continue
        networks.setdefault(network, random_network(network, options.size))
        try:
            rows[name] = row(measure(networks[network], layer, batch, options), batch, options.steps, rate)
        except Exception as error:  # a case that fails must not lose the others: the machine is lent for minutes
            rows[name] = dict.fromkeys(row(Measured(1, 1, 1), 1, 1, 1), "-")
            rows[name]["step, ms"] = f"{type(error).__name__}: {str(error).splitlines()[0][:100]}"
        print(f"{name}: {', '.join(f'{key} {value}' for key, value in rows[name].items())}", flush=True)
    return rows, left_out, rate


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), help="torchvision's names")
    parser.add_argument("--layers", nargs="+", help="of the hidden units, one for each network")
    parser.add_argument("--batches", type=int, nargs="+", default=list(BATCHES))
    parser.add_argument("--size", type=int, default=SIZE)
    parser.add_argument("--steps", type=int, default=2000, help="of a picture; only a few are timed")
    parser.add_argument("--precision", default="bf16", choices=list(PRECISIONS))
    parser.add_argument("--switches", nargs="*", default=["channels_last=true"], help="overrides of the configuration")
    parser.add_argument("--accelerator", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--seconds", type=float, default=BUDGET, help="after which no further case begins")
    parser.add_argument("--seconds-per-case", type=float, default=15.0, help="for the timed steps")
    parser.add_argument("--out", type=Path, help="also write the page to this file")
    options = parser.parse_args(arguments)
    if options.accelerator == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU here; --accelerator cpu tries the command")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table."""
    options = parse(arguments)
    rows, left_out, rate = run(options)
    name = torch.cuda.get_device_name() if options.accelerator == "cuda" else "CPU"
    page = [
        f"{name}, torch {torch.__version__}, precision {options.precision}, {' '.join(options.switches)}; "
        f"matrix product {rate / 1e12:.3g} TFLOP/s; {options.size} px, {options.steps} steps a picture",
        "",
        table(rows, "network, target, pictures together"),
        *(["", f"left out, time was over: {'; '.join(left_out)}"] if left_out else []),
    ]
    print("\n" + "\n".join(page))
    if options.out:
        options.out.write_text("\n".join(page) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
