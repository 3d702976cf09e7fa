"""Make the picture of the README: classes and hidden units of a MobileNetV2 by VITAL, MACO and Lucid's Fourier method.

    VITAL_TEST_DATA=... nice python tools/readme_picture.py

The units are drawn at random, not chosen: three of the ten classes that have photographs, and three channels of a
middle layer, the first in a random order with at least two facets. Each method takes its default steps. ``--out`` keeps
the pictures, so that a second call only makes those that are missing. Takes twenty minutes on one CPU core.
"""

from __future__ import annotations

import argparse
import os
import random
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vital_exp import visualize
from vital_exp.images.output import to_uint8
from vital_exp.models.named import named_network
from vital_exp.models.network import VisionNetwork
from vital_exp.setup.request import Request

LAYER, CHANNELS = "blocks.4", 96
ROWS = 3  # number of classes, and of hidden units
TRIED = 8  # channels that are mined, enough for three with two facets
SEED = 0
TILE, GAP, HEAD, FONT = 176, 6, 30, 17  # px
METHODS = {"VITAL": "vital_fourier", "MACO": "maco", "Fourier": "fourier"}
# Overrides of methods that need no references: MACO takes its spectrum from these images.
WINDOWS = ("references.facets=auto", "references.region=window", "references.count=12", "references.candidates=80")

Column = tuple[str, list[Tensor]]  # a heading, and its pictures (3, H, W) in [0, 1], from top to bottom


def mobilenet(data: Path) -> VisionNetwork:
    """Return the network: TensorFlow's MobileNetV2, with its own preprocessing."""
    half = (0.5, 0.5, 0.5)
    checkpoint = f"{data.resolve()}/weights/mobilenetv2_100.fp16.safetensors"
    keys = {"mean": half, "std": half, "arguments": {"pad_type": "same"}, "checkpoint": checkpoint}
    return named_network({"source": "timm", "name": "mobilenetv2_100", **keys})


def class_columns(network: VisionNetwork, photographs: Path, out: Path) -> tuple[list[str], list[Column]]:
    """Return the labels of three classes, and a column of their pictures for each method."""
    folders = sorted(path.name for path in photographs.iterdir() if path.is_dir())
    targets = [f"class:{name}" for name in random.Random(SEED).sample(folders, ROWS)]
    given = _given(out)
    labels = [target.label for target in Request.of(network, targets, references=photographs, overrides=given).targets]
    columns = []
    for heading, method in METHODS.items():
        made = visualize(network, targets, method=method, references=photographs, overrides=given, out=out / method)
        columns.append((heading, list(made.images)))
    return labels, columns


def unit_columns(network: VisionNetwork, images: Path, out: Path) -> tuple[list[str], list[Column]]:
    """Return the labels of three hidden units, and columns: two facets by VITAL, and the unit by each other method."""
    order = random.Random(SEED).sample(range(CHANNELS), TRIED)
    given = _given(out)
    names = [f"{LAYER}:{unit}" for unit in order]
    found = Request.of(network, names, method="vital_fourier", references=images, overrides=given).targets
    counts = {unit: len(list(targets)) for unit, targets in groupby(found, key=lambda target: target.index)}
    units = [unit for unit in order if counts[unit] >= 2][:ROWS]
    columns = []
    for heading, method in METHODS.items():
        overrides = given if method == "vital_fourier" else [*given, *WINDOWS]
        for facet in (0, 1) if method == "vital_fourier" else (0,):
            targets = [f"{LAYER}:{unit}#{facet}" for unit in units]
            folder = out / f"{method}_units_{facet}"
            made = visualize(network, targets, method=method, references=images, overrides=overrides, out=folder)
            named = f"{heading}, facet {facet + 1}" if method == "vital_fourier" else heading
            columns.append((named, list(made.images)))
    return [f"{LAYER}:{unit}" for unit in units], columns


def _given(out: Path) -> list[str]:
    return ["evaluation=none", "logger=none", f"cache_dir={out.resolve()}/cache"]


def sheet(parts: Sequence[tuple[Sequence[str], Sequence[Column]]]) -> Image.Image:
    """Draw the parts side by side, each with its row labels above the pictures of its first column."""
    count = sum(len(columns) for _, columns in parts)
    width = count * (TILE + GAP) + (len(parts) - 1) * 3 * GAP - GAP
    page = Image.new("RGB", (width, HEAD + ROWS * (TILE + GAP) - GAP), "white")
    draw, font, x = ImageDraw.Draw(page), ImageFont.load_default(FONT), 0
    for labels, columns in parts:
        for place, (heading, pictures) in enumerate(columns):
            draw.text((x + TILE // 2, HEAD // 2), heading, fill="black", font=font, anchor="mm")
            for row, picture in enumerate(pictures):
                y = HEAD + row * (TILE + GAP)
                page.paste(tile(picture), (x, y))
                if place == 0:
                    _label(draw, labels[row], x, y + TILE, font)
            x += TILE + GAP
        x += 3 * GAP
    return page


def _label(draw: ImageDraw.ImageDraw, text: str, x: int, bottom: int, font: ImageFont.FreeTypeFont) -> None:
    """Write a label on a white strip in the lower left corner of a picture."""
    left, top, right, _ = draw.textbbox((x + 5, bottom - 3), text, font=font, anchor="lb")
    draw.rectangle((x, top - 3, right + 5, bottom), fill="white")
    draw.text((left, bottom - 3), text, fill="black", font=font, anchor="lb")


def tile(picture: Tensor) -> Image.Image:
    """Return a picture (3, H, W) in [0, 1] at the size of a tile."""
    image = Image.fromarray(to_uint8(picture.clamp(0, 1)).permute(1, 2, 0).numpy())
    return image.resize((TILE, TILE), Image.Resampling.LANCZOS)


def listed(folders: Sequence[Path], out: Path) -> Path:
    """Write the list of all images of folders, and return the file."""
    out.mkdir(parents=True, exist_ok=True)
    paths = [str(path.resolve()) for folder in folders for path in sorted(folder.rglob("*.[jJ][pP]*"))]
    (out / "images.txt").write_text("\n".join(paths) + "\n", encoding="utf-8")
    return out / "images.txt"


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the pictures that are missing, and write the sheet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = os.environ.get("VITAL_TEST_DATA", ".")
    parser.add_argument("--data", type=Path, default=Path(root) / "data", help="folder of weights and images")
    parser.add_argument("--out", type=Path, default=Path("outputs/readme_picture"))
    parser.add_argument("--page", type=Path, default=Path("docs/images/methods.jpg"))
    options = parser.parse_args(arguments)
    network = mobilenet(options.data)
    images = listed([options.data / "imagenet-sample", options.data / "imagenette"], options.out)
    units = unit_columns(network, images, options.out)
    classes = class_columns(network, options.data / "imagenette", options.out)
    options.page.parent.mkdir(parents=True, exist_ok=True)
    sheet([classes, units]).save(options.page, quality=85, optimize=True)


if __name__ == "__main__":
    main()
