"""Pictures of hidden units of a real backbone: whether they drive their own unit, and resemble what drives it.

    VITAL_TEST_DATA=... python benchmarks/hidden_units.py --network resnet50 --layer layer3.5 --relevance lrp none

One row per relevance method, over the units: how often a picture drives its own unit most (each unit's activation as a
share of its largest natural one), the median share, the correspondence (probability that the picture is nearer to one
of its own unit's patches than to one of another unit's, in the embedding of another network), seconds per picture.
Writes the table and a sheet per method, each picture beside its unit's patches. Images and weights are those of the
tests' data folder; mining is done once and kept in the output folder.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor

from vital_exp.config import compose_config
from vital_exp.engine.problem import readout_of
from vital_exp.engine.request import Request
from vital_exp.engine.visualization import Visualization
from vital_exp.evaluation.activation import unit_activations
from vital_exp.images.output import quantised, resized, to_uint8
from vital_exp.models.named import named_network
from vital_exp.models.network import VisionNetwork, model_space
from vital_exp.models.taps import Taps

BACKBONES = Path(__file__).resolve().parents[1] / "examples" / "backbones.py"
KERAS_MEAN = [0.48502, 0.45796, 0.40760]
HALF = [0.5, 0.5, 0.5]
# Network: factory, weights, mean (None: ImageNet's).
NETWORKS: Mapping[str, tuple[str, str, list[float] | None]] = {
    "resnet50": ("resnet50_to_layer3", "resnet50_to_layer3", KERAS_MEAN),
    "densenet169": ("densenet169_backbone", "densenet169_backbone", None),
    "resnet18": ("resnet18_to_layer3", "resnet18_to_layer3", None),
}
EMBEDDING_LAYER = "global_pool"  # of the MobileNetV2 that judges resemblance
TILE, PATCHES_SHOWN = 112, 8
REFERENCES_PER_PASS = 16


def configuration(options: argparse.Namespace, relevance: str) -> DictConfig:
    """Return the configuration of one run."""
    factory, weights, mean = NETWORKS[options.network]
    asked = [
        *("model=python", f"model.factory={BACKBONES}:{factory}", f"model.mean={mean or 'null'}"),
        f"model.checkpoint={options.data}/data/weights/{weights}.fp16.safetensors",
        *("target=channel", f"target.layer={options.layer}", f"target.index={options.units}"),
        f"references.root={options.data}/data/imagenet-sample",
        *(f"relevance={relevance}", f"method={options.method}", f"seed={options.seed}", "evaluation=none"),
        *("logger=none", "progress=false", f"cache_dir={options.out.resolve()}/cache"),
    ]
    asked += [] if options.steps is None else [f"steps={options.steps}"]
    return compose_config([*asked, *options.overrides])


def judge(data: Path) -> VisionNetwork:
    """Return the network in whose embedding pictures and patches are compared."""
    spec: dict[str, Any] = {"source": "timm", "name": "mobilenetv2_100", "arguments": {"pad_type": "same"}}
    weights = f"{data}/data/weights/mobilenetv2_100.fp16.safetensors"
    return named_network({**spec, "mean": HALF, "std": HALF, "checkpoint": weights})


@torch.no_grad()
def embedding(network: VisionNetwork, pictures: Tensor) -> Tensor:
    """Return unit vectors (N, D) of RGB pictures (N, 3, H, W)."""
    taps = Taps(network.module, [EMBEDDING_LAYER])
    chunks = resized(pictures, network.preprocessing.size).split(REFERENCES_PER_PASS)
    vectors = [taps(model_space(chunk, network))[0][EMBEDDING_LAYER].flatten(1) for chunk in chunks]
    return torch.nn.functional.normalize(torch.cat(vectors), dim=1)


def shares(request: Request, pictures: Tensor, largest: Tensor) -> Tensor:
    """Return (pictures, units): each unit's activation by each picture as a share of its largest natural one."""
    own = readout_of(request.config, request.network, request.targets)
    rows = []
    for picture in pictures:
        repeated = picture.expand(len(request.targets), -1, -1, -1)
        rows.append(unit_activations(request.network, own, repeated))
    return torch.stack(rows) / largest


def correspondence(pictures: Tensor, patches: Sequence[Tensor]) -> Tensor:
    """Return for each picture the probability that an own patch is nearer than another's, from unit vectors."""
    values = []
    for number, picture in enumerate(pictures):
        own = patches[number] @ picture
        others = torch.cat([theirs for other, theirs in enumerate(patches) if other != number]) @ picture
        values.append((own[:, None] > others[None]).float().mean())
    return torch.stack(values)


def sheet(pictures: Tensor, patches: Sequence[Tensor], path: Path) -> None:
    """Write one row per unit: its picture, then its strongest patches."""
    size = 2 * TILE
    page = Image.new("RGB", (size + PATCHES_SHOWN // 2 * TILE, len(pictures) * size))
    for row, (picture, own) in enumerate(zip(pictures, patches, strict=True)):
        page.paste(_tile(picture, size), (0, row * size))
        for number, patch in enumerate(own[:PATCHES_SHOWN]):
            place = (size + number % (PATCHES_SHOWN // 2) * TILE, row * size + number // (PATCHES_SHOWN // 2) * TILE)
            page.paste(_tile(patch, TILE), place)
    page.save(path)


def _tile(picture: Tensor, side: int) -> Image.Image:
    image = Image.fromarray(to_uint8(picture).permute(1, 2, 0).numpy())
    return image.resize((side, side), Image.Resampling.BICUBIC)


def run(options: argparse.Namespace, relevance: str, network: VisionNetwork) -> dict[str, float]:
    """Make the pictures by one relevance method; return its row of the table."""
    request = Request.from_config(configuration(options, relevance))
    visualization = Visualization(request.config, request.network, request.targets, request.references)
    started = time.perf_counter(), time.process_time()
    made = visualization.run()
    clocks = time.perf_counter() - started[0], time.process_time() - started[1]
    pictures = quantised(made.images)
    patches = [torch.stack(list(islice(request.references.images(t), options.patches))) for t in request.targets]
    largest = torch.tensor([request.references.largest_activation(target) for target in request.targets])  # type: ignore[attr-defined]
    share = shares(request, pictures, largest)
    own = share.diagonal()
    embedded = [embedding(network, one) for one in patches]
    sheet(pictures, patches, options.out / f"{options.network}_{options.name}_{relevance}.png")
    return {
        "steps": float(request.config.steps),
        "own unit first": float((share.argmax(dim=1) == torch.arange(len(share))).sum()),
        "median share": float(own.median()),
        "lowest share": float(own.min()),
        "correspondence": float(correspondence(embedding(network, pictures), embedded).mean()),
        "seconds": clocks[0] / len(pictures),
        "processor seconds": clocks[1] / len(pictures),
    }


def natural(options: argparse.Namespace, network: VisionNetwork) -> dict[str, float]:
    """Return the row of the strongest patch itself: what a picture could reach by copying it."""
    request = Request.from_config(configuration(options, "none"))
    patches = [torch.stack(list(islice(request.references.images(t), options.patches))) for t in request.targets]
    largest = torch.tensor([request.references.largest_activation(target) for target in request.targets])  # type: ignore[attr-defined]
    share = shares(request, torch.stack([one[0] for one in patches]), largest)
    embedded = [embedding(network, one) for one in patches]
    first = torch.stack([one[0] for one in embedded])
    return {
        "steps": 0.0,
        "own unit first": float((share.argmax(dim=1) == torch.arange(len(share))).sum()),
        "median share": float(share.diagonal().median()),
        "lowest share": float(share.diagonal().min()),
        "correspondence": float(correspondence(first, [one[1:] for one in embedded]).mean()),
        "seconds": 0.0,
        "processor seconds": 0.0,
    }


def table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Return a Markdown table, one row per method."""
    columns = list(next(iter(rows.values())))
    lines = [f"| relevance | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(f'{row[column]:.3g}' for column in columns)} |" for name, row in rows.items()]
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=list(NETWORKS), default="resnet50")
    parser.add_argument("--layer", default="layer3.5")
    parser.add_argument("--units", default="[7,71,135,199,263,327,391,455,519,583,647,711,775,839,903,967]")
    parser.add_argument("--relevance", nargs="+", default=["lrp", "none", "correlation"])
    parser.add_argument("--method", default="vital")
    parser.add_argument("--steps", type=int, help="by default the method's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--patches", type=int, default=50, help="of each unit, for the correspondence")
    parser.add_argument("--name", default="vital", help="of the files written")
    parser.add_argument("--overrides", nargs="*", default=[], help="as vital-visualize takes them")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("VITAL_TEST_DATA", ".")))
    parser.add_argument("--out", type=Path, default=Path("outputs/hidden_units"))
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the methods and print their table."""
    options = parse(arguments)
    options.data = options.data.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    network = judge(options.data)
    rows = {"(strongest reference)": natural(options, network)}
    for relevance in options.relevance:
        rows[relevance] = run(options, relevance, network)
        (options.out / f"{options.network}_{options.name}.md").write_text(table(rows) + "\n")
    print(f"{options.network} {options.layer}, {options.method}, torch {torch.__version__}\n\n{table(rows)}")


if __name__ == "__main__":
    main()
