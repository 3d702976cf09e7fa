"""What SPADE adds: the metrics of hidden units' pictures with and without it, with intervals.

    VITAL_TEST_DATA=... python benchmarks/additions.py --places resnet20:layer2 embedded:layer3

Each layer and recipe has a run folder, of units drawn at random by ``--seed``. Each recipe with SPADE is compared with
the same method without it, by the metrics of ``metrics=units`` and judges. The metrics always read the units from the
whole network. Writes ``additions.md`` and ``additions.csv``.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import vital_exp
from vital_exp.evaluation.intervals import bootstrap_mean
from vital_exp.models.layers import unit_shape
from vital_exp.models.named import named_network
from vital_exp.models.network import VisionNetwork

NETWORK = Path(__file__).resolve().parents[1] / "examples" / "my_network.py"
CIFAR = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
# The references of methods that have none of their own: what vital_fourier has.
WINDOWS = ("references.facets=auto", "references.region=window", "references.count=12", "references.candidates=80")
SPADE = ("model.sparsify=spade",)
RECIPES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "vital_fourier": ("vital_fourier", ()),
    "vital_fourier, SPADE": ("vital_fourier", SPADE),
    "vital_fourier, SPADE 0.5": ("vital_fourier", (*SPADE, "model.sparsity=0.5")),
    "fourier": ("fourier", WINDOWS),
    "fourier, SPADE": ("fourier", (*WINDOWS, *SPADE)),
    "fourier, SPADE 0.5": ("fourier", (*WINDOWS, *SPADE, "model.sparsity=0.5")),
}
SHOWN = ("correspondence_auc", "mis_pictures", "activation_ratio", "own_unit_first", "high_frequency")


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
    return named_network(cifar(data, 20)), [cifar(data, 56)], data / "data" / "cifar10" / "train"


def run(options: argparse.Namespace, place: str, name: str, folder: Path) -> None:
    """Make the pictures of one layer by one recipe and judge them."""
    of, layer = place.split(":")
    network, judges, images = network_of(of, options.data)
    units = sorted(random.Random(options.seed).sample(range(unit_shape(network, layer)[0]), options.units))
    method, overrides = RECIPES[name]
    given = [*overrides, f"cache_dir={options.out.resolve()}/cache", "evaluation=none", "logger=none", "progress=false"]
    targets = [f"{layer}:{unit}#0" for unit in units]
    vital_exp.visualize(network, targets[:1], method=method, references=images, overrides=[*given, "steps=1"])  # mines
    began = time.process_time()
    vital_exp.visualize(
        network, targets, out=folder, method=method, references=images, overrides=given, seed=options.seed
    )
    seconds = (time.process_time() - began) / len(units)
    vital_exp.evaluate(folder, judges=judges, metrics=["units"], model=network).save(folder)
    (folder / "processor_seconds.json").write_text(json.dumps(seconds))


def collect(out: Path) -> list[dict[str, str]]:
    """Return a row per number and run that has metrics."""
    rows = []
    for path in sorted(out.glob("*/*/processor_seconds.json")):
        recipe, place = path.parent.name, path.parent.parent.name
        scores = {
            **json.loads((path.parent / "metrics.json").read_text()),
            "processor_seconds": json.loads(path.read_text()),
        }
        for metric, score in scores.items():
            score = score if isinstance(score, dict) else {"value": score}
            numbers = [f"{score[k]:.4g}" if isinstance(score.get(k), float) else "" for k in ("value", "low", "high")]
            row = [place, recipe, metric, *numbers]
            rows.append(dict(zip(COLUMNS, row, strict=True)))
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
    """Return a Markdown table of the effect of each addition: mean paired differences over units, 95 % intervals."""
    lines = ["| layer | recipe | number | with less without |", "|---|---|---|---|"]
    for path in sorted(out.glob("*/*_SPADE*/metrics.csv")):
        without = path.parent.parent / path.parent.name.partition("_SPADE")[0] / "metrics.csv"
        if not without.exists():
            continue
        ours, theirs = _by_target(path), _by_target(without)
        for name in [n for main in SHOWN for n in next(iter(ours.values())) if n.partition("[")[0] == main]:
            pairs = [(ours[t][name], theirs[t][name]) for t in ours if t in theirs]
            values = [float(x) - float(y) for x, y in pairs if x and y]
            found = bootstrap_mean(values)
            text = f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})"
            lines.append(f"| {path.parent.parent.name} | {path.parent.name} | {name} | {text} |")
    return "\n".join(lines) + "\n"


def _by_target(path: Path) -> dict[str, dict[str, str]]:
    with path.open(newline="") as file:
        return {row["target"]: row for row in csv.DictReader(file)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the runs that are missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--places", nargs="+", default=["resnet20:layer2", "embedded:layer3"], help="network:layer")
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--units", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0, help="of the units and the pictures")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("VITAL_TEST_DATA", ".")))
    parser.add_argument("--out", type=Path, default=Path("outputs/additions"))
    options = parser.parse_args(arguments)
    for place in options.places:
        for name in options.recipes:
            folder = options.out / place.replace(":", "-") / name.replace(", ", "_").replace(" ", "_")
            if not (folder / "processor_seconds.json").exists():
                run(options, place, name, folder)
            rows = collect(options.out)
            with (options.out / "additions.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
            text = f"{table(rows)}\n{differences(options.out)}"
            (options.out / "additions.md").write_text(text)
            print(text, flush=True)


if __name__ == "__main__":
    main()
