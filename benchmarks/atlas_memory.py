"""Memory of making an atlas, by its number of units: images and numbers of synthetic layers, without pictures.

    python benchmarks/atlas_memory.py --units 200 1000 2000 4000

Each atlas is made in a process of its own. Printed is the peak of the process's memory above that after the imports and
the network. ``--layers`` divides the units among that many layers. At most ``--at-once`` units are mined
together, so memory stops growing there:

    python benchmarks/atlas_memory.py --units 1000 2000 4000 --layers 8 --at-once 1000 --images 60
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image
from torch import Tensor, nn

from vital_exp.atlases import mined_layers
from vital_exp.atlases.mined_layers import UNITS_PER_PASS
from vital_exp.atlases.request import AtlasRequest
from vital_exp.atlases.run import AtlasRun
from vital_exp.config import compose_config
from vital_exp.engine.memory import MEBIBYTE, forget_peak, peak
from vital_exp.visualization.ranks import Ranks

SIDE = 16  # px of images
# Of the first convolution: few positions, so that the network's own activations are small beside what the atlas holds.
STRIDE = 8
# Few files: what is measured does not depend on how many images of a unit are shown.
SHORT = (
    "shown=1",
    "pictures=none",
    "facets=1",
    "map=pca",
    "workers=0",
    "progress=false",
    "judge=null",
    "trainer.accelerator=cpu",
)


class Wide(nn.Module):
    """A network of layers with given numbers of channels, one after another."""

    def __init__(self, units: int, layers: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3, stride=STRIDE, padding=1)
        self.layers = nn.ModuleList(nn.Conv2d(8, units // layers, 1) for _ in range(layers))
        self.back = nn.ModuleList(nn.Conv2d(units // layers, 8, 1) for _ in range(layers))
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return two logits."""
        x = self.stem(x)
        for layer, back in zip(self.layers, self.back, strict=True):
            x = back(layer(x).relu()).tanh()
        return self.head(x.mean((2, 3)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, nargs="+", default=[200, 1000, 2000])
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--map", default="pca")
    parser.add_argument("--at-once", type=int, default=UNITS_PER_PASS)
    options = parser.parse_args()
    print(
        "| units | layers | peak above the start, MiB | KB per unit above the first | seconds |\n|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as place:
        write_images(Path(place) / "images", options.images)
        first: tuple[int, float] | None = None
        for units in options.units:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                most, seconds = pool.apply(made, (Path(place), units, options.layers, options.map, options.at_once))
            more = f"{(most - first[1]) * MEBIBYTE / 1000 / (units - first[0]):.1f}" if first else ""
            first = first or (units, most)
            print(f"| {units} | {options.layers} | {most:.0f} | {more} | {seconds:.0f} |", flush=True)


def write_images(folder: Path, count: int) -> None:
    """Write noise of two classes."""
    numbers = np.random.default_rng(0)
    for number in range(count):
        path = folder / f"class {number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(numbers.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(path)


def made(place: Path, units: int, layers: int, placed: str, at_once: int) -> tuple[float, float]:
    """Make an atlas; return the peak of memory above that at the start in MiB, and the seconds."""
    mined_layers.UNITS_PER_PASS = at_once
    names = ",".join(f"layers.{number}" for number in range(layers))
    given = ["model=python", f"model.factory={Path(__file__).resolve()}:Wide", f"model.size={SIDE}"]
    given += [f"model.arguments.units={units}", f"model.arguments.layers={layers}", f"images={place / 'images'}"]
    config = compose_config(
        [*given, f"layers=[{names}]", f"cache_dir={place / 'cache'}", *SHORT, f"map={placed}"], "atlas"
    )
    asked = AtlasRequest.of(config)
    cpu = torch.device("cpu")
    before, resident = forget_peak(cpu), psutil.Process().memory_info().rss / MEBIBYTE
    started = time.perf_counter()
    AtlasRun(asked, place / f"atlas-{units}-{layers}", Ranks()).run()
    return (peak(cpu, before) or resident) - resident, time.perf_counter() - started


if __name__ == "__main__":
    main()
