"""Pictures of hidden units of a real backbone: whether they can be read, by all numbers of ``metrics=units`` together.

    VITAL_TEST_DATA=... python benchmarks/hidden_units.py --network resnet50 --layer layer3.5 --relevance lrp none

One row per relevance method, over the units: the numbers of the table "How readable", another network judging; how many
pictures drive their own unit most, the median and the lowest share of the unit's largest natural activation, the median
correspondence; seconds per picture. The first rows are what natural images reach (the ceiling) and chance (the floor).
Writes the table and a sheet per method, each picture beside its unit's references. Images and weights are those of the
tests' data folder; mining is done once and kept in the output folder.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor

from vital_exp.config import compose_config
from vital_exp.engine.request import Request
from vital_exp.engine.visualization import Visualization
from vital_exp.evaluation.evaluate import evaluate_pictures
from vital_exp.evaluation.metrics import chosen
from vital_exp.evaluation.pictures import PictureSet
from vital_exp.evaluation.readability import readable
from vital_exp.evaluation.settings import Settings
from vital_exp.evaluation.table import Evaluation
from vital_exp.images.output import quantised, to_uint8
from vital_exp.models.named import named_network
from vital_exp.models.network import VisionNetwork

BACKBONES = Path(__file__).resolve().parents[1] / "examples" / "backbones.py"
KERAS_MEAN = [0.48502, 0.45796, 0.40760]
HALF = [0.5, 0.5, 0.5]
# Network: factory, weights, mean (None: ImageNet's).
NETWORKS: Mapping[str, tuple[str, str, list[float] | None]] = {
    "resnet50": ("resnet50_to_layer3", "resnet50_to_layer3", KERAS_MEAN),
    "densenet169": ("densenet169_backbone", "densenet169_backbone", None),
    "resnet18": ("resnet18_to_layer3", "resnet18_to_layer3", None),
}
TILE, PATCHES_SHOWN = 112, 8
NATURAL, CHANCE = "(natural images)", "(chance)"


def configuration(options: argparse.Namespace, relevance: str) -> DictConfig:
    """Return the configuration of one run."""
    factory, weights, mean = NETWORKS[options.network]
    asked = [
        *("model=python", f"model.factory={BACKBONES}:{factory}", f"model.mean={mean or 'null'}"),
        f"model.checkpoint={options.data}/data/weights/{weights}.fp16.safetensors",
        *("target=channel", f"target.layer={options.layer}", f"target.index={options.units}"),
        f"references.root={options.data}/data/imagenet-sample",
        *(f"relevance={relevance}", f"method={options.method}", f"seed={options.seed}", "evaluation=none"),
        *("logger=none", "progress=false", f"cache_dir={options.out.resolve()}/cache"),
    ]
    asked += [] if options.steps is None else [f"steps={options.steps}"]
    return compose_config([*asked, *options.overrides])


def judge(data: Path) -> VisionNetwork:
    """Return the network in whose embedding pictures and natural images are compared."""
    spec: dict[str, Any] = {"source": "timm", "name": "mobilenetv2_100", "arguments": {"pad_type": "same"}}
    weights = f"{data}/data/weights/mobilenetv2_100.fp16.safetensors"
    return named_network({**spec, "mean": HALF, "std": HALF, "checkpoint": weights})


def sheet(pictures: Tensor, patches: Sequence[Tensor], path: Path) -> None:
    """Write one row per unit: its picture, then its strongest patches."""
    size = 2 * TILE
    page = Image.new("RGB", (size + PATCHES_SHOWN // 2 * TILE, len(pictures) * size))
    for row, (picture, own) in enumerate(zip(pictures, patches, strict=True)):
        page.paste(_tile(picture, size), (0, row * size))
        for number, patch in enumerate(own[:PATCHES_SHOWN]):
            place = (size + number % (PATCHES_SHOWN // 2) * TILE, row * size + number // (PATCHES_SHOWN // 2) * TILE)
            page.paste(_tile(patch, TILE), place)
    page.save(path)


def _tile(picture: Tensor, side: int) -> Image.Image:
    image = Image.fromarray(to_uint8(picture).permute(1, 2, 0).numpy())
    return image.resize((side, side), Image.Resampling.BICUBIC)


def run(options: argparse.Namespace, relevance: str, network: VisionNetwork) -> dict[str, dict[str, float]]:
    """Make the pictures by one relevance method; return its row, and those of natural images and chance."""
    request = Request.from_config(configuration(options, relevance))
    visualization = Visualization(request.config, request.network, request.targets, request.references)
    started = time.perf_counter(), time.process_time()
    made = visualization.run()
    clocks = time.perf_counter() - started[0], time.process_time() - started[1]
    patches = [torch.stack(list(islice(request.references.images(t), PATCHES_SHOWN))) for t in request.targets]
    sheet(quantised(made.images), patches, options.out / f"{options.network}_{options.name}_{relevance}.png")
    found = evaluate_pictures(
        *(request.network, PictureSet(request.targets, to_uint8(made.images)), request.references, [network]),
        *(chosen("units"), (), Settings(), options.out / "cache"),
        keep=True,
    )
    rows = readable(found.metrics)
    own = {row.measure.number: row.pictures for row in rows}
    return {
        NATURAL: _values({row.measure.number: row.ceiling for row in rows}),
        CHANCE: _values({row.measure.number: row.floor for row in rows}),
        relevance: {
            **_values(own),
            "own units first": sum(_finite(found, "own_unit_first")),
            "median share": statistics.median(_finite(found, "activation_ratio")),
            "lowest share": min(_finite(found, "activation_ratio")),
            "median correspondence": statistics.median(_finite(found, f"correspondence_auc[{network.name}]")),
            "seconds": clocks[0] / len(made.images),
            "processor seconds": clocks[1] / len(made.images),
        },
    }


def _finite(found: Evaluation, name: str) -> list[float]:
    """The numbers of the targets that have one."""
    return [value for value in found.scores[name].values or () if math.isfinite(value)]


def _values(entries: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    return {name: entry["value"] for name, entry in entries.items() if entry["value"] is not None}


def table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Return a Markdown table, one row per method."""
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    lines = [f"| relevance | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, row in rows.items():
        cells = (f"{row[column]:.3g}" if column in row else "" for column in columns)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=list(NETWORKS), default="resnet50")
    parser.add_argument("--layer", default="layer3.5")
    parser.add_argument("--units", default="[7,71,135,199,263,327,391,455,519,583,647,711,775,839,903,967]")
    parser.add_argument("--relevance", nargs="+", default=["lrp", "none", "correlation"])
    parser.add_argument("--method", default="vital")
    parser.add_argument("--steps", type=int, help="by default the method's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", default="vital", help="of the files written")
    parser.add_argument("--overrides", nargs="*", default=[], help="as vital-visualize takes them")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("VITAL_TEST_DATA", ".")))
    parser.add_argument("--out", type=Path, default=Path("outputs/hidden_units"))
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the methods and print their table."""
    options = parse(arguments)
    options.data = options.data.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    network = judge(options.data)
    rows: dict[str, dict[str, float]] = {}
    for relevance in options.relevance:
        rows |= run(options, relevance, network)
        (options.out / f"{options.network}_{options.name}.md").write_text(table(rows) + "\n")
    print(f"{options.network} {options.layer}, {options.method}, torch {torch.__version__}\n\n{table(rows)}")


if __name__ == "__main__":
    main()
