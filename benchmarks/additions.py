"""What SPADE, a theme, a prior and steering add: metrics of pictures with and without each, with intervals.

    VITAL_TEST_DATA=... python benchmarks/additions.py --places resnet20:layer2 embedded:layer3 embedded:classes

Each layer, recipe and seed has a run folder, of all classes or of units drawn at random. Each recipe with an addition
is compared with the same method without it, by judges; the metrics always read the units from the whole network, which
nothing steers. A second call makes what is missing. Writes ``additions.csv``, and ``tables.md`` with the tables of
``additions.md``.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import random
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import islice, product
from pathlib import Path
from typing import Any

import torch
from class_pictures import specs

import vital_exp
from vital_exp.evaluation.correspondence import correspondence, unit_vectors
from vital_exp.evaluation.intervals import bootstrap_mean
from vital_exp.evaluation.pictures import run_pictures
from vital_exp.evaluation.reading import NetworkReader
from vital_exp.images.output import in_unit
from vital_exp.models.layers import unit_shape
from vital_exp.models.named import named_network
from vital_exp.models.network import VisionNetwork
from vital_exp.references.drawn import DrawnReferences
from vital_exp.references.folder import FolderReferences
from vital_exp.targets.selection import parse_target
from vital_exp.targets.unit import Target

NETWORK = Path(__file__).resolve().parents[1] / "examples" / "my_network.py"
CIFAR = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
# The references of methods that have none of their own: what vital_fourier has.
WINDOWS = ("references.facets=auto", "references.region=window", "references.count=12", "references.candidates=80")
SPADE = ("model.sparsify=spade",)
PRIOR = ("image=prior", "image.weights=embedded")
FACET = ("objective=[activation,facet]", "objective.facet.theme={theme}")
STEERED = ("steer={steered}:+2sd",)
RECIPES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "vital_fourier": ("vital_fourier", ()),
    "vital_fourier, SPADE": ("vital_fourier", SPADE),
    "vital_fourier, SPADE 0.5": ("vital_fourier", (*SPADE, "model.sparsity=0.5")),
    "fourier": ("fourier", WINDOWS),
    "fourier, SPADE": ("fourier", (*WINDOWS, *SPADE)),
    "fourier, SPADE 0.5": ("fourier", (*WINDOWS, *SPADE, "model.sparsity=0.5")),
    "fourier, facet": ("fourier", (*WINDOWS, *FACET)),
    "fourier, steer": ("fourier", (*WINDOWS, *STEERED)),
    "vital_fourier, steer": ("vital_fourier", STEERED),
    "vital_fourier, prior": ("vital_fourier", PRIOR),
    "fourier, prior": ("fourier", (*WINDOWS, *PRIOR)),
}
THEMES = {"resnet20": "ship", "embedded": "heart", "mobilenet": "church", "lite0": "church"}
BELOW = {"resnet20": "layer1:3", "embedded": "layer1:3", "mobilenet": "blocks.1:3", "lite0": "blocks.1:3"}
CLASSES = "classes"  # in place of a layer
OF_CLASSES = ("accuracy", "transfer", "correspondence", "high_frequency")  # metrics of pictures of classes
SHOWN = (
    *(
        "top1",
        "probability",
        "correspondence_auc",
        "mis_pictures",
        "activation_ratio",
        "own_unit_first",
        "high_frequency",
    ),
    "theme",
)
THEME_IMAGES = 40  # with the theme, and of the other classes together
SIDE = 96  # px at which the networks of 224 px are read: a fifth of the cost

COLUMNS = ("place", "recipe", "metric", "value", "low", "high")


def cifar(data: Path, depth: int) -> dict[str, Any]:
    """Return the keys of a CIFAR-10 ResNet of the tests' data."""
    weights = f"{data}/data/weights/cifar10_resnet{depth}.safetensors"
    built = {"source": "python", "factory": f"{NETWORK}:resnet", "arguments": {"depth": depth}, "size": 32}
    return {**built, "name": f"resnet{depth}", "checkpoint": weights, "class_names": CIFAR}


def network_of(name: str, data: Path) -> tuple[VisionNetwork, list[Any], Path | None]:
    """Return a network, its judges and its folder of images; None stands for drawn images."""
    if name == "embedded":
        return named_network("embedded_resnet"), ["embedded_judge", "embedded_vit"], None
    if name == "resnet20":
        return named_network(cifar(data, 20)), [cifar(data, 56)], data / "data" / "cifar10" / "train"
    own, judge = (specs(data)[which] | {"size": SIDE} for which in (name, "squeezenet"))
    return named_network(own), [judge], data / "data" / "imagenette"


def targets_of(options: argparse.Namespace, network: VisionNetwork, layer: str) -> list[str]:
    """Return all classes, or the main facet of units that are drawn at random."""
    if layer == CLASSES:
        return [f"class:{number}" for number in range(len(network.classes))]
    units = sorted(random.Random(0).sample(range(unit_shape(network, layer)[0]), options.units))
    return [f"{layer}:{unit}#0" for unit in units]


def run(options: argparse.Namespace, place: str, name: str, seed: int, folder: Path) -> None:
    """Make the pictures of one layer by one recipe and judge them."""
    of, layer = place.split(":")
    network, judges, images = network_of(of, options.data)
    method, asked = RECIPES[name]
    if layer == CLASSES:
        asked = tuple(key for key in asked if key not in WINDOWS)
        asked += ("references.source=embedded",) if images is None else ()  # for the metrics of every method
    targets = targets_of(options, network, layer)
    theme = theme_of(THEMES[of], network, None if layer == CLASSES else images)
    overrides = [key.format(theme=theme, steered=BELOW[of]) for key in asked]
    given = [*overrides, f"cache_dir={options.out.resolve()}/cache", "evaluation=none", "logger=none", "progress=false"]
    common: dict[str, Any] = {"method": method, "references": images}
    vital_exp.visualize(network, targets[:1], **common, overrides=given, steps=1)  # mines
    began = time.process_time()
    vital_exp.visualize(network, targets, out=folder, **common, overrides=given, seed=seed, steps=options.steps)
    seconds = (time.process_time() - began) / len(targets)
    metrics = OF_CLASSES if layer == CLASSES else ("units",)
    found: Any = vital_exp.evaluate(folder, judges=judges, metrics=metrics, model=network)
    found.save(folder)
    shares = theme_shares(folder, network, named_network(judges[0]), images, THEMES[of])
    _with_themes(folder / "metrics.csv", shares)
    (folder / "processor_seconds.json").write_text(json.dumps(seconds))


def theme_of(theme: str, network: VisionNetwork, images: Path | None) -> str:
    """Return the theme, or its folder of images: the references of hidden units are mined and have no classes."""
    if images is None:
        return theme
    own = parse_target(f"class:{theme}", network.classes)
    return str(images / FolderReferences(images, network.classes).class_folders(own.index)[0])


def theme_shares(
    folder: Path, network: VisionNetwork, judge: VisionNetwork, images: Path | None, theme: str
) -> dict[str, float]:
    """Return for each picture the share of pairs of an image with the theme and one without in which the picture is
    more similar to the former, to the judge: 0.5 by chance."""
    names, count = network.classes, THEME_IMAGES
    size = network.preprocessing.size
    drawn = images is None
    references = DrawnReferences(count) if images is None else FolderReferences(images, names, count, size=size)
    own = parse_target(f"class:{theme}", names)
    known = range(len(names)) if drawn else references.class_indices() or []
    each = count // len(known) + 1
    others = [image for label in known if label != own.index
              for image in islice(references.images(Target("class", label)), each)]  # fmt: skip
    reader, shown = NetworkReader(judge), run_pictures(folder, network.class_names, network.preprocessing)
    stacks = (torch.stack(list(references.images(own))), torch.stack(others), in_unit(shown.pixels))
    with_theme, without, pictures = (unit_vectors(reader(stack).features) for stack in stacks)
    found = zip(shown.targets, pictures, strict=True)
    return {target.name: correspondence(picture, with_theme, without) for target, picture in found}


def _with_themes(table: Path, shares: Mapping[str, float]) -> None:
    """Add the column ``theme`` to the metrics of the targets."""
    with table.open(newline="") as file:
        rows = [{**row, "theme": str(shares[row["target"]])} for row in csv.DictReader(file)]
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def collect(out: Path) -> list[dict[str, str]]:
    """Return a row per place, recipe and number: the mean over targets, each the mean over seeds, and its interval."""
    rows = []
    for recipe in sorted(path for path in out.glob("*/*") if any(path.glob("*/processor_seconds.json"))):
        by_target = _by_target(recipe)
        for metric in dict.fromkeys(name for numbers in by_target.values() for name in numbers):
            score = bootstrap_mean([numbers[metric] for numbers in by_target.values() if metric in numbers])
            numbers = [f"{score[key]:.4g}" for key in COLUMNS[3:]]
            rows.append(dict(zip(COLUMNS, [recipe.parent.name, recipe.name, metric, *numbers], strict=True)))
        spent = [json.loads(path.read_text()) for path in recipe.glob("*/processor_seconds.json")]
        seconds = f"{sum(spent) / len(spent):.4g}"
        rows.append(
            dict(zip(COLUMNS, [recipe.parent.name, recipe.name, "processor_seconds", seconds, "", ""], strict=True))
        )
    return rows


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Return the main numbers as a Markdown table."""
    cells = {(row["place"], row["recipe"], row["metric"]): row for row in rows}
    names = [n for main in SHOWN for n in dict.fromkeys(r["metric"] for r in rows) if n.partition("[")[0] == main]
    names.append("processor_seconds")
    lines = [f"| layer | recipe | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    for place, recipe in dict.fromkeys((row["place"], row["recipe"]) for row in rows):
        shown = [cells.get((place, recipe, name)) for name in names]
        texts = ["" if not c or not c["value"] else c["value"] + (f" ({c['low']} to {c['high']})" if c["low"] else "")
                 for c in shown]  # fmt: skip
        lines.append(f"| {place} | {recipe} | {' | '.join(texts)} |")
    return "\n".join(lines) + "\n"


def differences(out: Path) -> str:
    """Return a Markdown table of the effect of each addition: mean paired differences over targets, 95 % intervals."""
    lines = ["| layer | recipe | number | with less without |", "|---|---|---|---|"]
    for recipe in sorted(path for path in out.glob("*/*_*") if _without(path) is not None):
        ours, theirs = _by_target(recipe), _by_target(_without(recipe) or recipe)
        for name in [n for main in SHOWN for n in next(iter(ours.values())) if n.partition("[")[0] == main]:
            pairs = [(ours[t].get(name), theirs[t].get(name)) for t in ours if t in theirs]
            values = [x - y for x, y in pairs if x is not None and y is not None]
            if values:
                found = bootstrap_mean(values)
                text = f"{found['value']:+.3f} ({found['low']:.3f} to {found['high']:.3f})"
                lines.append(f"| {recipe.parent.name} | {recipe.name} | {name} | {text} |")
    return "\n".join(lines) + "\n"


def _without(recipe: Path) -> Path | None:
    """The folder of the same method without the addition; None where there is none."""
    for name in ("vital_fourier", "fourier"):
        if recipe.name.startswith(f"{name}_") and (recipe.parent / name).is_dir():
            return recipe.parent / name
    return None


def _by_target(recipe: Path) -> dict[str, dict[str, float]]:
    """Each target's numbers, means over the seeds."""
    found: dict[str, dict[str, list[float]]] = {}
    for path in sorted(recipe.glob("*/metrics.csv")):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                for name, value in row.items():
                    with suppress(ValueError):
                        if math.isfinite(number := float(value)):
                            found.setdefault(row["target"], {}).setdefault(name, []).append(number)
    return {target: {name: sum(v) / len(v) for name, v in numbers.items()} for target, numbers in found.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the runs that are missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--places", nargs="+", default=["resnet20:layer2", "embedded:layer3"], help="network:layer")
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--units", type=int, default=12)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of the pictures; the units stay the same")
    parser.add_argument("--steps", type=int, help="of the pictures; by default the method's")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("VITAL_TEST_DATA", ".")))
    parser.add_argument("--out", type=Path, default=Path("outputs/additions"))
    options = parser.parse_args(arguments)
    for place, name, seed in product(options.places, options.recipes, options.seeds):
        folder = options.out / place.replace(":", "-") / name.replace(", ", "_").replace(" ", "_") / str(seed)
        if not (folder / "processor_seconds.json").exists():
            run(options, place, name, seed, folder)
        rows = collect(options.out)
        with (options.out / "additions.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        text = f"{table(rows)}\n{differences(options.out)}"
        (options.out / "tables.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
