"""A sweep of methods as a contact sheet and a table: the same classes by each method, with equally many network passes.

    vital-visualize -m +experiment=imagenette_mobilenet hydra.sweep.dir=multirun/imagenette_mobilenet
    vital-visualize -m +experiment=imagenette_mobilenet method=accentuation,prototype seed=0 \\
        hydra.sweep.dir=multirun/imagenette_mobilenet_more
    python benchmarks/methods.py multirun/imagenette_mobilenet multirun/imagenette_mobilenet_more

Each network of the sweep has a table (recognition and probability by the network and the judges, seconds, and
recognition by the network of square crops, of a quarter and a half of the side) and a sheet of the first seed, with a
row per method. Networks are built again, so the weights must still be at their place.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from vital_exp.evaluation.recognition import logits
from vital_exp.images.output import resized
from vital_exp.models.loading import build_network
from vital_exp.models.named import model_config
from vital_exp.models.network import VisionNetwork
from vital_exp.recorded_config import recorded_config
from vital_exp.references.decoding import fit, load_rgb
from vital_exp.reporting.sweep import SweepRun, find_runs, read_sweep

COLUMNS = ("accuracy_top1", "probability", "transfer_top1", "transfer_top5", "probability[")  # prefixes of metrics
# MACO shows its network crops of about a quarter of the side, never the whole picture.
CROPS, CROPS_PER_PICTURE = (0.25, 0.5), 8
TILE, LABEL = 112, 18  # px of the sheet
QUALITY = 82  # of the sheet's JPEG


def metrics(run: SweepRun) -> dict[str, float]:
    """Return the run's metrics of recognition, and seconds per picture."""
    wanted = {name: entry["value"] for name, entry in run.run.metrics.items() if name.startswith(COLUMNS)}
    seconds = mean(float(result["seconds"]) for result in run.run.results)
    return {**wanted, **recognised_in_crops(run), "seconds": seconds}


def recognised_in_crops(run: SweepRun) -> dict[str, float]:
    """Return, by size of crops, the share of random crops of the run's pictures that its network recognises."""
    config = recorded_config(run.folder, "runs", ("model",))
    network = build_network(model_config(config), config.cache)
    generator = torch.Generator().manual_seed(run.seed)
    return {f"in crops of {share}": mean(_recognised(run, network, share, generator)) for share in CROPS}


def _recognised(run: SweepRun, network: VisionNetwork, share: float, generator: torch.Generator) -> Iterator[float]:
    """The share of recognised crops of each picture."""
    for result in run.run.results:
        image = load_rgb(run.folder / "images" / f"{result['target']}.png")
        picture = fit(image, (image.height, image.width))
        chosen = resized(torch.stack(list(crops(picture, share, generator))), network.preprocessing.size)
        index = int(str(result["target"]).split("-")[1])  # class-207
        yield float((logits(network, chosen).argmax(dim=1) == index).double().mean())


def crops(picture: Tensor, share: float, generator: torch.Generator) -> Iterator[Tensor]:
    """Return random square crops of a picture (3, H, W), whose side is a share of its shorter side."""
    height, width = picture.shape[-2:]
    side = round(share * min(height, width))
    for _ in range(CROPS_PER_PICTURE):
        top, left = (int(torch.randint(free - side + 1, (), generator=generator)) for free in (height, width))
        yield picture[:, top : top + side, left : left + side]


def rows(runs: Sequence[SweepRun]) -> dict[str, dict[str, float]]:
    """Return the means over each method's runs, in the order of the sweep."""
    by_method: dict[str, list[dict[str, float]]] = {}
    for run in runs:
        if run.run.metrics:  # an unfinished job has none
            by_method.setdefault(run.method, []).append(metrics(run))
    return {
        method: {"seeds": float(len(each)), **{name: mean(one[name] for one in each) for name in each[0]}}
        for method, each in by_method.items()
    }


def table(found: Mapping[str, Mapping[str, float]]) -> str:
    """Return a Markdown table, one row per method."""
    columns = list(next(iter(found.values())))
    lines = [f"| method | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(f'{row[column]:.3g}' for column in columns)} |" for name, row in found.items()]
    return "\n".join(lines)


def not_made(runs: Sequence[SweepRun]) -> list[str]:
    """Return a line for each method that made no picture, with the reason."""
    reasons = {run.method: run.run.unmade for run in runs if run.run.unmade}
    return [f"\n{method}: {reason}" for method, reason in reasons.items()]


def sheet(runs: Sequence[SweepRun], path: Path) -> None:
    """Write a JPEG with one row of pictures per method, of its first run."""
    first = {run.method: run for run in reversed(runs)}
    shown = [run for run in runs if first[run.method] is run]
    names = list(dict.fromkeys(str(result["target"]) for run in shown for result in run.run.results))
    page = Image.new("RGB", (len(names) * TILE, len(shown) * (TILE + LABEL)), "white")
    draw = ImageDraw.Draw(page)
    for number, run in enumerate(shown):
        top = number * (TILE + LABEL)
        draw.text((3, top + 3), f"{run.method}, seed {run.seed}, {run.config['steps']} steps", fill="black")
        for column, name in enumerate(names):
            picture = run.folder / "images" / f"{name}.png"
            if picture.is_file():
                with Image.open(picture) as image:
                    tile = image.convert("RGB").resize((TILE, TILE), Image.Resampling.LANCZOS)
                page.paste(tile, (column * TILE, top + LABEL))
    page.save(path, quality=QUALITY, optimize=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write a table and a sheet per network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of sweeps")
    parser.add_argument("--out", type=Path, default=Path("outputs/methods"))
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    runs = read_sweep(find_runs(options.runs))
    for model in dict.fromkeys(run.model for run in runs):
        own = [run for run in runs if run.model == model]
        name = f"methods_{re.sub(r'[^A-Za-z0-9._-]', '_', model)}"  # a factory's name holds a path
        sheet(own, options.out / f"{name}.jpg")
        text = "\n".join([table(rows(own)), *not_made(own)])
        (options.out / f"{name}.md").write_text(text + "\n")
        print(f"{model}\n\n{text}\n")


if __name__ == "__main__":
    main()
