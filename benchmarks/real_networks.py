"""Methods on four real networks, each at its published cost and at equal cost, scored by judges.

    VITAL_TEST_DATA=... python benchmarks/real_networks.py --parts "cifar:*"   # makes parts; can be stopped
    python benchmarks/real_networks.py --table     # prints the tables of the parts there are

A part is ``network:method:cost``: three pictures of each of ten classes, from different starts, in a run folder under
``--out``. The metrics of each picture are added to ``real_networks.csv`` in ``--results``, beside a strip with one
picture per class. A part with rows there is not made again, so parts may be made on different days and machines.
``--list`` prints all parts with the number of network passes that each takes. ``--each 1`` makes one picture of a
class, for parts that would take hours.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from class_pictures import CONTESTS, configuration, specs
from PIL import Image

import vital_exp
from vital_exp.evaluation.comparison import paired_difference
from vital_exp.evaluation.score import Score
from vital_exp.evaluation.settings import LpipsSettings, MetricSettings
from vital_exp.images.output import to_uint8
from vital_exp.models.named import named_network
from vital_exp.setup.request import Request

RESULTS = Path(__file__).resolve().parent / "results" / "real_networks"
NETWORKS = ("cifar", "mobilenet", "lite0", "vit")
# Every other classifier of the same classes that the data folder has; of CIFAR-10 there is one.
JUDGES = {
    "cifar": ("resnet56",),
    "mobilenet": ("vit", "lite0", "squeezenet"),
    "lite0": ("vit", "mobilenet", "squeezenet"),
    "vit": ("mobilenet", "lite0", "squeezenet"),
}
# As judges are called in metrics.
NAMES = {"resnet56": "resnet56", "vit": "vit_tiny_patch16_224", "mobilenet": "mobilenetv2_100"}
PASSES = 400  # of each picture at equal cost: those of vital_fourier
EACH = 3  # pictures of a class, from different starts and under different transforms
EQUAL, PUBLISHED = "equal", "published"


@dataclass(frozen=True)
class Method:
    """A preset: its published steps and views, and those at equal cost; and what is set beside."""

    steps: int
    views: int = 1
    equal_views: int = 1
    preset: str = ""  # the method's own name where empty
    overrides: tuple[str, ...] = ()

    def keys(self, cost: str) -> list[str]:
        """Return the overrides for a cost."""
        if cost == PUBLISHED:
            return [f"steps={self.steps}", f"views={self.views}"]
        return [f"steps={PASSES // self.equal_views}", f"views={self.equal_views}"]

    def passes(self, cost: str) -> int:
        """Return the number of network passes per picture."""
        return self.steps * self.views if cost == PUBLISHED else PASSES


SMALL_FIRST = ("image.grow_from=0.714", "image.grow_until=0.75")  # 160 px of 224
PLAIN = ("objective.alignment.detail_weight=0",)  # without details; pictures of 32 px have none
METHODS: Mapping[str, Method] = {
    "vital": Method(2000),
    # Of transformers alone: the corner tokens left out, see vital_on_transformers.md.
    "vital_trimmed": Method(2000, preset="vital", overrides=("objective.alignment.trim=0.03",)),
    "vital_fourier": Method(400),
    "vital_fourier_short": Method(150, preset="vital_fourier"),
    "vital_fourier_plain": Method(400, preset="vital_fourier", overrides=PLAIN),
    # 150 of 200 steps at 160 px: 0.40 of the processor time of vital_fourier_plain on EfficientNet-Lite0.
    "vital_growing": Method(200, preset="vital_fourier", overrides=(*SMALL_FIRST, *PLAIN)),
    "maco": Method(256, views=16, equal_views=4),  # MACO's authors take 16 crops or more
    "fourier": Method(512),
    "deep_inversion": Method(2000),
    "activation_max": Method(512),
    "accentuation": Method(100, views=16, equal_views=4),  # starts from a real image: an upper reference
}
# DeepInversion needs statistics of batch norms: MobileNetV2's were folded into its convolutions, the ViT has none.
LARGE = ("mobilenet", "lite0", "vit")  # 224 px
APPLIES = {
    "deep_inversion": ("cifar", "lite0"),
    "vital_trimmed": ("vit",),
    "vital_fourier_short": LARGE,
    "vital_fourier_plain": LARGE,
    "vital_growing": ("mobilenet", "lite0"),
}
METRICS = (
    *("accuracy", "transfer", "crops", "fid", "kid", "inception_score", "lpips_diversity", "correspondence"),
    *("path_similarity", "activation_ratio", "high_frequency", "seconds"),
)
COLUMNS = ("network", "method", "cost", "metric", "target", "value", "low", "high")
KEPT = (
    *("accuracy_top1", "accuracy_top5", "probability", "transfer_top1", "transfer_top5", "crops_top1", "fid", "kid"),
    *("inception_score", "lpips_diversity", "correspondence_auc", "path_similarity", "activation_ratio"),
    *("high_frequency_ratio", "seconds", "processor_seconds"),
)
# The tables' columns: means over the judges where each judge says something of a picture; the first judge's else.
LOG = "log_probability"
OF_JUDGES = ("transfer_top1", "transfer_top5", LOG, "crops_top1", "correspondence_auc")
OF_FIRST = ("fid", "kid", "inception_score")
PROCESSOR = "processor_seconds"  # of a picture, on one thread
SHOWN = (
    *("accuracy_top1", *OF_JUDGES, *OF_FIRST),
    *("lpips_diversity", "path_similarity", "high_frequency_ratio", PROCESSOR),
)
LEAST = 1e-30  # of a probability that is smaller than single precision can say
TILE = 96  # px of a strip


def parts() -> Iterator[tuple[str, str, str]]:
    """Yield network, method and cost of each part; where both costs are the same, once."""
    for network in NETWORKS:
        for name, method in METHODS.items():
            if network not in APPLIES.get(name, NETWORKS):
                continue
            for cost in (EQUAL, PUBLISHED):
                # A method of fewer passes has no form at equal cost.
                apart = method.passes(PUBLISHED) >= PASSES if cost == EQUAL else method.keys(EQUAL) != method.keys(cost)
                if apart:
                    yield network, name, cost


def make(options: argparse.Namespace, network: str, method: str, cost: str) -> None:
    """Make or finish the pictures of a part, score them, and add their rows and strip to the results."""
    own, _, images = CONTESTS[network]
    known = specs(options.data)
    target = named_network(known[own])
    folder = options.out / network / f"{method}-{cost}"
    asked = argparse.Namespace(network=network, data=options.data, overrides=[], steps=None)
    classes = Request.from_config(configuration(asked, "vital_fourier", 0)).targets
    targets = [replace(one, variation=number) for one in classes for number in range(1, options.each + 1)]
    recipe = METHODS[method]
    given = [*recipe.keys(cost), *recipe.overrides, f"cache_dir={options.out.resolve()}/cache"]
    begun, started = folder.exists(), time.process_time()
    made = vital_exp.visualize(
        target,
        targets,
        out=folder,
        method=recipe.preset or method,
        references=options.data / "data" / images,
        overrides=[*given, "evaluation=none", "logger=none"],
    )
    seconds = time.process_time() - started
    print(f"{network}:{method}:{cost}: {seconds:.0f} processor seconds", flush=True)
    lpips = options.data / "data" / "weights" / "lpips_alex_v0.1.fp16.safetensors"
    judges = [known[judge] for judge in JUDGES[network]]
    found = vital_exp.evaluate(
        folder,
        judges=judges,
        metrics=METRICS,
        model=target,
        settings=MetricSettings(lpips=LpipsSettings("alex", str(lpips))),
    )
    assert not isinstance(found, dict)
    names = [result.name for result in made.targets]
    own = {} if begun else {PROCESSOR: Score(seconds / len(names))}  # of a part that was not interrupted
    write_rows(options.results, (network, method, cost), names, {**found.scores, **own})
    first = [picture for name, picture in zip(names, made.images, strict=True) if not name.endswith(("_v2", "_v3"))]
    if method != "accentuation":  # whose pictures are hardly changed photographs of somebody
        strip(first, options.results / f"{network}_{method}_{cost}.jpg")
    if method == "maco":  # of many small objects
        strip([middle(picture) for picture in first], options.results / f"{network}_{method}_{cost}_middle.jpg")


def write_rows(results: Path, part: Sequence[str], names: Sequence[str], scores: Mapping[str, Score]) -> None:
    """Add the rows of a part: each metric's mean with its interval, and its value for each picture."""
    rows = []
    for metric, score in scores.items():
        layers = metric.startswith("path_similarity") and metric != "path_similarity"
        if score.value is None or layers or not metric.startswith(KEPT):
            continue
        ends = ["" if end is None else f"{end:.4g}" for end in (score.low, score.high)]
        rows.append([*part, metric, "", f"{score.value:.4g}", *ends])
        rows += [
            [*part, metric, name, f"{value:.4g}", "", ""]
            for name, value in zip(names, score.values or (), strict=False)
        ]
    path = results / "real_networks.csv"
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([COLUMNS, *rows] if new else rows)


def strip(pictures: Sequence[Any], path: Path) -> None:
    """Write one picture of each class, (3, H, W) RGB in [0, 1], side by side."""
    page = Image.new("RGB", (len(pictures) * TILE, TILE))
    for number, picture in enumerate(pictures):
        tile = Image.fromarray(to_uint8(picture.clamp(0, 1)).permute(1, 2, 0).numpy())
        page.paste(tile.resize((TILE, TILE), Image.Resampling.BICUBIC), (number * TILE, 0))
    page.save(path, quality=75, optimize=True)


def middle(picture: Any) -> Any:
    """Return the middle of a picture (C, H, W): a third of its height and width."""
    height, width = picture.shape[-2:]
    return picture[..., height // 3 : height - height // 3, width // 3 : width - width // 3]


def read_rows(results: Path) -> list[dict[str, str]]:
    """Return the rows of all finished parts."""
    path = results / "real_networks.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def tables(rows: Sequence[Mapping[str, str]]) -> str:
    """Return a Markdown table per network and cost."""
    text = []
    for network in NETWORKS:
        for cost in (EQUAL, PUBLISHED):
            own = [row for row in rows if row["network"] == network and row["cost"] == _kept(row["method"], cost)]
            if own:
                columns = [column for metric in SHOWN for column in judged(own, network, metric)]
                text.append(f"## {network}, {cost} cost\n\n{table(columns)}\n")
    return "\n".join(text)


def judged(rows: Sequence[Mapping[str, str]], network: str, metric: str) -> Iterator[Mapping[str, str]]:
    """Yield the rows of a column: those of a metric, or one per picture, its mean over the judges."""
    if metric in OF_FIRST:
        name = f"{metric}[{NAMES[JUDGES[network][0]]}]"
        yield from ({**row, "metric": metric} for row in rows if row["metric"] == name)
        return
    if metric not in OF_JUDGES:
        yield from (row for row in rows if row["metric"] == metric)
        return
    found: dict[tuple[str, str], list[float]] = {}
    read = f"{'probability' if metric == LOG else metric}["
    for row in rows:
        if row["metric"].startswith(read) and row["metric"] != f"{read}target]":
            value = float(row["value"])
            value = math.log(max(value, LEAST)) if metric == LOG else value
            found.setdefault((row["method"], row["target"]), []).append(value)
    for (method, target), values in found.items():
        yield {"method": method, "metric": metric, "target": target, "value": f"{sum(values) / len(values)}", "low": ""}


def _kept(method: str, cost: str) -> str:
    """Return the cost in whose rows a method's figures for a cost are kept."""
    return EQUAL if METHODS[method].keys(cost) == METHODS[method].keys(EQUAL) else cost


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Return one row per method: means over classes, after the mean of each class's pictures."""
    methods = [name for name in METHODS if any(row["method"] == name for row in rows)]
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    lines = [f"| method | pictures | {' | '.join(metrics)} |", "|---" * (len(metrics) + 2) + "|"]
    best = {metric: _best(rows, metric, methods) for metric in metrics}
    for method in methods:
        pictures = {row["target"] for row in rows if row["method"] == method and row["target"]}
        cells = [str(len(pictures)), *(_cell(rows, metric, method, best[metric]) for metric in metrics)]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


LESS_IS_BETTER = ("fid", "kid", "seconds", PROCESSOR, "high_frequency_ratio")


def _of_classes(rows: Sequence[Mapping[str, str]], metric: str, method: str) -> dict[str, float]:
    """Return the mean of each class's pictures."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if row["metric"] == metric and row["method"] == method and row["target"]:
            found.setdefault(row["target"].partition("_v")[0], []).append(float(row["value"]))
    return {name: sum(values) / len(values) for name, values in found.items()}


def _whole(rows: Sequence[Mapping[str, str]], metric: str, method: str) -> Mapping[str, str] | None:
    own = (row for row in rows if row["metric"] == metric and row["method"] == method and not row["target"])
    return next(own, None)


def _best(rows: Sequence[Mapping[str, str]], metric: str, methods: Sequence[str]) -> str:
    """Return the best method apart from the upper reference, which starts from a real image."""
    sign = -1 if metric.startswith(LESS_IS_BETTER) else 1
    whole = {method: _whole(rows, metric, method) for method in methods if method != "accentuation"}
    return max((name for name, row in whole.items() if row), key=lambda name: sign * float(whole[name]["value"]))  # type: ignore[index]


def _cell(rows: Sequence[Mapping[str, str]], metric: str, method: str, best: str) -> str:
    """Return a mean with its interval, and a star if the best method is significantly better on the same classes."""
    own, whole = _of_classes(rows, metric, method), _whole(rows, metric, method)
    if whole is None:
        return ""
    if not own:  # of all pictures together, such as FID
        between = f" ({whole['low']} to {whole['high']})" if whole["low"] else ""
        return f"{float(whole['value']):.3g}{between}"
    score = Score.mean(list(own.values()))
    other = paired_difference(_of_classes(rows, metric, best), own)
    worse = (other["value"] or 0) * (-1 if metric.startswith(LESS_IS_BETTER) else 1) > 0
    star = " *" if other["significant"] and worse else ""
    return f"{score.value:.3g} ({score.low:.3g} to {score.high:.3g}){star}"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=["*"], help="network:method:cost, with * and ?")
    parser.add_argument("--list", action="store_true", help="print the parts, their passes, and which are there")
    parser.add_argument("--table", action="store_true", help="print the tables of the parts there are")
    parser.add_argument("--each", type=int, default=EACH, help="pictures of a class in parts that are made now")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("VITAL_TEST_DATA", ".")))
    parser.add_argument("--out", type=Path, default=Path("outputs/real_networks"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the missing parts, list all parts, or print their tables."""
    options = parse(arguments)
    options.data = options.data.resolve()
    options.results.mkdir(parents=True, exist_ok=True)
    rows = read_rows(options.results)
    if options.table:
        print(tables(rows))
        return
    there = {(row["network"], row["method"], row["cost"]) for row in rows}
    for part in parts():
        name = ":".join(part)
        if not any(fnmatch(name, pattern) for pattern in options.parts):
            continue
        if options.list:
            print(f"{name}{' (there)' if part in there else ''}: {METHODS[part[1]].passes(part[2])} passes a picture")
        elif part not in there:
            make(options, *part)


if __name__ == "__main__":
    main()
