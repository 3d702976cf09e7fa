"""Scale: two processes against one, and thousands of targets in one run folder.

    python benchmarks/scale.py parallel                 64 hidden units of a CIFAR ResNet-20, 1 process and 2
    python benchmarks/scale.py many --targets 5000      classes of a tiny network: memory, seconds per target, opening
    python benchmarks/scale.py steps                    seconds per step of the plan in docs/scale.md

``--weights file.safetensors`` takes a trained ResNet-20; random weights cost the same. Run it from the checkout.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

REPEATS = 3
UNITS = 64
BATCH = 8
NO_BATCH_NORM = ("convnext_base", "vit_l_16", "vit_l_32")  # what DeepInversion needs
DECILES = 10
GPUS = 8
GPU_STEP = 0.02  # seconds of one picture's step on one GPU: the paper's 40 s per picture of 2,000 steps, ResNet-50
NETWORKS = ("resnet50", "densenet121", "convnext_base", "vit_l_16", "vit_l_32")
METHODS = ("vital", "vital_fourier", "fourier", "maco", "deep_inversion", "activation_max", "prototype")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("parallel", "many", "steps"))
    parser.add_argument("--targets", type=int, default=5000)
    parser.add_argument("--steps", type=int, default=400, help="of parallel; the fast recipe's")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--weights", help="a ResNet-20 of CIFAR-10, .safetensors")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        figures = {"parallel": parallel, "many": many, "steps": steps}[options.what](options, Path(place))
    print(json.dumps(figures, indent=2))


def parallel(options: argparse.Namespace, place: Path) -> dict[str, object]:
    """Time the same 64 targets in one process and in two, with one thread each, start and evaluation included."""
    command(options, place / "warm", 1, "steps=1")  # mines the references, which both find in the cache
    seconds: dict[int, list[float]] = {1: [], 2: []}
    optimising: dict[int, list[float]] = {1: [], 2: []}
    for repeat in range(options.repeats):
        for devices in (1, 2):
            started = time.perf_counter()
            command(options, place / f"{devices}-{repeat}", devices)
            seconds[devices].append(time.perf_counter() - started)
            optimising[devices].append(total_seconds(place / f"{devices}-{repeat}"))
    one, two = (place / f"{devices}-0" / "images" for devices in (1, 2))
    names = sorted(path.name for path in one.iterdir())
    same = filecmp.cmpfiles(one, two, names, shallow=False)[0]
    ratios = [a / b for a, b in zip(seconds[1], seconds[2], strict=True)]
    return {
        "seconds": seconds,
        "seconds of all batches": optimising,
        "faster": round(statistics.median(ratios), 2),
        "from": round(min(ratios), 2),
        "to": round(max(ratios), 2),
        "identical pictures": f"{len(same)} of {len(names)}",
        "load before": os.getloadavg(),
    }


def command(options: argparse.Namespace, folder: Path, devices: int, *more: str) -> None:
    """Run vital-visualize on the 64 channels."""
    weights = [f"model.checkpoint={Path(options.weights).resolve()}"] if options.weights else []
    arguments = [
        *("model=python", "model.factory=tests.tiny:cifar_resnet20", "model.size=32", *weights),
        *("target=channel", "target.layer=layer3.2", "target.index=all", "references.count=10", "relevance=none"),
        *(f"references.root={drawn(folder.parent)}", f"cache_dir={folder.parent / 'cache'}", "references.region=image"),
        *(f"steps={options.steps}", f"batch_size={BATCH}", "logger=none", "progress=false", "checkpoint_every=10000"),
        *("trainer.accelerator=cpu", f"trainer.devices={devices}", f"hydra.run.dir={folder}", *more),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    subprocess.run(
        [sys.executable, "-m", "vital_exp", "visualize", *arguments],
        check=True,
        env=environment,
        stdout=subprocess.DEVNULL,
    )


def drawn(place: Path) -> Path:
    """The folder of drawn images that is mined."""
    from vital_exp.mining.drawn import drawn_folder

    return drawn_folder(place / "cache")


def total_seconds(folder: Path) -> float:
    return sum(json.loads(line)["seconds"] for line in (folder / "results.jsonl").read_text().splitlines())


def many(options: argparse.Namespace, place: Path) -> dict[str, object]:
    """Make thousands of pictures in this process, as the command does, and note memory and time of each batch."""
    import torch

    from tests.tiny import image_folder
    from vital_exp.config import compose_config
    from vital_exp.engine import memory
    from vital_exp.reporting.gallery import write_gallery
    from vital_exp.runs.folder import RunFolder
    from vital_exp.setup.request import Request
    from vital_exp.visualization.run import Visualization

    torch.set_num_threads(1)
    image_folder(place / "photos", ["all"], count=4, side=16)
    overrides = [
        *("model=python", "model.factory=tests.tiny:tiny_net", f"model.arguments={{classes:{options.targets}}}"),
        *("model.size=16", "steps=5", "batch_size=20", "references=folder", "references.count=4"),
        *(f"references.root={place / 'photos' / 'all'}", "target.index=all", "logger=none", "progress=false"),
        *("trainer.accelerator=cpu", "references.cache=false"),
    ]
    request = Request.from_config(compose_config(overrides))
    folder = RunFolder(place / "run", request.config)
    looks = [(time.perf_counter(), psutil.Process().memory_info().rss)]

    class Watched(Visualization):
        def _make(self, *arguments: object) -> None:
            super()._make(*arguments)  # type: ignore[arg-type]
            looks.append((time.perf_counter(), psutil.Process().memory_info().rss))

    run = Watched(*(request.config, request.network, request.targets, request.references), folder=folder, keep=False)
    run.make()
    folder.close()
    opened = time.perf_counter()
    RunFolder(place / "run", request.config).close()
    reported = time.perf_counter()
    page = write_gallery(place / "run")
    ended = time.perf_counter()
    shown = seconds_in_browser(page)
    return {
        **deciles(looks, options.targets),
        "largest memory (MiB)": round(memory.peak(torch.device("cpu"))),
        "opening the run folder (s)": round(reported - opened, 2),
        "writing the report (s)": round(ended - reported, 2),
        "report (MB)": round(page.stat().st_size / 1e6, 1),
        "opening the report in Chromium (s)": shown,
    }


def seconds_in_browser(page: Path) -> float | str:
    """Return the seconds until Chromium has loaded a page, or why they cannot be measured."""
    from tests.chromium import NAMES, tab

    if not any(map(shutil.which, NAMES)):
        return "needs Chromium"
    with tab(page.parent / "profile") as opened:
        started = time.perf_counter()
        opened.open(page)
        return round(time.perf_counter() - started, 2)


def steps(_options: argparse.Namespace, _place: Path) -> dict[str, object]:
    """Time a step of one picture, for all networks by one method and for one network by all; print the plan's times."""
    seconds, counts = {}, {}
    for model, method in [*((model, METHODS[0]) for model in NETWORKS), *((NETWORKS[0], one) for one in METHODS[1:])]:
        seconds[model, method], counts[method] = step(model, method)
        print(f"{model} {method}: {seconds[model, method]:.3f} s, {counts[method]} steps", file=sys.stderr, flush=True)
    return plan(seconds, counts)


def step(model: str, method: str) -> tuple[float, int]:
    """Return the CPU seconds of a step of one picture, since the machine may be shared, and the method's steps."""
    import torch
    from torch import nn

    from vital_exp.config import compose_config
    from vital_exp.setup.request import Request
    from vital_exp.visualization.step_time import seconds_per_step, trial

    torch.set_num_threads(1)
    overrides = [f"model={model}", f"method={method}", "model.pretrained=false", "target.index=0"]
    request = Request.from_config(compose_config([*overrides, "trainer.accelerator=cpu"]))
    for norm in request.network.module.modules():
        if isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None:
            norm.running_mean.normal_()  # of a network that was never trained they are not taken for real
    batch = trial(request.setup, request.targets[:1], 1, 1)
    return seconds_per_step(batch, clock=time.process_time), int(request.config.steps)


def plan(seconds: dict[tuple[str, str], float], counts: dict[str, int]) -> dict[str, object]:
    """Return the times of 1,000 pictures of each network and method on the assumed GPU."""
    first = seconds[NETWORKS[0], METHODS[0]]

    def hours(model: str, method: str) -> float | None:
        if method == "deep_inversion" and model in NO_BATCH_NORM:
            return None
        cost = seconds[model, METHODS[0]] * seconds[NETWORKS[0], method] / first**2
        return round(1000 * counts[method] * GPU_STEP * cost / 3600, 1)

    table = {model: {method: hours(model, method) for method in METHODS} for model in NETWORKS}
    total = sum(value for row in table.values() for value in row.values() if value is not None)
    return {
        "processor seconds per step": {" ".join(key): round(value, 3) for key, value in seconds.items()},
        "steps": counts,
        f"GPU hours of 1,000 pictures, a step of {NETWORKS[0]} {METHODS[0]} at {GPU_STEP} s": table,
        "GPU hours of all": round(total),
        f"days on {GPUS}": round(total / GPUS / 24, 1),
    }


def deciles(looks: list[tuple[float, int]], targets: int) -> dict[str, object]:
    """Memory and seconds per target by tenth of the run."""
    size = (len(looks) - 1) // DECILES
    parts = [looks[i * size : (i + 1) * size + 1] for i in range(DECILES)]  # from the last of the one before
    memory = [statistics.mean(rss for _, rss in part[1:]) / 1e6 for part in parts]
    each = targets / (len(looks) - 1)
    pace = [(part[-1][0] - part[0][0]) / (len(part) - 1) / each * 1000 for part in parts]
    return {
        "memory by tenth (MB)": [round(value, 1) for value in memory],
        "last tenth of the second": round(memory[-1] / memory[1], 3),
        "milliseconds per target by tenth": [round(value, 1) for value in pace],
    }


if __name__ == "__main__":
    main()
