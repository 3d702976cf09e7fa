"""How readable pictures of hidden units are: recipes on real networks, by several metrics, with intervals.

    VITAL_TEST_DATA=... python benchmarks/hidden_units.py --layers mobilenetv2:bn2 --recipes default fourier

Each layer and recipe has a run folder, of units drawn at random by ``--seed`` and, of each unit, the main facet in the
tests' ImageNet images. The benchmark can be stopped at any time: a second call finishes runs and makes the missing
ones. Each run is scored by ``metrics=units`` with two judges. Writes ``hidden_units.csv`` (all numbers with intervals,
of all runs in the folder), ``hidden_units_table.md`` (the main numbers) and two sheets for each run: its pictures, and
each picture beside eight natural windows of its unit.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import shutil
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

import vital_exp
from vital_exp.images.output import to_uint8
from vital_exp.models.layers import unit_shape
from vital_exp.models.named import named_network
from vital_exp.models.network import VisionNetwork
from vital_exp.setup.request import Request

BACKBONES = Path(__file__).resolve().parents[1] / "examples" / "backbones.py"
HALF = (0.5, 0.5, 0.5)
KERAS_MEAN = (0.48502, 0.45796, 0.40760)  # of the ResNet-50's weights


@dataclass(frozen=True)
class Network:
    """A network of the tests' data.

    Attributes:
        name: its name in timm, or a function of examples/backbones.py.
        weights: the name of its file of weights, without suffix.
        mean, std: of its preprocessing; None: ImageNet's.
        arguments: arguments of timm's builder.
        ours: whether examples/backbones.py builds it.
    """

    name: str
    weights: str
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    arguments: Mapping[str, Any] | None = None
    ours: bool = False

    def keys(self, data: Path) -> dict[str, Any]:
        """Return the keys of the group model."""
        known = {"mean": self.mean, "std": self.std, "arguments": self.arguments}
        keys: dict[str, Any] = {key: value for key, value in known.items() if value is not None}
        built = {"source": "timm", "name": self.name}
        if self.ours:
            built = {"source": "python", "factory": f"{BACKBONES}:{self.name}"}
        return {**keys, **built, "checkpoint": f"{data}/data/weights/{self.weights}.fp16.safetensors"}


NETWORKS: Mapping[str, Network] = {
    "mobilenetv2": Network("mobilenetv2_100", "mobilenetv2_100", HALF, HALF, {"pad_type": "same"}),
    "lite0": Network("tf_efficientnet_lite0", "tf_efficientnet_lite0", HALF, HALF),
    "vit_tiny": Network("vit_tiny_patch16_224", "vit_tiny_patch16_224", HALF, HALF),
    "resnet18": Network("resnet18_to_layer3", "resnet18_to_layer3", ours=True),
    "resnet50": Network("resnet50_to_layer3", "resnet50_to_layer3", KERAS_MEAN, ours=True),
    "densenet169": Network("densenet169_backbone", "densenet169_backbone", ours=True),
}
JUDGES = ("vit_tiny", "lite0", "mobilenetv2")  # the first two that are not the network itself
LAYERS = (
    *("mobilenetv2:bn2", "mobilenetv2:blocks.4", "resnet50:layer3.5"),
    *("densenet169:features.denseblock3", "densenet169:features.denseblock4", "lite0:bn2"),
)
# The references of methods that have none of their own: what the default recipe has.
WINDOWS = ("references.facets=auto", "references.region=window", "references.count=12", "references.candidates=80")


@dataclass(frozen=True)
class Recipe:
    """A method with overrides; ``facets``: whether its targets are main facets rather than whole units."""

    method: str
    overrides: tuple[str, ...] = ()
    facets: bool = True


RECIPES: Mapping[str, Recipe] = {
    "default": Recipe("vital_fourier"),
    **{f"default, {name}": Recipe("vital_fourier", (f"relevance={name}",)) for name in ("lrp", "guided_backprop")},
    "default, correlation": Recipe("vital_fourier", ("relevance=correlation",)),
    # The recipe with one part otherwise.
    "without the own layer": Recipe("vital_fourier", ("objective.alignment.target_weight=0",)),
    "first layer as published": Recipe("vital_fourier", ("objective.alignment.stem_weight=null",)),
    "with the unit's activation": Recipe("vital_fourier", ("objective.alignment.readout_weight=0.1",)),
    **{
        name: Recipe("vital_fourier", (f"objective.alignment.detail_weight={weight}",))
        for name, weight in {"without details": 0, "details at 1": 1}.items()
    },
    "windows enlarged": Recipe("vital_fourier", ("references.enlarge=true",)),
    "400 steps": Recipe("vital_fourier", ("steps=400",)),
    # What vital_fourier was until facets: patches, LRP, the unit's own activation as a layer of its own.
    "before": Recipe(
        "vital_fourier",
        (
            *("relevance=lrp", "references.facets=1", "references.region=patch", "references.count=50"),
            *("references.candidates=50", "references.patch.search=strongest", "objective.alignment.readout_weight=1"),
            *("objective.alignment.target_weight=0", "objective.alignment.stem_weight=null", "steps=400"),
            "objective.alignment.detail_weight=0",
        ),
        facets=False,
    ),
    "published": Recipe("vital", ("references.patch.search=strongest",), facets=False),
    "fourier": Recipe("fourier", WINDOWS),
    "maco": Recipe("maco", WINDOWS),
}
MAIN = ("correspondence_auc", "correspondence_auc_natural", "activation_ratio", "own_unit_first")
MAIN += ("own_unit_first_natural", "mis_pictures", "mis_natural", "high_frequency_ratio", "path_similarity", "seconds")
TILE, SHOWN = 96, 8  # of a sheet: px of a natural window, how many


def units_of(network: VisionNetwork, layer: str, count: int, seed: int) -> list[int]:
    """Return a random choice of a layer's channels."""
    return sorted(random.Random(seed).sample(range(unit_shape(network, layer)[0]), count))


def images(options: argparse.Namespace) -> Path:
    """Return the folder of the 2,000 images to mine: one of each class of ImageNet, and 100 of each of ten classes."""
    folder: Path = options.out / "images"
    for name in ("imagenet-sample", "imagenette"):
        if not (folder / name).exists():
            shutil.copytree(options.data / "data" / name, folder / f"{name}.part", copy_function=shutil.copyfile)
            (folder / f"{name}.part").rename(folder / name)
    return folder


def run(options: argparse.Namespace, place: str, recipe: Recipe, folder: Path) -> None:
    """Make or finish the pictures of one layer by one recipe, score them, and write their sheets."""
    name, layer = place.split(":")
    network = named_network(NETWORKS[name].keys(options.data))
    units = units_of(network, layer, options.units, options.seed)
    targets = [f"{layer}:{unit}#0" if recipe.facets else f"{layer}:{unit}" for unit in units]
    steps = [] if options.steps is None else [f"steps={options.steps}"]
    given = [*recipe.overrides, *steps, f"cache_dir={options.out.resolve()}/cache", "evaluation=none", "logger=none"]
    root = images(options)
    keys: dict[str, Any] = {"method": recipe.method, "references": root, "overrides": given, "seed": options.seed}
    made = vital_exp.visualize(network, targets, out=folder, **keys)
    judges = [NETWORKS[judge].keys(options.data) for judge in JUDGES if judge != name][:2]
    vital_exp.evaluate(folder, judges=judges, metrics=["units", "seconds"], model=network).save(folder)
    request = Request.of(network, targets, **{**keys, "overrides": ["progress=false", *given]})
    natural = [list(islice(request.references.images(target), SHOWN)) for target in request.targets]
    sheet(made.images, [[] for _ in natural], folder / "pictures.jpg")
    sheet(made.images, natural, folder / "sheet.jpg")


def sheet(pictures: Tensor, natural: Sequence[Sequence[Tensor]], path: Path) -> None:
    """Write a sheet of pictures in columns, with natural windows of the unit to the right of each, if there are any."""
    side, across, columns = 2 * TILE, SHOWN // 2, 2 if natural[0] else 4
    width, height = side + (across * TILE if natural[0] else 0) + TILE // 16, side + TILE // 16
    page = Image.new("RGB", (columns * width, -(-len(pictures) // columns) * height), "white")
    for number, (picture, own) in enumerate(zip(pictures, natural, strict=True)):
        x, y = number % columns * width, number // columns * height
        page.paste(_tile(picture, side), (x, y))
        for place, image in enumerate(own):
            page.paste(_tile(image, TILE), (x + side + place % across * TILE, y + place // across * TILE))
    page.save(path, quality=80)


def _tile(picture: Tensor, side: int) -> Image.Image:
    image = Image.fromarray(to_uint8(picture.clamp(0, 1)).permute(1, 2, 0).numpy())
    return image.resize((side, side), Image.Resampling.BICUBIC)


def collect(out: Path) -> list[dict[str, str]]:
    """Return a row per number and run with metrics in the folder."""
    rows = []
    for path in sorted(out.glob("*/*/metrics.json")):
        recipe, place = path.parent.name, path.parent.parent.name
        for metric, score in json.loads(path.read_text()).items():
            values = [
                f"{score[key]:.4g}" if isinstance(score.get(key), float) else "" for key in ("value", "low", "high")
            ]
            row = [place, recipe, metric, *values, _median(path.parent / "metrics.csv", metric)]
            rows.append(dict(zip(COLUMNS, row, strict=True)))
    return rows


COLUMNS = ("layer", "recipe", "metric", "value", "low", "high", "median")


def _median(path: Path, metric: str) -> str:
    """Return the median over units of a number that has a value per unit; empty for other numbers."""
    with path.open(newline="") as file:
        values = [float(row[metric]) for row in csv.DictReader(file) if row.get(metric) not in (None, "", "nan")]
    return f"{statistics.median(values):.4g}" if values else ""


def write(rows: Sequence[Mapping[str, str]], out: Path) -> str:
    """Write all numbers as CSV and the main ones as a Markdown table; return the table."""
    with (out / "hidden_units.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    cells = {(row["layer"], row["recipe"], row["metric"]): row for row in rows}
    runs = list(dict.fromkeys((row["layer"], row["recipe"]) for row in rows))
    names = list(dict.fromkeys(row["metric"] for row in rows))
    shown = [name for main in MAIN for name in names if name.partition("[")[0] == main]
    lines = [f"| layer | recipe | {' | '.join(shown)} |", "|---" * (len(shown) + 2) + "|"]
    for run in runs:
        numbers = [_cell(cells.get((*run, name))) for name in shown]
        lines.append(f"| {' | '.join([*run, *numbers])} |")
    table = "\n".join(lines) + "\n"
    (out / "hidden_units_table.md").write_text(table)
    return table


def _cell(row: Mapping[str, str] | None) -> str:
    if row is None or not row["value"]:
        return ""
    interval = f" ({row['low']} to {row['high']})" if row["low"] else ""
    median = f"; median {row['median']}" if row["median"] else ""
    return f"{row['value']}{interval}{median}"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", nargs="+", default=list(LAYERS), help="network:layer")
    parser.add_argument("--recipes", nargs="+", default=["default", "fourier", "maco", "before"], choices=list(RECIPES))
    parser.add_argument("--units", type=int, default=16)
    parser.add_argument("--steps", type=int, help="by default the method's")
    parser.add_argument("--seed", type=int, default=0, help="of the units and the pictures")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("VITAL_TEST_DATA", ".")))
    parser.add_argument("--out", type=Path, default=Path("outputs/hidden_units"))
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the runs that are missing and print the table."""
    options = parse(arguments)
    options.data = options.data.resolve()
    for place in options.layers:
        for name in options.recipes:
            folder = options.out / place.replace(":", "-") / name.replace(", ", "_")
            if not (folder / "sheet.jpg").exists():
                run(options, place, RECIPES[name], folder)
            table = write(collect(options.out), options.out)
    print(table)


if __name__ == "__main__":
    main()
