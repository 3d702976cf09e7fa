"""Transparency maps against the object's mask on the drawn image set: the published map and our default.

    OMP_NUM_THREADS=1 python benchmarks/masks.py

Both maps of the same pictures, of ten classes and some seeds, by ``vital`` and ``vital_fourier``, are compared with the
object's mask, which comes from two sources. ``drawn``: the picture starts from a drawn image, and the mask is that of
the drawing. ``segmented``: the picture has the method's own start, and a small segmentation network, trained here on
drawn images with their masks, finds the object. Writes ``results/masks.csv``, one row per picture and map, and into
``--out`` the table of means and a sheet of pictures and maps. A second call makes the missing parts only.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from vital_exp.engine.module import VisualizationModule
from vital_exp.engine.step import ObjectiveValues, StepObjective
from vital_exp.evaluation.intervals import bootstrap_mean
from vital_exp.images.output import smoothed_transparency, to_uint8, transparency
from vital_exp.references.drawn import CLASS_NAMES, SIZE, draw, object_mask
from vital_exp.setup.request import Request
from vital_exp.visualization.run import Visualization

RESULTS = Path(__file__).parent / "results"
PROTOCOLS = ("drawn", "segmented")
STEPS = {"vital": 120, "vital_fourier": 60}  # vital warms up over its first 20, as over 100 of its 2,000
SHORT = {"vital": ["optimizer.warmup=20"], "vital_fourier": []}
START_SEED, TRAINING_SEED, HELD_OUT_SEED = 31, 77, 78  # of the drawn images: starts, and the segmentation network's
PERCENTILE = 98
THRESHOLDS = [number / 50 for number in range(50)]
MEASURES = ("average precision", "IoU at the best threshold", "IoU at 0.5")


# --- where the object is --------------------------------------------------------------------------------------------


class Segmentation(nn.Module):
    """A U-Net of three levels: where the object is in a drawn image, logits (N, 1, H, W)."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.down = nn.ModuleList(
            [_block(3, width), _block(width, 2 * width), _block(2 * width, 4 * width), _block(4 * width, 4 * width)]
        )
        self.up = nn.ModuleList([_block(8 * width, 2 * width), _block(4 * width, width), _block(2 * width, width)])
        self.head = nn.Conv2d(width, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of RGB in [0, 1]."""
        kept, values = [], images - 0.5
        for number, block in enumerate(self.down):
            values = block(functional.max_pool2d(values, 2) if number else values)
            kept.append(values)
        kept.pop()
        for block in self.up:
            values = block(torch.cat([functional.interpolate(values, scale_factor=2.0), kept.pop()], dim=1))
        logits: Tensor = self.head(values)
        return logits


def _block(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for first in (inputs, outputs):
        layers += [nn.Conv2d(first, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


def labelled(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return drawn images of all classes, every second one with another class's colours, and their masks of 0 and 1."""
    keys = [(c, n, seed, ("typical", "swapped")[n % 2]) for c in range(len(CLASS_NAMES)) for n in range(count)]
    return torch.stack([draw(*key) for key in keys]), torch.stack([object_mask(*key) for key in keys]).round()


def trained(epochs: int = 6, count: int = 100) -> tuple[Segmentation, float]:
    """Return a segmentation network trained on noisy drawn images, and its mean IoU on others."""
    torch.manual_seed(0)
    images, masks = labelled(count, TRAINING_SEED)
    network = Segmentation()
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(epochs):
        for own in torch.randperm(len(images)).split(32):
            noise = 0.05 * torch.rand(len(own), 1, 1, 1) * torch.randn_like(images[own])
            found = network((images[own] + noise).clamp(0, 1))
            loss = functional.binary_cross_entropy_with_logits(found, masks[own])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    network.eval()
    images, masks = labelled(10, HELD_OUT_SEED)
    found = segmented(network, images)
    return network, float(torch.stack([iou(a, m.bool(), 0.5) for a, m in zip(found, masks, strict=True)]).mean())


@torch.no_grad()
def segmented(network: Segmentation, pictures: Tensor) -> Tensor:
    """Return the masks of the objects, (N, 1, H, W) of 0 and 1."""
    return (network(pictures) > 0).float()


# --- the maps -------------------------------------------------------------------------------------------------------


@contextmanager
def both_maps() -> Iterator[list[dict[str, Tensor]]]:
    """Collect both maps of each batch that is optimised in this context; the pictures use the default map."""
    found: list[dict[str, Tensor]] = []
    evaluate, masks = StepObjective.__call__, VisualizationModule.masks
    total = torch.zeros(())

    def noted(self: StepObjective, *arguments: Any, **keys: Any) -> ObjectiveValues:
        nonlocal total
        evaluation = evaluate(self, *arguments, **keys)
        total = total + evaluation.gradient.abs()
        return evaluation

    def kept(self: VisualizationModule, percentile: float) -> Tensor:
        nonlocal total
        followed = masks(self, percentile)
        smoothed = smoothed_transparency(total, percentile)
        found.append({"published": transparency(total, percentile), "followed": followed, "smoothed only": smoothed})
        total = torch.zeros(())
        return followed

    StepObjective.__call__, VisualizationModule.masks = noted, kept  # type: ignore[method-assign]
    try:
        yield found
    finally:
        StepObjective.__call__, VisualizationModule.masks = evaluate, masks  # type: ignore[method-assign]


def made(method: str, seed: int, steps: int, starts: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
    """Return pictures of the ten classes, and their maps by name."""
    targets = [f"class:{index}" for index in range(len(CLASS_NAMES))]
    quiet = ["logger=none", "evaluation=none", "progress=false", "batch_size=10", "references.count=20"]
    keys: dict[str, Any] = {"method": method, "seed": seed, "steps": steps, "overrides": [*quiet, *SHORT[method]]}
    request = Request.of("embedded_resnet", targets, **keys)
    with both_maps() as found:
        run = Visualization(request, starts).run()
    return run.images, found[0]


# --- how well they agree --------------------------------------------------------------------------------------------


def average_precision(alpha: Tensor, mask: Tensor) -> Tensor:
    """Return average precision: the mean, over the object's pixels, of the precision at each pixel's alpha."""
    order = alpha.flatten().argsort(descending=True, stable=True)
    hits = mask.flatten().float()[order]
    return (hits * hits.cumsum(0) / torch.arange(1, len(hits) + 1)).sum() / hits.sum()


def iou(alpha: Tensor, mask: Tensor, threshold: float) -> Tensor:
    """Return the intersection over union of the object's mask and the pixels whose alpha is above a threshold."""
    shown = alpha > threshold
    return (shown & mask).sum() / (shown | mask).sum().clamp(min=1)


def scores(alphas: Tensor, masks: Tensor) -> dict[str, Tensor]:
    """Return each measure by picture, (N,); the best threshold is the same for all pictures."""
    pairs = list(zip(alphas, masks, strict=True))
    by_threshold = torch.stack([torch.stack([iou(a, m, t) for a, m in pairs]) for t in THRESHOLDS])
    precision = torch.stack([average_precision(a, m) for a, m in pairs])
    best = by_threshold[by_threshold.mean(dim=1).argmax()]
    return dict(zip(MEASURES, (precision, best, by_threshold[THRESHOLDS.index(0.5)]), strict=True))


def centre() -> Tensor:
    """Return the map of a baseline, which only knows that drawn objects are in the middle, (1, SIZE, SIZE)."""
    place = torch.exp(-((torch.arange(SIZE) - (SIZE - 1) / 2) ** 2) / (2 * (0.2 * SIZE) ** 2))
    return (place[:, None] * place)[None]


def measured(path: Path, options: argparse.Namespace, method: str, protocol: str) -> dict[str, Any]:
    """Return pictures, masks and maps of all seeds, from the file at a path or newly made."""
    if path.is_file():
        return dict(torch.load(path, weights_only=True))
    parts: list[dict[str, Any]] = []
    for seed in options.seeds:
        keys = [(index, seed, START_SEED) for index in range(len(CLASS_NAMES))]
        starts = torch.stack([draw(*key) for key in keys]) if protocol == "drawn" else None
        pictures, maps = made(method, seed, STEPS[method], starts)
        known = torch.stack([object_mask(*key) for key in keys]).round()
        parts.append({"pictures": pictures, "masks": known if protocol == "drawn" else None, **maps})
    if protocol == "segmented":
        network, own = trained()
        print(f"segmentation network: IoU {own:.3f} on drawn images it has not seen", flush=True)
        for part in parts:
            part["masks"] = segmented(network, part["pictures"])
    kept = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    torch.save(kept, path)
    return kept


# --- what is written ------------------------------------------------------------------------------------------------


def sheet(kept: Sequence[dict[str, Any]], path: Path) -> None:
    """Write a sheet of the first seed's pictures, their masks, and the published and the default map."""
    rows = []
    for one in kept:
        first = slice(0, len(CLASS_NAMES))
        rows += [one["pictures"][first], *(one[name][first].expand(-1, 3, -1, -1) for name in SHOWN)]
    page = torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1)
    Image.fromarray(to_uint8(page).permute(1, 2, 0).numpy()).save(path, quality=80, optimize=True)


SHOWN = ("masks", "published", "followed")


def write(rows: Sequence[dict[str, Any]], options: argparse.Namespace) -> None:
    """Write the values of all pictures, and the table of their means."""
    with (RESULTS / "masks.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows({key: f"{v:.4f}" if isinstance(v, float) else v for key, v in row.items()} for row in rows)
    lines = ["| method | object | map | " + " | ".join(MEASURES) + " |", "|" + "---|" * (3 + len(MEASURES))]
    for key in dict.fromkeys((row["method"], row["protocol"], row["map"]) for row in rows):
        own = [row for row in rows if (row["method"], row["protocol"], row["map"]) == key]
        cells = [_interval([row[measure] for row in own]) for measure in MEASURES]
        lines.append("| " + " | ".join([*key, *cells]) + " |")
        if key[2] == "followed":  # both maps are of the same pictures
            twins = [row for row in rows if (row["method"], row["protocol"], row["map"]) == (*key[:2], "published")]
            gains = [[a[m] - b[m] for a, b in zip(own, twins, strict=True)] for m in MEASURES]
            lines.append("| " + " | ".join([*key[:2], "followed - published", *map(_interval, gains)]) + " |")
    (options.out / "masks.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def _interval(values: Sequence[float]) -> str:
    found = bootstrap_mean(values)
    return f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})"


def main() -> None:
    """Make the missing parts, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=list(STEPS), default=list(STEPS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[3, 4, 5], help="the map was chosen on 0 to 2")
    parser.add_argument("--out", type=Path, default=Path("outputs/masks"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    contests = [(method, protocol) for method in options.methods for protocol in PROTOCOLS]
    kept = [
        measured(options.out / f"{method}_{protocol}.pt", options, method, protocol) for method, protocol in contests
    ]
    for (method, protocol), one in zip(contests, kept, strict=True):
        maps = {name: one[name] for name in ("published", "followed", "smoothed only")}
        maps["centre"] = centre().expand(len(one["masks"]), -1, -1, -1)
        for name, alphas in maps.items():
            found = scores(alphas, one["masks"].bool())
            for number in range(len(alphas)):
                seed, index = options.seeds[number // len(CLASS_NAMES)], number % len(CLASS_NAMES)
                own = {"method": method, "protocol": protocol, "map": name, "seed": seed, "class": CLASS_NAMES[index]}
                rows.append(own | {measure: float(values[number]) for measure, values in found.items()})
    write(rows, options)
    sheet(kept, options.out / "masks.jpg")


if __name__ == "__main__":
    main()
