"""A sweep of methods as a contact sheet and a table: what each makes of the same classes with as many network passes.

    vital-visualize -m +experiment=imagenette_mobilenet hydra.sweep.dir=multirun/imagenette_mobilenet
    vital-visualize -m +experiment=imagenette_mobilenet method=accentuation,prototype seed=0 \\
        hydra.sweep.dir=multirun/imagenette_mobilenet
    python benchmarks/methods.py multirun/imagenette_mobilenet

Per network of the sweep one table (do the network and the judges recognise the pictures, how sure are they, seconds)
and one sheet of the first seed, a row per method.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

from PIL import Image, ImageDraw

from vital_exp.reporting.sweep import SweepRun, find_runs, read_sweep

COLUMNS = ("accuracy_top1", "probability", "transfer_top1", "transfer_top5", "probability[")  # prefixes of metrics
TILE, LABEL = 112, 18  # px of the sheet
QUALITY = 82  # of the sheet's JPEG


def metrics(run: SweepRun) -> dict[str, float]:
    """Return the run's metrics of recognition, and seconds per picture."""
    wanted = {name: entry["value"] for name, entry in run.run.metrics.items() if name.startswith(COLUMNS)}
    return {**wanted, "seconds": mean(float(result["seconds"]) for result in run.run.results)}


def rows(runs: Sequence[SweepRun]) -> dict[str, dict[str, float]]:
    """Return per method the means over its runs, in the order of the sweep."""
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
        sheet(own, options.out / f"methods_{model}.jpg")
        text = table(rows(own))
        (options.out / f"methods_{model}.md").write_text(text + "\n")
        print(f"{model}\n\n{text}\n")


if __name__ == "__main__":
    main()
