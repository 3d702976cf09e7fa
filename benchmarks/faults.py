"""Kill a run fifty times at random moments, and check that its results are those of an undisturbed run.

    python benchmarks/faults.py --kills 50

Each start is a process that SIGKILL ends; the next one continues with the same folder. Run it from the checkout.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path

from tests.processes import start
from tests.tiny import image_folder

TARGETS, STEPS = 48, 1000  # a life makes about one target: there is work left at the last kill
SHORTEST_LIFE, LONGEST_LIFE = 0.2, 4.0  # seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        print(json.dumps(kill_and_compare(Path(name), options.kills, random.Random(options.seed)), indent=2))


def kill_and_compare(place: Path, kills: int, moments: random.Random) -> dict[str, object]:
    image_folder(place / "photos", ["all"], count=4, side=16)
    arguments = (
        *("model=python", "model.factory=tests.tiny:tiny_net", f"model.arguments={{classes:{TARGETS}}}"),
        *("model.size=16", "references=folder", f"references.root={place / 'photos' / 'all'}", "references.count=4"),
        *(f"steps={STEPS}", "batch_size=1", "checkpoint_every=20", "progress=false", "trainer.accelerator=cpu"),
        *("logger=none", f"target.index=0-{TARGETS - 1}"),
    )
    progress: list[int] = []
    while len(progress) < kills:
        process = start(place, *arguments, "hydra.run.dir=killed")
        time.sleep(moments.uniform(SHORTEST_LIFE, LONGEST_LIFE))
        process.kill()
        process.join()
        results = place / "killed" / "results.jsonl"
        progress.append(results.read_text().count("\n") if results.is_file() else 0)
    for name in ("killed", "whole"):
        last = start(place, *arguments, f"hydra.run.dir={name}")
        last.join()
        assert last.exitcode == 0, name
    targets = [json.loads(line)["target"] for line in (place / "killed" / "results.jsonl").read_text().splitlines()]
    pictures = {name: contents(place / name) for name in ("killed", "whole")}
    rows = {name: len((place / name / "history.csv").read_text().splitlines()) for name in pictures}
    return {
        "kills": kills,
        "kills before the last target was finished": sum(finished < TARGETS for finished in progress),
        "targets finished after each kill": " ".join(map(str, progress)),
        "every target once": sorted(targets) == sorted(f"class-{number}" for number in range(TARGETS)),
        "pictures identical": pictures["killed"] == pictures["whole"],
        "rows of history.csv": rows,
        "half files": len(list((place / "killed").rglob("*.part"))),
    }


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "images").iterdir()}


if __name__ == "__main__":
    main()
