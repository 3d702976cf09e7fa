"""Ablation of the published recipe on a vision transformer: one factor of ``method=vital`` changed at a time.

    VITAL_TEST_DATA=... python benchmarks/vital_ablation.py --network vit --steps 400 --seeds 0

One row per factor: recognition of the pictures by the network itself and by judges, and the mean log-probability of the
class, with 95 % bootstrap intervals over pictures. The benchmark can be stopped at any time: a second call makes the
missing pictures only. ``--channels`` prints instead each layer's share of the loss before the first step, and its
largest channel's share of that; ``--tokens`` prints where in photographs the outlying tokens are.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

import torch
from class_pictures import CONTESTS, EMBEDDED, configuration, judges_of, opinions, save_sheet
from torch import Tensor

from vital_exp.evaluation.score import Score
from vital_exp.images.output import quantised
from vital_exp.models.layers import alignment
from vital_exp.models.network import Recipe, VisionNetwork, model_space
from vital_exp.models.taps import Taps
from vital_exp.objectives.alignment_terms import SortMatching, channel_precision
from vital_exp.setup.request import Request
from vital_exp.visualization.run import Visualization

# Overrides of method=vital, one factor each, and some together.
STANDARDISED = "objective.alignment.standardise=channel"
TRIMMED = "objective.alignment.trim=0.03"
FACTORS: Mapping[str, Sequence[str]] = {
    "as published": (),
    "standardised by layer": ("objective.alignment.standardise=layer",),
    "standardised by channel": (STANDARDISED,),
    "trimmed": (TRIMMED,),
    "by channel, trimmed": (STANDARDISED, TRIMMED),
    "no total variation": ("objective.total_variation.weight=0",),
    "no priors": ("objective.total_variation.weight=0", "objective.l2.weight=0"),
    "rate 0.45": ("optimizer.lr=0.45",),  # the published rate in RGB, for a standard deviation of 0.5 (0.226 / 0.5)
    "rate 0.1": ("optimizer.lr=0.1",),
    "no jitter": ("transforms=none",),
    "from the mean": ("image.init=mean",),
    "Fourier": ("image=fourier", "optimizer=adam_fourier"),
    "the picture's colours matched": ("objective.alignment.pixel_weight=0.5",),
    "by channel, rate 0.45": (STANDARDISED, "optimizer.lr=0.45"),
    "by channel, no priors": (STANDARDISED, "objective.total_variation.weight=0", "objective.l2.weight=0"),
    "by channel, Fourier": (STANDARDISED, "image=fourier", "optimizer=adam_fourier"),
    "by channel, from the mean": (STANDARDISED, "image.init=mean"),
}
FAR, PHOTOGRAPHS, BORDER = 4.0, 40, 3  # standard deviations; of a class; tokens
MARK = "parts.json"


def make(options: argparse.Namespace, factor: str, seed: int, judges: Mapping[str, VisionNetwork]) -> None:
    """Make the pictures of one factor and seed, unless they exist, and write the scores of each."""
    folder = options.out / options.network / factor.replace(" ", "_") / str(seed)
    if (folder / MARK).exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    chosen = argparse.Namespace(**{**vars(options), "overrides": [*FACTORS[factor], *options.overrides]})
    request = Request.from_config(configuration(chosen, "vital", seed))
    started = time.process_time()
    pictures = quantised(Visualization(request).run().images)
    seconds = (time.process_time() - started) / len(pictures)
    index = torch.tensor([target.index for target in request.targets])
    said = opinions({"itself": request.network, **judges}, pictures, index)
    columns = {f"{name} {column}": values.tolist() for name, one in said.items() for column, values in one.items()}
    save_sheet(pictures, folder / "sheet.png")
    (folder / MARK).write_text(json.dumps({**columns, "processor seconds": [seconds] * len(pictures)}))


def row(folder: Path) -> dict[str, Score]:
    """Return the scores of one factor, over all finished seeds; a class counts once."""
    parts: dict[str, list[float]] = {}
    classes: list[int] = []
    for mark in sorted(folder.glob(f"*/{MARK}")):
        columns = json.loads(mark.read_text())
        for name, values in columns.items():
            parts.setdefault(name, []).extend(values)
        classes += range(len(columns["processor seconds"]))
    return {name: Score.mean(values, classes) for name, values in parts.items()}


def table(options: argparse.Namespace) -> str:
    """Return a Markdown table of all finished factors."""
    folders = {factor: options.out / options.network / factor.replace(" ", "_") for factor in FACTORS}
    rows = {factor: row(folder) for factor, folder in folders.items() if list(folder.glob(f"*/{MARK}"))}
    columns = [name for name in next(iter(rows.values())) if not name.endswith("top5")]
    lines = [f"| vital, but | pictures | {' | '.join(columns)} |", "|---" * (len(columns) + 2) + "|"]
    for factor, scores in rows.items():
        pictures = len(scores["processor seconds"].values or ())
        lines.append(f"| {factor} | {pictures} | {' | '.join(map(cell, (scores[name] for name in columns)))} |")
    return "\n".join(lines)


def cell(score: Score) -> str:
    """Return a mean as text, with its interval where there is one."""
    assert score.value is not None
    between = "" if score.low is None or score.low == score.high else f" ({score.low:.3g} to {score.high:.3g})"
    return f"{score.value:.3g}{between}"


def channel_shares(options: argparse.Namespace) -> str:
    """Return each layer's share of the loss before the first step, and its largest channel's share of the layer's.

    The picture is noise. The loss is the published one, and one with each channel's squares divided by its variance.
    """
    request = Request.from_config(configuration(options, "vital", options.seeds[0]))
    problem = request.setup.problem(request.targets)
    (term,) = [term for term in request.setup.objective(problem).terms.values() if isinstance(term, SortMatching)]
    noise = torch.randn(len(request.targets), 3, *request.setup.size, generator=torch.Generator().manual_seed(0))
    activations, _ = Taps(request.network.module, term.layers)(noise)
    plain, divided = {}, {}  # layer: (N, C) mean squared differences of each channel
    for layer in term.layer_weights:
        features = activations[layer].flatten(2)  # (N, C, P)
        squares = (features.sort(dim=-1).values - term.reference(layer, features.shape[-1])).square().mean(dim=-1)
        plain[layer], divided[layer] = squares, squares * channel_precision(term.quantiles[layer])
    lines = ["| layer | share of the loss | largest channel | share, by channel | largest channel |", "|---" * 5 + "|"]
    for layer in plain:
        parts = [part for losses in (plain, divided) for part in shares(losses, layer)]
        lines.append(f"| {layer} | {' | '.join(f'{part:.2g}' for part in parts)} |")
    return "\n".join(lines)


def shares(losses: Mapping[str, Tensor], layer: str) -> tuple[float, float]:
    """Return a layer's share of the whole loss and its largest channel's share of the layer's, means over pictures."""
    whole = torch.stack([own.mean(dim=1) for own in losses.values()]).sum(dim=0)  # (N,)
    own = losses[layer]
    return float((own.mean(dim=1) / whole).mean()), float((own.amax(dim=1) / own.sum(dim=1)).mean())


def outlying_tokens(options: argparse.Namespace) -> str:
    """Return the number of outlying channels of tokens in the corners of photographs, and of those in the middle.

    An outlier is further than ``FAR`` standard deviations from its channel's mean over all tokens and photographs.
    """
    request = Request.from_config(configuration(options, "vital", options.seeds[0]))
    network, layers = request.network, list(alignment(request.network, Recipe()).layers)
    found: dict[str, list[tuple[float, float]]] = {layer: [] for layer in layers}
    for target in request.targets:
        images = torch.stack(list(islice(request.references.images(target), PHOTOGRAPHS)))
        with torch.no_grad():
            activations, _ = Taps(network.module, layers)(model_space(images, network))
        for layer in layers:
            found[layer].append(_corners_and_middle(activations[layer].flatten(2)))
    lines = ["| layer | outlying channels of a corner token | of a token in the middle |", "|---|---|---|"]
    for layer, counts in found.items():
        corner, middle = torch.tensor(counts).mean(dim=0).tolist()
        lines.append(f"| {layer} | {corner:.2f} | {middle:.2f} |")
    return "\n".join(lines)


def _corners_and_middle(features: Tensor) -> tuple[float, float]:
    """Return the mean number of outlying channels of the four corner tokens, and of tokens away from the borders."""
    away = (features - features.mean(dim=(0, 2), keepdim=True)).abs() / features.std(dim=(0, 2), keepdim=True)
    counts = (away > FAR).float().sum(dim=1).mean(dim=0)  # (P,)
    side = math.isqrt(len(counts))
    grid = counts[len(counts) - side * side :].unflatten(0, (side, side))  # a class token comes first
    corners = grid[[0, 0, -1, -1], [0, -1, 0, -1]]
    return float(corners.mean()), float(grid[BORDER:-BORDER, BORDER:-BORDER].mean())


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=[*CONTESTS, *EMBEDDED], default="embedded_vit")
    parser.add_argument("--factors", nargs="+", default=list(FACTORS), choices=list(FACTORS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, help="by default the 2,000 of method=vital")
    parser.add_argument("--overrides", nargs="*", default=[], help="of every factor, as vital-visualize takes them")
    parser.add_argument("--channels", action="store_true", help="print the shares of the loss instead")
    parser.add_argument("--tokens", action="store_true", help="print where in photographs outlying tokens are instead")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("VITAL_TEST_DATA", ".")))
    parser.add_argument("--out", type=Path, default=Path("outputs/vital_ablation"))
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the missing pictures and print the table."""
    options = parse(arguments)
    options.data = options.data.resolve()
    if options.channels:
        print(channel_shares(options))
        return
    if options.tokens:
        print(outlying_tokens(options))
        return
    judges = judges_of(options)
    for seed in options.seeds:
        for factor in options.factors:
            make(options, factor, seed, judges)
    print(table(options))


if __name__ == "__main__":
    main()
