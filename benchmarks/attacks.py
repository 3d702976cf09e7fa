"""Attack x method on the embedded network: whether distribution matching resists attacks on activation maximisation.

    python benchmarks/attacks.py --run outputs/run --hidden outputs/hidden

Both runs are made first if they are missing. Each attack is written when it is finished; a second call makes the
missing ones only. The tables go to benchmarks/results/attacks.csv and attacks.md.
"""

from __future__ import annotations

import argparse
import csv
import resource
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vital_exp import audit, visualize
from vital_exp.whole_files import whole_file, write_table

RESULTS = Path(__file__).parent / "results"
# Slingshots take aim at the first, whose pixels they can lead; vital has the same parameters.
METHODS = ("activation_max", "vital", "fourier", "maco", "vital_fourier")
# The layer whose channels silent units are added to, so that they are units of the attacked layer itself.
HIDDEN_LAYER = "layer4.0.bn1"
# A circuit is on the logits, ProxPulse on hidden units: each has one kind of unit that it can attack.
ATTACKS = (
    ("silent_units", "classes"),
    ("silent_units", "hidden"),
    ("fooling_circuit", "classes"),
    ("proxpulse", "hidden"),
    ("slingshot", "classes"),
    ("slingshot", "hidden"),
)
SHOWN = {
    "failed": "failed",
    "nearer_decoy": "nearer the decoy",
    "decoy_distance_before": "distance from the decoy before",
    "decoy_distance": "after",
    "honest_distance": "distance from the honest picture",
    "own_top1[embedded_judge]": "judge: own class",
    "decoy_top1[embedded_judge]": "judge: decoy",
    "accuracy_before": "natural accuracy before",
    "accuracy_after": "after ",
    "agreement": "decisions agree",
}


def main() -> None:
    asked = _arguments()
    runs = {"classes": asked.run, "hidden": asked.hidden}
    _made(runs)
    done = read_rows(RESULTS / "attacks.csv")
    for attack, units in ATTACKS:
        if (attack, units) in {(row["attack"], row["units"]) for row in done}:
            continue
        start = _processor_time()
        found = audit(attack, runs[units], asked.out / f"{attack}-{units}", **_settings(asked, units))
        cost = _processor_time() - start
        reached = {key: value for key, value in found.facts.items() if key != "layer"}
        done += [{"attack": attack, "units": units, **line, **reached, "seconds": cost} for line in found.table]
        write_table(RESULTS / "attacks.csv", done)
        with whole_file(RESULTS / "attacks.md") as file:
            file.write(_markdown(done))
        print(found, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("outputs/attacks/classes"), help="a run of classes")
    parser.add_argument("--hidden", type=Path, default=Path("outputs/attacks/hidden"), help="a run of hidden units")
    parser.add_argument("--out", type=Path, default=Path("outputs/attacks/audits"), help="pages and attacked networks")
    parser.add_argument("--steps", type=int, default=256, help="of the pictures")
    parser.add_argument("--targets", type=int, default=4, help="units per attack")
    parser.add_argument("--tuning-steps", type=int, default=400, help="of slingshot and ProxPulse")
    parser.add_argument(
        "--snapshot-steps", type=int, default=512, help="of the runs the circuit's detector learns from"
    )
    return parser.parse_args()


def _made(runs: Mapping[str, Path]) -> None:
    """Make a run that gives the units and their natural images; the audit does not compare its pictures."""
    quick: dict[str, Any] = {"method": "fourier", "steps": 8, "overrides": ["evaluation=none"]}
    if not (runs["classes"] / "results.jsonl").is_file():
        visualize("embedded_resnet", [f"class:{i}" for i in range(10)], out=runs["classes"], **quick)
    if not (runs["hidden"] / "results.jsonl").is_file():
        units = [f"{HIDDEN_LAYER}:{i}" for i in range(4)]
        visualize("embedded_resnet", units, out=runs["hidden"], **quick)


def _settings(asked: argparse.Namespace, units: str) -> dict[str, Any]:
    return {
        "methods": METHODS,
        "steps": asked.steps,
        "targets": asked.targets,
        "judges": ["embedded_judge"],
        "tuning": {"steps": asked.tuning_steps, "lr": 1e-3},
        "snapshots": {"steps": asked.snapshot_steps, "seeds": 2},
        **({"layer": "layer4.0.conv1"} if units == "hidden" else {}),
    }


def _processor_time() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a CSV with numbers converted; none where there is no file."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [{key: _number(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    command = "python benchmarks/attacks.py " + " ".join(sys.argv[1:])
    head = ["attack", "units", "method", "n", *SHOWN.values()]
    lines = ["# Attack x method", "", f"Made by `{command.strip()}`.", "", "| " + " | ".join(head) + " |"]
    lines.append("|" + "---|" * len(head))
    for row in rows:
        cells = [str(row[key]) for key in ("attack", "units", "method")] + [f"{float(row['n']):g}"]
        cells += [_cell(row.get(key, "")) for key in SHOWN]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "What each attack reached in its own terms:", ""]
    for attack, units in dict.fromkeys((row["attack"], row["units"]) for row in rows):
        row = next(row for row in rows if (row["attack"], row["units"]) == (attack, units))
        known = {"attack", "units", "method", "n", "seconds", *SHOWN}
        facts = [f"{key.replace('_', ' ')} {_cell(value)}" for key, value in row.items() if _is_fact(key, known)]
        lines.append(f"- {attack}, {units}: {'; '.join(facts)} ({float(row['seconds']):.0f} s of processor time)")
    return "\n".join(lines) + "\n"


def _is_fact(key: str, known: set[str]) -> bool:
    return key not in known and not key.endswith(("]", "_activation"))


def _cell(value: float | str) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
