"""Cost of mining against the network's forward pass alone, and whether its memory grows with the number of images.

    python benchmarks/mining_throughput.py --data <folder of the tests' data>

First part, real images and a ResNet-50 up to layer3, all channels of layer3.5: the pass over the images (ranking and
writing the index, without patches) against a bare forward pass over the same images by the same loader, once with
decoding and once with the images in memory. The two alternate; the figure is the median over rounds of the ratio, with
a goal of at most 1.1. CPU time is printed too, for it varies less on a busy machine.

Second part: peak memory of mining 1,000 and 10,000 images, each in a process of its own. Each image has its own path,
so that memory that grows with the number of images shows: paths, and the reasons of unreadable files. To run this part
alone, with more images:

    python benchmarks/mining_throughput.py --count 0 --memory 1000 100000
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from vital_exp.engine.memory import peak
from vital_exp.images.output import to_uint8
from vital_exp.mining.images import ImageBatch, ImageFolder
from vital_exp.mining.mine import Mining
from vital_exp.mining.units import select_units
from vital_exp.models.loading import build_network, wrap
from vital_exp.models.model_config import ModelConfig
from vital_exp.models.network import Preprocessing, VisionNetwork
from vital_exp.references.drawn import CLASS_NAMES, draw

BACKBONES = Path(__file__).resolve().parents[1] / "examples" / "backbones.py"
KERAS_MEAN = [0.48502, 0.45796, 0.40760]  # of the ResNet-50's weights
LAYER = "layer3.5"
K = 50
FILES = 50  # drawn for the second part; the others are hard links to them, each with a path of its own
PER_FOLDER = 1000
Clocks = tuple[float, float]


class FirstImages(ImageFolder):
    """The first images of a folder, decoded at each iteration or, with ``keep``, once."""

    def __init__(self, root: Path, preprocessing: Preprocessing, count: int, batch_size: int, keep: bool) -> None:
        super().__init__(root, preprocessing)
        self.paths = self.paths[:count]  # type: ignore[misc]
        self.kept = list(super().batches(range(count), batch_size)) if keep else None

    def batches(
        self, numbers: Sequence[int], batch_size: int, workers: int = 0, pin_memory: bool = False
    ) -> Iterator[ImageBatch]:
        """Yield the images in order."""
        yield from self.kept or super().batches(numbers, batch_size, workers, pin_memory)


def backbone(data: Path) -> VisionNetwork:
    """Return the ResNet-50 up to layer3 with real weights."""
    weights = data / "data" / "weights" / "resnet50_to_layer3.fp16.safetensors"
    factory = f"{BACKBONES}:resnet50_to_layer3"
    config = ModelConfig(source="python", factory=factory, checkpoint=str(weights), mean=KERAS_MEAN)
    return build_network(config).to("cuda" if torch.cuda.is_available() else "cpu")


@torch.inference_mode()
def bare(network: VisionNetwork, folder: ImageFolder, options: argparse.Namespace) -> None:
    """Run the network on all images and keep nothing."""
    for batch in folder.batches(range(len(folder.paths)), options.batch_size, options.workers):
        if batch.pixels is not None:
            network(batch.rgb(network.device))


def mined(network: VisionNetwork, folder: ImageFolder, options: argparse.Namespace) -> None:
    """Mine all channels of the layer."""
    units = select_units(network, [LAYER])
    k = min(K, len(folder.paths))
    with tempfile.TemporaryDirectory() as out:
        Mining(units, folder, k, None, options.batch_size, options.workers).run(Path(out))


def clocked(run: Callable[[], None]) -> Clocks:
    """Return wall-clock and CPU seconds."""
    started = time.perf_counter(), time.process_time()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started[0], time.process_time() - started[1]


def ratios(network: VisionNetwork, folder: ImageFolder, options: argparse.Namespace) -> tuple[list[float], Clocks]:
    """Return the medians over rounds of mining / bare, [wall, CPU], and the seconds of the last bare pass."""
    bare(network, folder, options)
    rounds: list[tuple[float, ...]] = []
    plain = (0.0, 0.0)
    for number in range(options.rounds):
        runs = [lambda: bare(network, folder, options), lambda: mined(network, folder, options)]
        clocks = {place: clocked(runs[place]) for place in ((0, 1) if number % 2 else (1, 0))}
        plain = clocks[0]
        rounds.append(tuple(ours / theirs for ours, theirs in zip(clocks[1], clocks[0], strict=True)))
    return [statistics.median(column) for column in zip(*rounds, strict=True)], plain


def small_network() -> VisionNetwork:
    """Return a convolution of 64 channels for images of 32 px."""
    torch.manual_seed(0)
    return wrap(nn.Sequential(nn.Conv2d(3, 64, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1)), ModelConfig(size=32))


def peak_memory(root: Path) -> float:
    """Return the peak memory in MB of mining a folder, patches included."""
    torch.set_num_threads(1)
    network = small_network()
    folder = ImageFolder(root, network.preprocessing)
    with tempfile.TemporaryDirectory() as out:
        Mining(select_units(network, ["1"]), folder, K).run(Path(out))
    return peak(torch.device("cpu"))


def draw_folder(root: Path, count: int) -> None:
    """Fill a folder with a number of images; the first few are drawn, the others are links to them."""
    for number in range(count):
        path = root / f"{number // PER_FOLDER:04d}" / f"{number:08d}.png"
        path.parent.mkdir(exist_ok=True)
        if number < FILES:
            pixels = to_uint8(draw(number % len(CLASS_NAMES), number, seed=0)).permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(path)
        else:
            path.hardlink_to(root / "0000" / f"{number % FILES:08d}.png")


def memory(counts: Sequence[int]) -> dict[int, float]:
    """Return the peak memory in MB by number of images, each in a fresh process."""
    peaks = {}
    for count in counts:
        with (
            tempfile.TemporaryDirectory() as root,
            ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool,
        ):
            draw_folder(Path(root), count)
            peaks[count] = pool.submit(peak_memory, Path(root)).result()
    return peaks


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("VITAL_TEST_DATA", ".")))
    parser.add_argument("--count", type=int, default=256, help="images of the first part; 0: leave it out")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", type=int, nargs="*", default=[1_000, 10_000], help="images of the second part")
    return parser.parse_args(arguments)


def throughput(options: argparse.Namespace) -> None:
    """Print the first part."""
    network = backbone(options.data)
    images = options.data / "data" / "imagenet-sample"
    print(f"{network.device}, torch {torch.__version__}, {torch.get_num_threads()} threads, {options.count} images")
    print("| images | bare pass, seconds | mining / bare, wall | mining / bare, processor |\n|---|---|---|---|")
    for name, keep in (("decoded", False), ("in memory", True)):
        folder = FirstImages(images, network.preprocessing, options.count, options.batch_size, keep)
        (wall, processor), plain = ratios(network, folder, options)
        print(f"| {name} | {plain[0]:.1f} ({plain[1]:.1f} of processors) | {wall:.3f} | {processor:.3f} |", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print both parts."""
    options = parse(arguments)
    if options.count:
        throughput(options)
    for count, most in memory(options.memory).items():
        print(f"peak memory of mining {count} images: {most:.0f} MB", flush=True)


if __name__ == "__main__":
    main()
