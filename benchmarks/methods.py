"""VITAL beside the baselines on real networks: ten classes by each method, after the same number of network passes.

    VITAL_TEST_DATA=... python benchmarks/methods.py --networks mobilenet vit cifar --passes 256

A pass is one image of one picture forwards and backwards: a method with several crops a step takes fewer steps. Per
network one table (does the network recognise its pictures, do two others, how sure are they, seconds) and one sheet, a
row per method. Every method's run is an ordinary run folder below ``--work``: the command goes on where it was stopped.
Large pictures (MACO's) are seen by all networks at their input size. Networks and images are those of the tests' data
folder.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from class_pictures import CONTESTS, configuration, judges_of, opinions
from omegaconf import DictConfig
from PIL import Image, ImageDraw
from torch import Tensor

from vital_exp.engine.request import Request
from vital_exp.engine.run_folder import RunFolder
from vital_exp.engine.visualization import Visualization
from vital_exp.errors import UsageError
from vital_exp.images.output import quantised, resized, to_uint8
from vital_exp.models.network import VisionNetwork

METHODS = ("vital", "vital_fourier", "maco", "fourier", "deep_inversion", "accentuation", "prototype", "activation_max")
# Crops in a step. At a fixed number of passes more steps are worth more than more crops.
VIEWS = {"maco": 1, "accentuation": 2}
TILE, LABEL = 112, 18  # px of the sheet
QUALITY = 82  # of the sheet's JPEG


def run_configuration(options: argparse.Namespace, network: str, method: str) -> DictConfig:
    """Return the configuration of one method's run."""
    views = VIEWS.get(method, 1)
    magnitude = options.data / "data" / "maco_imagenet_spectrum.npy"
    overrides = [f"views={views}", f"batch_size={options.batch}", "references.count=30", *options.overrides]
    overrides += [f"image.magnitude={magnitude}"] if method == "maco" and network != "cifar" else []
    keys = {"network": network, "steps": options.passes // views, "overrides": overrides, "data": options.data}
    return configuration(argparse.Namespace(**keys), method, options.seed)


def run(
    options: argparse.Namespace, network: str, method: str, judges: Mapping[str, VisionNetwork]
) -> dict[str, object]:
    """Make one method's ten pictures, or read those of an earlier start; return its row and its pictures."""
    config = run_configuration(options, network, method)
    row: dict[str, object] = {"method": method, "recipe": f"{config.steps} x {config.views}"}
    try:
        request = Request.from_config(config)
        folder = RunFolder(options.work / f"{network}-{method}-{options.passes}", request.config)
        made = Visualization(request.config, request.network, request.targets, request.references, folder=folder).run()
    except UsageError as error:
        return {**row, "note": "not applicable" if "not applicable" in str(error) else str(error)}
    pictures = quantised(resized(made.images, request.network.preprocessing.size))
    index = torch.tensor([target.index for target in request.targets])
    for name, columns in opinions({"itself": request.network, **judges}, pictures, index).items():
        row[f"{name} top-1"] = float(columns["top1"].mean())
        row[f"{name} top-5"] = float(columns["top5"].mean())
        row[f"{name} confidence"] = float(columns["log p"].exp().mean())
    row["seconds"] = sum(result["seconds"] for result in made.results) / len(index)
    return {**row, "pictures": pictures}


def sheet(rows: Sequence[Mapping[str, object]], path: Path) -> None:
    """Write a JPEG with one row of pictures per method."""
    shown = [row for row in rows if "pictures" in row]
    count = max(len(row["pictures"]) for row in shown)  # type: ignore[arg-type]
    page = Image.new("RGB", (count * TILE, len(shown) * (TILE + LABEL)), "white")
    draw = ImageDraw.Draw(page)
    for number, row in enumerate(shown):
        top = number * (TILE + LABEL)
        draw.text((3, top + 3), f"{row['method']}, steps x crops: {row['recipe']}", fill="black")
        pictures = row["pictures"]
        assert isinstance(pictures, Tensor)
        for column, picture in enumerate(pictures):
            tile = Image.fromarray(to_uint8(picture).permute(1, 2, 0).numpy())
            page.paste(tile.resize((TILE, TILE), Image.Resampling.BICUBIC), (column * TILE, top + LABEL))
    page.save(path, quality=QUALITY, optimize=True)


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """Return a Markdown table; a method that cannot be used says so."""
    columns = [column for column in max(rows, key=len) if column != "pictures"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in rows:
        cells = [row.get(column, "") for column in columns]
        if "note" in row:
            cells[2] = row["note"]
        lines.append(f"| {' | '.join(f'{c:.3g}' if isinstance(c, float) else str(c) for c in cells)} |")
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=list(CONTESTS), default=list(CONTESTS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--passes", type=int, default=256, help="images through the network, per picture")
    parser.add_argument("--batch", type=int, default=5, help="pictures made together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--overrides", nargs="*", default=[], help="as vital-visualize takes them")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("VITAL_TEST_DATA", ".")))
    parser.add_argument("--work", type=Path, default=Path("outputs/methods"), help="run folders")
    parser.add_argument("--out", type=Path, default=Path("outputs/methods"), help="tables and sheets")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write a table and a sheet per network, after each method."""
    options = parse(arguments)
    options.data = options.data.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    for network in options.networks:
        judges = judges_of(argparse.Namespace(network=network, data=options.data))
        rows = []
        for method in options.methods:
            rows.append(run(options, network, method, judges))
            (options.out / f"methods_{network}.md").write_text(table(rows) + "\n")
            if any("pictures" in row for row in rows):
                sheet(rows, options.out / f"methods_{network}.jpg")
        print(f"{network}, {options.passes} passes a picture, torch {torch.__version__}\n\n{table(rows)}\n")


if __name__ == "__main__":
    main()
