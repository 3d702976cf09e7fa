"""Check whether a change of the code changes any bit of the results: short runs of every kind, and their hashes.

    python tools/same_bits.py --out before.json                             # record this checkout
    python tools/same_bits.py --checkout ../other --compare before.json     # exit code 1 where anything differs
    python tools/same_bits.py --only demo circuit --compare before.json     # some runs

Hashed are pictures (their pixels), losses, metrics, indices and concepts. Times, memory, paths and the names of
configuration keys do not enter the hashes. The runs call the commands, in one process with one thread. Runs of real
networks need VITAL_TEST_DATA, a folder whose ``data/`` has weights and images; without it they are skipped.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import shlex
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import load_file, save_file

ROOT = Path(__file__).resolve().parents[1]
REAL = "VITAL_TEST_DATA"
DATA, CHECKOUT, IMAGES, DIRECTIONS = "data", "checkout", "images", "directions.safetensors"  # in the runs' folder
CLASSES = ("star", "heart", "fish")  # of the embedded networks; the sub-folders of the images
IMAGES_PER_CLASS, SIDE, GRAIN = 8, 64, 8  # px
CHANNELS = 96  # of layer3 of the embedded ResNet
# Keys whose values depend on the clock, the machine or a name in the configuration.
LEFT_OUT = ("seconds", "memory", "config_hash")

Hashes = dict[str, str]
Command = tuple[str, ...]  # the command's name and its arguments


@dataclass(frozen=True)
class Run:
    """One run: commands that write into the folder of the run's name.

    Attributes:
        commands: the commands, in their order.
        real: whether the run needs real networks and images.
    """

    commands: tuple[Command, ...]
    real: bool = False


QUIET = "trainer.accelerator=cpu progress=false"


def pictures(folder: str, asked: str) -> Command:
    """Return a short vital-visualize into a folder; ``asked`` are overrides, also of the settings that shorten it."""
    short = "steps=3 batch_size=2 references.count=4 evaluation=basic logger=none"
    words = shlex.split(f"{short} {QUIET} cache_dir=cache/{folder} hydra.run.dir={folder} {asked}")
    last = dict(word.split("=", 1) for word in words)  # Hydra refuses a key twice
    return ("visualize", *(f"{key}={value}" for key, value in last.items()))


def mining(folder: str, asked: str) -> Command:
    """Return a short vital-mine into a folder."""
    short = f"model=embedded_resnet layers=[layer3] images={IMAGES} k=5 workers=0 batch_size=8"
    return ("mine", *shlex.split(f"{short} {QUIET} cache_dir=cache/{folder} hydra.run.dir={folder} {asked}"))


CLASSES_OF_RESNET = "model=embedded_resnet target.index=[0,1]"
NMF = "concepts=nmf concepts.count=3 concepts.explained=2"
VIEWS = "views=2 views_per_pass=1"
HIDDEN = f"model=embedded_resnet references.root={IMAGES} references.candidates=16"
CIFAR = f"""model=python model.factory={CHECKOUT}/examples/my_network.py:resnet "model.arguments={{depth: 20}}"
    model.size=32 model.checkpoint={DATA}/weights/cifar10_resnet20.safetensors references.root={DATA}/cifar10/train
    model.class_names=[airplane,automobile,bird,cat,deer,dog,frog,horse,ship,truck] target.index=[cat,ship]"""
MOBILENET = f"""model=timm model.name=mobilenetv2_100 "model.arguments={{pad_type: same}}"
    model.checkpoint={DATA}/weights/mobilenetv2_100.fp16.safetensors model.mean=[0.5,0.5,0.5] model.std=[0.5,0.5,0.5]
    references.root={DATA}/imagenette "target.index=golf ball" batch_size=1 method=vital_fourier"""
RUNS: Mapping[str, Run] = {
    "demo": Run((pictures("demo", "target.index=[0,1]"),)),
    "cifar_vital": Run((pictures("cifar_vital", f"{CIFAR} method=vital"),), real=True),
    "cifar_vital_fourier": Run((pictures("cifar_vital_fourier", f"{CIFAR} method=vital_fourier"),), real=True),
    "mobilenet_class": Run((pictures("mobilenet_class", MOBILENET),), real=True),
    "fourier": Run((pictures("fourier", "model=embedded_vit target.index=2 batch_size=1 method=fourier"),)),
    "maco": Run((pictures("maco", f"{CLASSES_OF_RESNET} method=maco {VIEWS}"),)),
    "accentuation": Run((pictures("accentuation", f"{CLASSES_OF_RESNET} method=accentuation {VIEWS}"),)),
    "deep_inversion": Run((pictures("deep_inversion", f"{CLASSES_OF_RESNET} method=deep_inversion"),)),
    "channel_lrp": Run(
        (pictures("channel_lrp", f"{HIDDEN} target=channel target.layer=layer3 target.index=[3,7] relevance=lrp"),)
    ),
    "direction": Run(
        (
            pictures(
                "direction",
                f"{HIDDEN} target=direction target.layer=layer3 target.vectors={DIRECTIONS} method=vital_fourier",
            ),
        )
    ),
    "concept": Run(
        (
            mining("concept/found", f"{NMF} concepts.class=heart sheets=false"),
            pictures(
                "concept/pictures",
                f"{HIDDEN} target=concept target.concepts=concept/found target.index=[0,1] method=vital_fourier",
            ),
        )
    ),
    "circuit": Run(  # with the package's drawn images, for this script's images excite no class
        (
            pictures(
                "circuit",
                """model=embedded_resnet target=circuit target.unit=class:star target.levels=2 target.width=2
                references.region=image method=vital_fourier""",
            ),
        )
    ),
    "mining": Run((mining("mining", "channels=0-7"),)),
}

# The program of the process that makes the runs: it takes the runs as JSON, and writes its versions and exit codes.
MAKE = """
import importlib, json, sys
from pathlib import Path
import torch
import vital_exp
torch.set_num_threads(1)
codes = {}
for name, commands in json.loads(sys.argv[1]).items():
    codes[name] = []
    for command, *arguments in commands:
        print(f"{name}: vital-{command} {' '.join(arguments)}", flush=True)
        try:
            importlib.import_module(f"vital_exp.commands.{command}").main(arguments)
            codes[name].append(0)
        except SystemExit as end:
            codes[name].append(end.code or 0)
found = {"package": vital_exp.__file__, "torch": torch.__version__, "codes": codes}
Path("made.json").write_text(json.dumps(found))
"""
SHOWN = 20  # last lines of a failed process's output that are printed


def draw_inputs(folder: Path, checkout: Path, data: Path | None) -> None:
    """Put the inputs of the runs into a folder: images and directions from a seed, links to checkout and data."""
    numbers = np.random.default_rng(0)
    for name in CLASSES:
        (folder / IMAGES / name).mkdir(parents=True)
        for number in range(IMAGES_PER_CLASS):
            coarse = numbers.integers(0, 256, (GRAIN, GRAIN, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(
                folder / IMAGES / name / f"{number}.png"
            )
    save_file({"directions": numbers.standard_normal((2, CHANNELS)).astype(np.float32)}, folder / DIRECTIONS)
    (folder / CHECKOUT).symlink_to(checkout)
    if data:
        (folder / DATA).symlink_to(data / "data")


def make(folder: Path, checkout: Path, names: Sequence[str]) -> dict[str, Any]:
    """Make runs in a folder with the code of a checkout; return the version of torch, and the exit codes by run.

    Raises:
        SystemExit: the process ended early, or imported another package than the checkout's.
    """
    asked = json.dumps({name: RUNS[name].commands for name in names})
    own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(checkout), "VITAL_CACHE": str(folder / "cache")}
    said = folder / "said.txt"
    with said.open("w", encoding="utf-8") as file:
        command = [sys.executable, "-c", MAKE, asked]
        subprocess.run(command, cwd=folder, env={**os.environ, **own}, stdout=file, stderr=file, check=False)
    place = folder / "made.json"
    last = "\n".join(said.read_text(encoding="utf-8").splitlines()[-SHOWN:])
    if not place.is_file():
        raise SystemExit(f"the runs ended early:\n{last}")
    made: dict[str, Any] = json.loads(place.read_text())
    if checkout not in Path(made["package"]).resolve().parents:
        raise SystemExit(f"checkout={checkout}: Python imported the package of {made['package']}")
    if any(any(codes) for codes in made["codes"].values()):
        print(last, file=sys.stderr)
    return made


def hashes_of(folder: Path) -> Hashes:
    """Return the hash of each file of results, by its path in the run's folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        read = READERS.get(path.name) or READERS.get(path.suffix)
        if read:
            found[path.relative_to(folder).as_posix()] = hashlib.sha256(b"".join(read(path))).hexdigest()[:16]
    return found


def _pixels(path: Path) -> Iterable[bytes]:
    with Image.open(path) as image:
        yield f"{image.mode} {image.size}".encode()
        yield image.tobytes()


def _lines(path: Path) -> Iterable[bytes]:
    for line in path.read_text(encoding="utf-8").splitlines():
        yield _canonical({key: value for key, value in json.loads(line).items() if key not in LEFT_OUT})


def _canonical(content: Any) -> bytes:
    return json.dumps(content, sort_keys=True).encode()


def _json(path: Path) -> Iterable[bytes]:
    yield _canonical(json.loads(path.read_text(encoding="utf-8")))


def _metrics(path: Path) -> Iterable[bytes]:
    content = json.loads(path.read_text(encoding="utf-8"))
    yield _canonical({name: value for name, value in content.items() if name not in LEFT_OUT})


def _table(path: Path) -> Iterable[bytes]:
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            yield _canonical({key: value for key, value in row.items() if key not in LEFT_OUT})


def _index(path: Path) -> Iterable[bytes]:
    """The units of an index; its other tables hold paths, times and hashes of code."""
    with closing(sqlite3.connect(path)) as connection:
        for row in connection.execute("SELECT * FROM units ORDER BY layer, channel, side, region, rank"):
            yield repr(row).encode()


def _tensors(path: Path) -> Iterable[bytes]:
    for name, values in sorted(load_file(path).items()):
        yield f"{name} {values.dtype} {values.shape}".encode()
        yield values.tobytes()


# The reader of each file of results, by the file's name or suffix; other files hold no results.
READERS: Mapping[str, Callable[[Path], Iterable[bytes]]] = {
    ".png": _pixels,
    ".jpg": _pixels,
    "results.jsonl": _lines,
    "history.csv": _table,
    "metrics.json": _metrics,
    "metrics.csv": _table,
    "circuit.json": _json,
    "concepts.csv": _table,
    "concepts.safetensors": _tensors,
    "index.sqlite": _index,
}


def record(checkout: Path, names: Sequence[str], data: Path | None) -> dict[str, Any]:
    """Make runs with the code of a checkout; return the hashes of each run, or the exit codes of a failed run."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        draw_inputs(folder, checkout, data)
        made = make(folder, checkout, names)
        runs = {name: hashes_of(folder / name) for name in names}
    failed = {name: {"exit codes": str(codes)} for name, codes in made["codes"].items() if any(codes)}
    return {"torch": made["torch"], "runs": runs | failed, "failed": sorted(failed)}


def differences(before: Mapping[str, Hashes], now: Mapping[str, Hashes]) -> list[str]:
    """Return a line for each file that differs, is new or is missing, in the runs that both recordings have."""
    found = []
    for run in now:
        for file in sorted({*before.get(run, {}), *now[run]}) if run in before else ():
            had, has = before[run].get(file), now[run].get(file)
            if had != has:
                found.append(f"{run}: {file} {'differs' if had and has else 'is new' if has else 'is missing'}")
    return found


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    about = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python tools/same_bits.py", description=__doc__, formatter_class=about)
    parser.add_argument("--checkout", type=Path, default=ROOT, help="the checkout whose code runs; this one by default")
    parser.add_argument(
        "--only", nargs="+", choices=list(RUNS), default=list(RUNS), help="runs to make; all by default"
    )
    parser.add_argument("--out", type=Path, help="a JSON file to write the hashes to")
    parser.add_argument("--compare", type=Path, help="a JSON file written by --out")
    options = parser.parse_args(arguments)
    if not (options.checkout / "vital_exp").is_dir():
        parser.error(f"--checkout {options.checkout}: a folder that holds vital_exp is needed")
    if options.compare and not options.compare.is_file():
        parser.error(f"--compare {options.compare}: no such file")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Record the runs, then write or compare the hashes; return 1 where a run failed or differs, 2 after a mistake."""
    options = parse(arguments)
    given = os.environ.get(REAL)
    names = [name for name in options.only if given or not RUNS[name].real]
    for name in options.only:
        if name not in names:
            print(f"{name}: skipped, it needs real networks and images: set {REAL}")
    found = record(options.checkout.resolve(), names, Path(given).resolve() if given else None)
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for name in found["failed"]:
        print(f"{name}: failed, {found['runs'][name]['exit codes']}")
    if options.compare:
        return int(_compare(json.loads(options.compare.read_text()), found))
    return int(bool(found["failed"]))


def _compare(before: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
    """Print the comparison; return whether anything failed or differs."""
    if before["torch"] != found["torch"]:
        print(f"recorded with torch {before['torch']}, now {found['torch']}: another version rounds differently")
    different = differences(before["runs"], found["runs"])
    print("\n".join(different) if different else "every bit is the same")
    for name in found["runs"]:
        if name not in before["runs"]:
            print(f"{name}: not compared, for the recording does not have it")
    return bool(different or found["failed"])


if __name__ == "__main__":
    sys.exit(main())
