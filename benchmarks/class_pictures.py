"""Methods compared on class pictures of a real network: recognition by the network and by judges, and seconds.

    VITAL_TEST_DATA=... python benchmarks/class_pictures.py --network cifar --methods vital vital_fourier --seeds 0 1 2

One row per method, over seeds and ten classes: top-1 accuracy of the network itself, top-1 and top-5 accuracy and mean
log-probability of the judges, seconds per picture. Writes a Markdown table and, for each method, a sheet of the first
seed's pictures. Networks and images are those of the tests' data folder, which ``embedded`` and ``embedded_vit`` do not
need.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vital_exp.config import compose_config
from vital_exp.configuration import Configuration
from vital_exp.evaluation.recognition import logits
from vital_exp.images.output import quantised, to_uint8
from vital_exp.models.named import named_network
from vital_exp.models.network import VisionNetwork
from vital_exp.setup.request import Request
from vital_exp.visualization.run import Visualization

FACTORY = f"{Path(__file__).resolve().parents[1] / 'examples' / 'my_network.py'}:resnet"
CIFAR_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
HALF = [0.5, 0.5, 0.5]
COLUMNS = 5  # of a sheet
SMALLEST_TILE = 128  # px; smaller pictures are enlarged


def specs(data: Path) -> dict[str, dict[str, Any]]:
    """Return the keys of the group ``model`` of this benchmark's networks in the data folder."""
    weights = data / "data" / "weights"
    cifar = {"source": "python", "factory": FACTORY, "size": 32, "class_names": CIFAR_CLASSES}
    timm = {"source": "timm", "mean": HALF, "std": HALF}
    return {
        "resnet20": {
            **cifar,
            "name": "resnet20",
            "arguments": {"depth": 20},
            "checkpoint": f"{weights}/cifar10_resnet20.safetensors",
        },
        "resnet56": {
            **cifar,
            "name": "resnet56",
            "arguments": {"depth": 56},
            "checkpoint": f"{weights}/cifar10_resnet56.safetensors",
        },
        "mobilenet": {
            **timm,
            "name": "mobilenetv2_100",
            "arguments": {"pad_type": "same"},
            "checkpoint": f"{weights}/mobilenetv2_100.fp16.safetensors",
        },
        "vit": {
            **timm,
            "name": "vit_tiny_patch16_224",
            "checkpoint": f"{weights}/vit_tiny_patch16_224.fp16.safetensors",
        },
        **{
            name: {
                **timm,
                "name": f"tf_efficientnet_{name}",
                "checkpoint": f"{weights}/tf_efficientnet_{name}.fp16.safetensors",
            }
            for name in ("lite0", "lite2")
        },
        "squeezenet": {
            "source": "torchvision",
            "name": "squeezenet1_1",
            "checkpoint": f"{weights}/squeezenet1_1.fp16.safetensors",
        },
    }


# Network, its judges, the folder of reference images.
CONTESTS: Mapping[str, tuple[str, Sequence[str], str]] = {
    "cifar": ("resnet20", ("resnet56",), "cifar10/train"),
    "mobilenet": ("mobilenet", ("vit", "squeezenet"), "imagenette"),
    "vit": ("vit", ("mobilenet", "squeezenet"), "imagenette"),
    "lite0": ("lite0", ("mobilenet", "vit", "squeezenet"), "imagenette"),
}
# The same of the networks that need no data.
EMBEDDED: Mapping[str, tuple[str, Sequence[str]]] = {
    "embedded": ("embedded_resnet", ("embedded_judge", "embedded_vit")),
    "embedded_vit": ("embedded_vit", ("embedded_judge", "embedded_resnet")),
}


def configuration(options: argparse.Namespace, method: str, seed: int) -> Configuration:
    """Return the configuration of one run."""
    common = [f"method={method}", f"seed={seed}", "target.index=all", "evaluation=none", "logger=none"]
    common += [] if options.steps is None else [f"steps={options.steps}"]
    if options.network in EMBEDDED:
        return compose_config([f"model={EMBEDDED[options.network][0]}", *common, *options.overrides])
    network, _, images = CONTESTS[options.network]
    root = f"references.root={options.data / 'data' / images}"
    config = compose_config(["model=python", root, *common, *options.overrides])
    return config.with_keys(**{f"model__{key}": value for key, value in specs(options.data)[network].items()})


def judges_of(options: argparse.Namespace) -> dict[str, VisionNetwork]:
    """Return the judges by name."""
    if options.network in EMBEDDED:
        return {name: named_network(name) for name in EMBEDDED[options.network][1]}
    return {name: named_network(specs(options.data)[name]) for name in CONTESTS[options.network][1]}


def opinions(networks: Mapping[str, VisionNetwork], pictures: Tensor, index: Tensor) -> dict[str, dict[str, Tensor]]:
    """Return for each network whether it recognises each picture (top-1, top-5), and the class's log-probability."""
    found = {}
    for name, network in networks.items():
        scores = logits(network, pictures).log_softmax(dim=1)
        own = scores.gather(1, index[:, None])
        rank = (scores > own).sum(dim=1)
        found[name] = {"top1": (rank < 1).float(), "top5": (rank < 5).float(), "log p": own[:, 0]}
    return found


def run(options: argparse.Namespace, method: str, judges: Mapping[str, VisionNetwork]) -> dict[str, float]:
    """Make the pictures of all seeds by one method; return the means over seeds and classes."""
    parts: dict[str, list[Tensor]] = {}
    for seed in options.seeds:
        request = Request.from_config(configuration(options, method, seed))
        started = time.perf_counter(), time.process_time()
        made = Visualization(request).run()
        clocks = time.perf_counter() - started[0], time.process_time() - started[1]
        pictures = quantised(made.images)
        index = torch.tensor([target.index for target in request.targets])
        for name, columns in opinions({"itself": request.network, **judges}, pictures, index).items():
            for column, values in columns.items():
                parts.setdefault(f"{name} {column}", []).append(values)
        for column, seconds in zip(("seconds", "processor seconds"), clocks, strict=True):
            parts.setdefault(column, []).append(torch.tensor([seconds / len(index)]))
        if seed == options.seeds[0]:
            save_sheet(pictures, options.out / f"{options.network}_{method}.png")
    steps = {"steps": float(request.config.steps)}
    return steps | {column: float(torch.cat(values).mean()) for column, values in parts.items()}


def save_sheet(pictures: Tensor, path: Path) -> None:
    """Write pictures (N, 3, H, W) RGB in [0, 1] side by side."""
    side = max(pictures.shape[-1], SMALLEST_TILE)
    sheet = Image.new("RGB", (COLUMNS * side, -(-len(pictures) // COLUMNS) * side))
    for number, picture in enumerate(pictures):
        tile = Image.fromarray(to_uint8(picture).permute(1, 2, 0).numpy()).resize(
            (side, side), Image.Resampling.BICUBIC
        )
        sheet.paste(tile, (number % COLUMNS * side, number // COLUMNS * side))
    sheet.save(path)


def table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Return a Markdown table, one row per method."""
    columns = list(next(iter(rows.values())))
    lines = [f"| method | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(f'{row[column]:.3g}' for column in columns)} |" for name, row in rows.items()]
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=[*CONTESTS, *EMBEDDED], default="embedded")
    parser.add_argument("--methods", nargs="+", default=["vital", "vital_fourier"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, help="for every method; by default its own")
    parser.add_argument("--overrides", nargs="*", default=[], help="as vital-visualize takes them")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("VITAL_TEST_DATA", ".")))
    parser.add_argument("--out", type=Path, default=Path("outputs/class_pictures"))
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all methods and print the table."""
    options = parse(arguments)
    options.data = options.data.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    judges = judges_of(options)
    rows = {}
    for method in options.methods:
        rows[method] = run(options, method, judges)
        (options.out / f"{options.network}.md").write_text(table(rows) + "\n")  # a long contest may be interrupted
    print(f"{options.network}, ten classes, seeds {options.seeds}, torch {torch.__version__}\n\n{table(rows)}")


if __name__ == "__main__":
    main()
