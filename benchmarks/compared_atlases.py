"""Whether the comparisons of vital-atlas are right, for a network before and after fine-tuning, and for two networks.

    VITAL_TEST_DATA=... python benchmarks/compared_atlases.py outputs/compared

1. All weights of a CIFAR ResNet-20 are fine-tuned on cats and dogs. Atlases before and after, made with other images,
   are compared. Held-out images, in neither the training nor the atlases, decide whether the units that the comparison
   ranks first have changed most: units are ranked there by 1 - correlation, without an atlas.
2. The last stages of a ResNet-20 and a ResNet-56 are compared: how often do matched units answer to the same class?
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import sys
from contextlib import closing
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))
example, resnet = import_module("what_fine_tuning_changed"), import_module("my_network").resnet

FIRST = 10  # units that a reader looks at
LAYERS = ("layer1", "layer2", "layer3")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out, data = parser.parse_args().out, Path(os.environ["VITAL_TEST_DATA"]) / "data"
    small, images = data / "weights" / "cifar10_resnet20.safetensors", data / "cifar10"
    tuned = out / "tuned"
    if not (tuned / "compared" / "compare.sqlite").is_file():
        example.main([*map(str, (images / "train", small, tuned)), "--train", str(images / "test_jpeg")])
    changed(tuned, small, images / "test")
    different(out / "different", data, tuned / "before")


def profiles(weights: Path, folder: Path) -> dict[str, np.ndarray]:
    """Return the largest activation of each image in each unit of some layers, (images, units)."""
    network, found = resnet(depth=20), {}
    network.load_state_dict(load_file(weights))
    for name in LAYERS:
        hook = lambda _module, _given, values, at=name: found.__setitem__(at, values.amax((2, 3)).double().numpy())  # noqa: E731
        getattr(network, name).register_forward_hook(hook)
    example.IMAGES = 10**6
    pictures, _ = example.images_of(folder, sorted(path.name for path in folder.iterdir() if path.is_dir()))
    with torch.no_grad():
        network.eval()(pictures)
    return found


def changed(tuned: Path, before: Path, unseen: Path) -> None:
    """Print the agreement of the comparison's ranks with those over held-out images."""
    first, second = profiles(before, unseen), profiles(tuned / "fine_tuned.safetensors", unseen)
    with closing(sqlite3.connect(tuned / "compared" / "compare.sqlite")) as file:
        rows = file.execute("SELECT layer, unit, other_unit, change FROM matches ORDER BY rank").fetchall()
    moved = sum(unit != other for _, unit, other, _ in rows)
    told = np.array([change for *_, change in rows])
    pairs = [(first[layer][:, unit], second[layer][:, unit]) for layer, unit, *_ in rows]
    seen = np.array([1 - np.corrcoef(*pair)[0, 1] for pair in pairs])
    print(f"\nfine-tuned: {len(rows)} units, {moved} matched with another number")
    print(f"changes {told.min():.4f} to {told.max():.4f}, median {np.median(told):.4f}")
    print(f"ranks agree with those over unseen images: Spearman {spearman(told, seen):.2f}")
    for layer in LAYERS:
        own = np.array([name == layer for name, *_ in rows])
        means = f"mean change {told[own].mean():.4f}, over unseen images {seen[own].mean():.4f}"
        print(f"{layer}: {means}, Spearman {spearman(told[own], seen[own]):.2f}")
    best, median = set(np.argsort(-seen)[:FIRST].tolist()), np.median(seen)
    both, above = (sum(map(fits, range(FIRST))) for fits in (best.__contains__, lambda place: seen[place] > median))
    print(f"of the first {FIRST}, {both} are the first {FIRST} there too, {above} are above the median")
    print("first:", ", ".join(f"{layer}:{unit}" for layer, unit, *_ in rows[:FIRST]))


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Return Spearman's rank correlation."""
    ranks = [np.argsort(np.argsort(values)) for values in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])


def different(out: Path, data: Path, before: Path) -> None:
    """Compare two networks, and print the share of matched units with the same class as name."""
    large, factory = data / "weights" / "cifar10_resnet56.safetensors", EXAMPLES / "my_network.py"
    model = [f"model.factory={factory}:resnet", "model.arguments={depth: 56}", f"model.checkpoint={large}"]
    more = ("layers=[layer3]", "method=none", "facets=1", "map=pca", f"hydra.run.dir={out / 'large'}")
    example.run("model=python", "model.size=32", *model, f"images={data / 'cifar10' / 'train'}", *more)
    example.run(f"compare=[{before},{out / 'large'}]", f"hydra.run.dir={out / 'compared'}")
    names = []
    for folder in (before, out / "large"):
        with closing(sqlite3.connect(folder / "atlas.sqlite")) as file:
            names.append(dict(file.execute("SELECT unit, name FROM units WHERE layer = 'layer3'")))
    with closing(sqlite3.connect(out / "compared" / "compare.sqlite")) as file:
        question = "SELECT unit, other_unit, correlation FROM matches WHERE layer = 'layer3'"
        rows = file.execute(question).fetchall()
    same = np.mean([names[0][unit] == names[1][other] for unit, other, _ in rows])
    chance = np.mean([names[0][unit] == name for unit, *_ in rows for name in names[1].values()])
    values = np.array([value for *_, value in rows])
    print(
        f"\ntwo networks: {len(rows)} pairs, correlation {np.median(values):.2f} (median), {values.max():.2f} at most"
    )
    print(f"named by the same class: {same:.2f} of the pairs, {chance:.2f} of all possible ones")


if __name__ == "__main__":
    main()
