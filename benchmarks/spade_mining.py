"""SPADE and mined units: are the images that drive a unit of the pruned network more alike?

    VITAL_TEST_DATA=... python benchmarks/spade_mining.py --places resnet20:layer2 resnet20:layer3 --out outputs/spade

Of a folder's images, every second one is for pruning: the network is pruned for the strongest of these of a unit. The
other half is mined twice, with the whole and with the pruned network. Means over units that are drawn at random, with
95 % bootstrap intervals; the change is paired by unit. A judge, which took no part, says how alike the images are.
Writes ``additions_mined.csv`` and prints a table.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from additions import network_of, targets_of
from torch import Tensor

from vital_exp.evaluation.correspondence import natural_correspondence, unit_vectors
from vital_exp.evaluation.intervals import bootstrap_mean
from vital_exp.evaluation.reading import NetworkReader
from vital_exp.models.named import named_network
from vital_exp.models.network import VisionNetwork, model_space
from vital_exp.models.sparsify import Sparsification, sparsified
from vital_exp.references.folder import FolderReferences
from vital_exp.targets.selection import parse_target
from vital_exp.targets.unit import Target
from vital_exp.whole_files import write_table

STRONGEST = 12  # images of a unit, as vital_fourier's references
OTHERS = 200  # images of other units, at most
PER_PASS = 32
EVERY = 10**6
MEASURES = ("correspondence_auc", "mean_cosine", "one_class", "of_the_whole")


def main() -> None:
    """Measure each layer and sparsity, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--places", nargs="+", default=["resnet20:layer2"], help="network:layer")
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.5, 0.95])
    parser.add_argument("--units", type=int, default=12)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("VITAL_TEST_DATA", ".")))
    parser.add_argument("--out", type=Path, default=Path("outputs/spade_mining"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for place in options.places:
        rows += measure(options, place)
        write_table(options.out / "additions_mined.csv", rows)
    print(table(rows))


def measure(options: argparse.Namespace, place: str) -> list[dict[str, Any]]:
    """Return a row per sparsity and measure: whole, pruned and change, with intervals."""
    of, layer = place.split(":")
    network, judges, folder = network_of(of, options.data)
    if folder is None:
        raise SystemExit(f"{place}: needs a network with a folder of images")
    images, classes = every_image(network, folder)
    embedded = judged(named_network(judges[0]), images)
    first, second = slice(0, None, 2), slice(1, None, 2)
    held_out, vectors, labels = images[second], embedded[second], classes[second]
    units = [parse_target(name.split("#")[0], network.classes).index for name in targets_of(options, network, layer)]
    whole = activations(network, layer, images)
    rows = []
    for sparsity in options.sparsities:
        found: dict[str, list[tuple[float, float]]] = {}
        for unit in units:
            strongest = whole[first, unit].topk(STRONGEST).indices
            own = list(images[first][strongest])
            pruned = sparsified(network, own, Sparsification(sparsity), layer)
            now = activations(pruned, layer, held_out)[:, unit]
            both = [clarity(values, vectors, labels, whole[second, unit]) for values in (whole[second, unit], now)]
            for name in MEASURES:
                found.setdefault(name, []).append((both[0][name], both[1][name]))
        rows += [line(place, sparsity, name, found[name]) for name in MEASURES]
    return rows


def every_image(network: VisionNetwork, folder: Path) -> tuple[Tensor, list[int]]:
    """Return all images of a folder of classes, (N, C, H, W), and each one's class."""
    references = FolderReferences(
        folder, network.classes, count=EVERY, candidates=EVERY, size=network.preprocessing.size
    )
    images, classes = [], []
    for index in references.class_indices() or []:
        own = [candidate.load() for candidate in references.candidates(Target("class", index))]
        images += own
        classes += [index] * len(own)
    return torch.stack(images), classes


def judged(judge: VisionNetwork, images: Tensor) -> Tensor:
    """Return the judge's embeddings, unit vectors (N, D)."""
    reader = NetworkReader(judge)
    return torch.cat([unit_vectors(reader(part).features) for part in images.split(PER_PASS)])


@torch.no_grad()
def activations(network: VisionNetwork, layer: str, images: Tensor) -> Tensor:
    """Return each channel's largest activation over positions, (N, K)."""
    taps = network.taps([layer])
    parts = [taps(model_space(part, network))[0][layer].flatten(2).amax(dim=2) for part in images.split(PER_PASS)]
    return torch.cat(parts)


def clarity(values: Tensor, vectors: Tensor, classes: Sequence[int], whole: Tensor) -> dict[str, float]:
    """Return how alike the strongest images are to the judge, and how many of them the whole network would choose."""
    chosen = values.topk(STRONGEST).indices
    rest = torch.ones(len(values), dtype=torch.bool).index_fill_(0, chosen, False).nonzero()[:, 0]
    others = vectors[rest[:: max(1, len(rest) // OTHERS)]]
    own = vectors[chosen]
    pairs = own @ own.T
    labels = Counter(classes[number] for number in chosen.tolist())
    again = set(chosen.tolist()) & set(whole.topk(STRONGEST).indices.tolist())
    return {
        "correspondence_auc": natural_correspondence(own, others),
        "mean_cosine": float((pairs.sum() - pairs.trace()) / (STRONGEST * (STRONGEST - 1))),
        "one_class": labels.most_common(1)[0][1] / STRONGEST,
        "of_the_whole": len(again) / STRONGEST,
    }


def line(place: str, sparsity: float, name: str, pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Return the means of the whole and of the pruned network, and of the change, with intervals."""
    numbers = {"whole": [a for a, _ in pairs], "pruned": [b for _, b in pairs], "change": [b - a for a, b in pairs]}
    row: dict[str, Any] = {"place": place, "sparsity": sparsity, "measure": name, "n": len(pairs)}
    for key, values in numbers.items():
        score = bootstrap_mean(values)
        row |= {key: score["value"], f"{key}_low": score["low"], f"{key}_high": score["high"]}
    return row


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the numbers as a Markdown table."""
    shown = ("whole", "pruned", "change")
    lines = ["| layer | sparsity | measure | n | whole network | pruned | change |", "|---" * 7 + "|"]
    for row in rows:
        cells = [f"{row[key]:.3f} ({row[f'{key}_low']:.3f} to {row[f'{key}_high']:.3f})" for key in shown]
        lines.append("| " + " | ".join([*(str(row[k]) for k in ("place", "sparsity", "measure", "n")), *cells]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
