"""Concepts and a circuit of real networks, by vital-mine concepts=nmf and target=circuit on Imagenette.

    VITAL_TEST_DATA=... python benchmarks/concepts.py --out outputs/concepts

Concepts of two classes with their importance on MobileNetV2, concepts of the same images on DenseNet-169, which has no
classifier, and the circuit of one class. Each is a run folder under ``--out``; a second call makes the missing ones
only. Writes ``concepts.csv``, the importance of each concept. ``--images`` limits the images of each class.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from vital_exp.concepts.concepts import Concepts

CLASSES = {"n02102040": 217, "n03445777": 574}  # English springer, golf ball
MOBILENET = (
    *("model=timm", "model.name=mobilenetv2_100", "model.arguments.pad_type=same"),
    *("model.mean=[0.5,0.5,0.5]", "model.std=[0.5,0.5,0.5]"),
)
DENSENET = ("model=timm", "model.name=densenet169", "model.arguments.num_classes=0")
COMMON = ("concepts=nmf", "patch.overlap=0", "patch.search=strongest", "workers=0", "progress=false")


def commands(data: Path, images: Path, out: Path, steps: int, references: int) -> Iterator[tuple[str, list[str]]]:
    """Yield the name of each run folder and its command."""
    mobilenet = [*MOBILENET, f"model.checkpoint={data / 'weights' / 'mobilenetv2_100.fp16.safetensors'}"]
    densenet = [*DENSENET, f"model.checkpoint={data / 'weights' / 'densenet169_backbone.fp16.safetensors'}"]
    for index in CLASSES.values():
        own = ["layers=[bn2]", f"images={images}", f"concepts.class={index}", "concepts.explained=10", "k=20"]
        yield f"mobilenet_{index}", ["mine", *mobilenet, *COMMON, *own]
    for folder in CLASSES:
        own = ["layers=[features.norm5]", f"images={images / folder}", "concepts.count=5", "k=8"]
        yield f"densenet_{folder}", ["mine", *densenet, *COMMON, *own]
    circuit = ["target=circuit", "target.unit=class:574", "target.width=2", f"steps={steps}", "method=vital_fourier"]
    circuit += [f"references.root={images}", f"references.count={references}", "references.region=image"]
    quiet = ["evaluation=none", "logger=none", "progress=false"]
    yield "circuit_574", ["visualize", *mobilenet, *circuit, *quiet]


def first_images(source: Path, count: int, out: Path) -> Path:
    """Return a folder of links to the first images of each class."""
    for folder in sorted(path for path in source.iterdir() if path.is_dir()):
        (out / folder.name).mkdir(parents=True, exist_ok=True)
        for image in sorted(folder.iterdir())[:count]:
            link = out / folder.name / image.name
            if not link.exists():
                link.symlink_to(image)
    return out


def write_table(out: Path) -> Path:
    """Write ``out/concepts.csv``: network, layer, images, class, concept and importance, of all folders of concepts."""
    path = out / "concepts.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["run", "network", "layer", "images", "class", "concept", "total_sobol_index"])
        for place in sorted(out.glob("*/concepts.safetensors")):
            found = Concepts.open(place)
            own = [
                place.parent.name,
                found.meta["network"],
                found.layer,
                found.meta["images"],
                found.meta["label"] or "",
            ]
            for number in range(len(found)):
                value = "" if found.importance is None else f"{float(found.importance[number]):.6g}"
                table.writerow([*own, number, value])
    return path


def main() -> None:
    """Run the commands that are not finished, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("VITAL_TEST_DATA"), help="the tests' data folder")
    parser.add_argument("--out", type=Path, default=Path("outputs/concepts"))
    parser.add_argument("--images", type=int, help="the first images of each class only; all by default")
    parser.add_argument("--steps", type=int, default=200, help="of the circuit's pictures")
    parser.add_argument("--references", type=int, default=20, help="of the circuit's pictures")
    given = parser.parse_args()
    if given.data is None:
        parser.error("--data, or VITAL_TEST_DATA, is needed")
    data, out = Path(given.data).resolve() / "data", given.out.resolve()
    images = data / "imagenette"
    if given.images:
        images = first_images(images, given.images, out / "images")
    for name, arguments in commands(data, images, out, given.steps, given.references):
        subprocess.run([sys.executable, "-m", "vital_exp", *arguments, f"hydra.run.dir={out / name}"], check=True)
    print(write_table(out))


if __name__ == "__main__":
    main()
