"""How different the pictures of one class are: by other seeds, by facets of its images, by the objective ``diversity``.

    VITAL_TEST_DATA=... python benchmarks/different_pictures.py --network mobilenet

Each way makes three pictures of each of ten classes. Printed for each way: recognition by the network and by judges,
and LPIPS between the pictures of a class, each with its 95 % bootstrap interval over classes; then the difference from
seeds, paired by class, with a star where its interval excludes 0. The script also writes a sheet for each way, with a
column per class. A stopped run goes on.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from class_pictures import CONTESTS, configuration, specs
from PIL import Image
from real_networks import JUDGES, LEAST

import vital_exp
from vital_exp.evaluation.comparison import paired_difference
from vital_exp.evaluation.score import Score
from vital_exp.evaluation.settings import LpipsSettings, MetricSettings
from vital_exp.images.output import to_uint8
from vital_exp.models.named import named_network
from vital_exp.setup.request import Request
from vital_exp.visualization.outcome import Pictures

EACH = 3  # pictures of a class
WAYS: Mapping[str, Sequence[str]] = {
    "seeds": (),
    "facets": (f"references.facets={EACH}",),
    "diversity": ("objective=[alignment,total_variation,l2,diversity]",),
}
METRICS = ("accuracy", "transfer", "lpips_diversity")
TILE = 96  # px of a sheet
Table = dict[str, dict[str, float]]  # by metric, the mean of each class


def make(options: argparse.Namespace, way: str) -> tuple[Pictures, Table, float]:
    """Make or finish the pictures of a way; return them, each class's scores, and processor seconds a picture."""
    known = specs(options.data)
    own, _, images = CONTESTS[options.network]
    network = named_network(known[own])
    asked = argparse.Namespace(network=options.network, data=options.data, overrides=[], steps=None)
    classes = Request.from_config(configuration(asked, "vital_fourier", 0)).targets
    if way != "facets":
        classes = [replace(one, variation=number + 1) for one in classes for number in range(EACH)]
    folder = options.out / options.network / way
    started = time.process_time()
    made = vital_exp.visualize(
        network,
        classes,
        out=folder,
        method="vital_fourier",
        steps=options.steps,
        references=options.data / "data" / images,
        overrides=[
            *WAYS[way],
            *options.overrides.get(way, []),
            f"cache_dir={options.out.resolve()}/cache",
            "evaluation=none",
            "logger=none",
        ],
    )
    seconds = (time.process_time() - started) / len(made.targets)
    lpips = options.data / "data" / "weights" / "lpips_alex_v0.1.fp16.safetensors"
    found = vital_exp.evaluate(
        folder,
        judges=[known[judge] for judge in JUDGES[options.network]],
        metrics=METRICS,
        model=network,
        settings=MetricSettings(lpips=LpipsSettings("alex", str(lpips))),
    )
    assert not isinstance(found, dict)
    owners = [target.unit.name for target in made.targets]
    return made, table(found.scores, owners), seconds


def table(scores: Mapping[str, Score], owners: Sequence[str]) -> Table:
    """Return each class's mean of each metric; those of judges are means over the judges."""
    found: dict[str, dict[str, list[float]]] = {}
    for name, score in scores.items():
        metric, bracket, _ = name.partition("[")
        if bracket and metric == "probability":
            metric = "log_probability"
        elif metric == "probability":
            continue
        for owner, value in zip(owners, score.values or (), strict=False):
            value = math.log(max(value, LEAST)) if metric == "log_probability" else value
            if math.isfinite(value):
                found.setdefault(metric, {}).setdefault(owner, []).append(value)
    return {metric: {owner: sum(v) / len(v) for owner, v in own.items()} for metric, own in found.items()}


def line(way: str, own: Table, seeds: Table, seconds: float) -> str:
    """Return a way's row: means with intervals, and differences from seeds."""
    cells = []
    for metric, values in own.items():
        score, other = Score.mean(list(values.values())), paired_difference(values, seeds[metric])
        cell = f"{score.value:.3g} ({score.low:.3g} to {score.high:.3g})"
        if way != "seeds":
            star = " *" if other["significant"] else ""
            cell += f"; {other['value']:+.3g} ({other['low']:+.3g} to {other['high']:+.3g}){star}"
        cells.append(cell)
    return f"| {way} | {' | '.join(cells)} | {seconds:.0f} |"


def sheet(made: Pictures, path: Path) -> None:
    """Write a column per class with its pictures one below another."""
    columns: dict[str, list[int]] = {}
    for number, target in enumerate(made.targets):
        columns.setdefault(target.unit.name, []).append(number)
    page = Image.new("RGB", (len(columns) * TILE, EACH * TILE), "white")
    for x, members in enumerate(columns.values()):
        for y, number in enumerate(members[:EACH]):
            pixels = to_uint8(made.images[number].clamp(0, 1)).permute(1, 2, 0).numpy()
            tile = Image.fromarray(pixels).resize((TILE, TILE), Image.Resampling.BICUBIC)
            page.paste(tile, (x * TILE, y * TILE))
    path.parent.mkdir(parents=True, exist_ok=True)
    page.save(path, quality=80, optimize=True)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=sorted(CONTESTS), default="mobilenet")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--diversity", type=float, default=1.0, help="weight of the objective diversity")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("VITAL_TEST_DATA", ".")))
    parser.add_argument("--out", type=Path, default=Path("outputs/different_pictures"))
    options = parser.parse_args(arguments)
    options.overrides = {"diversity": [f"objective.diversity.weight={options.diversity}"]}
    options.data = options.data.resolve()
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the pictures of each way, print the table, write the sheets."""
    options = parse(arguments)
    first: Table | None = None
    for way in options.ways:
        made, found, seconds = make(options, way)
        if first is None:
            first = found
            print(f"| pictures by | {' | '.join(found)} | processor seconds |\n|{'---|' * (len(found) + 2)}")
        print(line(way, found, first, seconds), flush=True)
        sheet(made, options.out / f"{options.network}_{way}.jpg")


if __name__ == "__main__":
    main()
