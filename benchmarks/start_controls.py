"""Whether the start from the mean image explains the pictures: ``vital_fourier`` from other starts, scored by judges.

    VITAL_TEST_DATA=... python benchmarks/start_controls.py --network mobilenet --seeds 0 1 2

``vital_fourier`` starts each picture from the mean of its class's references. The controls start from the mean of
another class, the mean of all classes, or noise; a further control is the own mean itself, without a step. Each start
has a row: recognition of the pictures, and the share of their low frequencies (below ``CYCLES`` cycles per picture,
without the mean colour) that comes from the start, and from the own mean, as a squared cosine. Means over classes with
95 % bootstrap intervals; lines below the table compare each control with the own mean on the same classes. The
benchmark can be stopped at any time: a second call makes the missing pictures only.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from class_pictures import CONTESTS, EMBEDDED, configuration, judges_of, opinions, save_sheet
from PIL import Image
from torch import Tensor

from vital_exp.evaluation.comparison import paired_difference
from vital_exp.evaluation.score import Score
from vital_exp.images.output import quantised, resized, to_uint8
from vital_exp.models.network import VisionNetwork
from vital_exp.references.decoding import fit, load_rgb
from vital_exp.references.mean_image import mean_image
from vital_exp.setup.request import Request
from vital_exp.visualization.run import Visualization

OWN, OTHER, ALL, NOISE, UNCHANGED = "own mean", "another class's mean", "mean of all", "noise", "own mean, no step"
STARTS = (OWN, OTHER, ALL, NOISE, UNCHANGED)
CYCLES = 8  # per picture: objects' places and outlines, no parts


def low_frequencies(pictures: Tensor) -> Tensor:
    """Return the coefficients (N, 3, F) complex of pictures (N, 3, H, W) below ``CYCLES``, without the mean colour."""
    found = torch.fft.rfft2(pictures.double())[..., :CYCLES]  # (N, 3, H, CYCLES)
    found = torch.cat([found[..., :CYCLES, :], found[..., 1 - CYCLES :, :]], dim=-2)
    found[..., 0, 0] = 0
    return found.flatten(2)


def shared(pictures: Tensor, others: Tensor) -> list[float]:
    """Return the squared cosines of the low frequencies of two sets of pictures (N, 3, H, W), pair by pair."""
    a, b = (low_frequencies(one).flatten(1) for one in (pictures, others))
    product = (a * b.conj()).sum(dim=1).real
    squares = (a.abs().square().sum(dim=1) * b.abs().square().sum(dim=1)).clamp(min=torch.finfo(torch.float64).tiny)
    return (product.clamp(min=0).square() / squares).tolist()


def make(options: argparse.Namespace, request: Request, means: Tensor, start: str, seed: int) -> Path:
    """Make the pictures of a start, unless they exist; return their folder."""
    folder: Path = options.out / options.network / start.replace(" ", "_").replace(",", "") / str(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for place, target in enumerate(request.targets):
        path = folder / f"{target.name}.png"
        if path.exists():
            continue
        init = {OWN: "mean", NOISE: "noise", ALL: "all", OTHER: str((place + 1) % len(means)), UNCHANGED: None}[start]
        if init is None:
            picture = means[place]
        else:
            init = init if init in ("mean", "noise") else str(options.out / options.network / f"mean_{init}.png")
            own = argparse.Namespace(**{**vars(options), "overrides": [*options.overrides, f"image.init={init}"]})
            asked = Request.from_config(configuration(own, "vital_fourier", seed))
            picture = Visualization(replace(asked, targets=[target])).run().images[0]
        save(picture, path)
    return folder


def save(picture: Tensor, path: Path) -> None:
    """Write a picture (3, H, W) RGB in [0, 1] under another name, then rename it, so that no part of it is read."""
    part = path.with_suffix(".part")
    Image.fromarray(to_uint8(picture.clamp(0, 1)).permute(1, 2, 0).numpy()).save(part, format="PNG")
    part.rename(path)


def load(path: Path) -> Tensor:
    """Return a picture (3, H, W) RGB in [0, 1]."""
    image = load_rgb(path)
    return fit(image, (image.height, image.width))


def means_of(options: argparse.Namespace, request: Request) -> Tensor:
    """Return the mean of each class's references (N, 3, H, W), and write them and the mean of all."""
    size = request.setup.size
    means = torch.stack([resized(mean_image(request.references, target)[None], size)[0] for target in request.targets])
    (options.out / options.network).mkdir(parents=True, exist_ok=True)
    for name, mean in [*((str(place), mean) for place, mean in enumerate(means)), ("all", means.mean(dim=0))]:
        save(mean, options.out / options.network / f"mean_{name}.png")
    return means


def columns(
    options: argparse.Namespace, request: Request, means: Tensor, judges: Mapping[str, VisionNetwork], start: str
) -> dict[str, list[float]]:
    """Return, by column, the values of a start's pictures, by class and seed."""
    found: dict[str, list[float]] = {}
    starts = {ALL: means.mean(dim=0).expand_as(means), OTHER: means.roll(-1, dims=0)}.get(start, means)
    for seed in options.seeds if start != UNCHANGED else options.seeds[:1]:
        folder = make(options, request, means, start, seed)
        pictures = quantised(torch.stack([load(folder / f"{target.name}.png") for target in request.targets]))
        save_sheet(pictures, folder / "sheet.png")
        index = torch.tensor([target.index for target in request.targets])
        said = opinions({"itself": request.network, **judges}, pictures, index)
        values = {f"{name} {column}": own.tolist() for name, one in said.items() for column, own in one.items()}
        values["low frequencies of the start"] = [] if start == NOISE else shared(pictures, starts)
        values["of the own mean"] = shared(pictures, means)
        for name, own in values.items():
            found.setdefault(name, []).extend(own)
    return found


def table(found: Mapping[str, Mapping[str, list[float]]], classes: int) -> str:
    """Return a Markdown table with a row per start, and the difference of each control from the own mean."""
    names = [name for name in found[OWN] if not name.endswith("top5")]
    lines = [f"| start | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    means = {start: {name: _by_class(own[name], classes) for name in names} for start, own in found.items()}
    for start, own in means.items():
        lines.append(f"| {start} | {' | '.join(_cell(own[name]) for name in names)} |")
    lines.append("")
    for start in found:
        if start != OWN:
            for name in (name for name in names if name.endswith("log p") and not name.startswith("itself")):
                gain = paired_difference(means[OWN][name], means[start][name])
                lines.append(f"- {name}, own mean less {start}: {_difference(gain)}")
    return "\n".join(lines)


def _by_class(values: Sequence[float], classes: int) -> list[float]:
    """Return each class's mean over seeds."""
    return torch.tensor(values).reshape(-1, classes).mean(dim=0).tolist() if values else []


def _cell(values: Sequence[float]) -> str:
    if not values:
        return ""
    score = Score.mean(values)
    return f"{score.value:.3g} ({score.low:.3g} to {score.high:.3g})"


def _difference(gain: Mapping[str, float | int | bool | None]) -> str:
    return f"{gain['value']:+.2f} ({gain['low']:+.2f} to {gain['high']:+.2f})"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=[*CONTESTS, *EMBEDDED], default="embedded")
    parser.add_argument("--starts", nargs="+", default=list(STARTS), choices=STARTS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, help="by default the method's")
    parser.add_argument("--overrides", nargs="*", default=[], help="as vital-visualize takes them")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("VITAL_TEST_DATA", ".")))
    parser.add_argument("--out", type=Path, default=Path("outputs/start_controls"))
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the missing pictures and print the table."""
    options = parse(arguments)
    options.data, options.out = options.data.resolve(), options.out.resolve()
    request = Request.from_config(configuration(options, "vital_fourier", options.seeds[0]))
    means = means_of(options, request)
    judges = judges_of(options)
    found = {start: columns(options, request, means, judges, start) for start in dict.fromkeys([OWN, *options.starts])}
    print(table(found, len(request.targets)))


if __name__ == "__main__":
    main()
