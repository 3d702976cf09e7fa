"""Attacks on VITAL itself, and the circuit breaker, on real networks: a table of attack x method with success rates.

    VITAL_TEST_DATA=... python benchmarks/adaptive_attacks.py --networks cifar mobilenet

Each attack is written when it is finished; a second call makes the missing ones only. The tables go to
benchmarks/results/adaptive_attacks.csv and adaptive_attacks.md, the pictures beside the runs. The definition of success
was fixed in advance (vital_exp/attacks/success.py).
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attacks import read_rows
from class_pictures import specs

from vital_exp import audit
from vital_exp.whole_files import whole_file, write_table

RESULTS = Path(__file__).parent / "results"
HEADING = "## Attack x method"
MOBILENET_SIDE = 96  # px: a fifth of what 224 costs
UNITS = 8
# Network, judge, images; the images of a class are split into the attacker's 70 % and the 30 % of which the cost is.
CONTESTS: Mapping[str, tuple[str, str, str]] = {
    "cifar": ("resnet20", "resnet56", "cifar10/test_jpeg"),
    "mobilenet": ("mobilenet", "squeezenet", "imagenette"),
}
HIDDEN_LAYER = {"cifar": "layer3", "mobilenet": "blocks.4"}
METHODS = ("vital_fourier", "fourier")
# What a loaded CPU core does in minutes.
TUNING = {"steps": 60, "lr": 1e-3, "batch_size": 6, "preservation": 0.8}
BREAKER = {"steps": 40, "lr": 1e-3, "batch_size": 8, "preservation": 0.9}
FOUR = {"methods": ("vital",), "tuning": BREAKER, "count": 30, "targets": 4, "steps": 60}
# Transforms that do not wrap around: what a reader of the borders cannot see.
ELSE = {"methods": ("vital_fourier",), "overrides": ["transforms=lucid"]}
ATTACKS: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    ("cifar", "diversion", "classes", {}),
    ("mobilenet", "diversion", "classes", {"steps": 80}),
    ("cifar", "diversion", "classes", ELSE),
    ("cifar", "circuit_breaker", "hidden", FOUR),
    ("cifar", "slingshot", "classes", {"aim": "alignment", "tuning": TUNING}),
    ("cifar", "diversion", "hidden", {"count": 50}),
    ("mobilenet", "slingshot", "classes", {"aim": "alignment", "tuning": TUNING, "steps": 80}),
)
FACTS = (
    *("natural_images_told_natural", "pictures_told", "slope_cosine_before", "slope_cosine_after"),
    *("attribution_share_before", "attribution_share_after", "circuit_kept_attribution", "circuit_kept_relevance"),
    *("effect_before", "effect_after", "unit_correlation"),
)
SHOWN = {
    "nearer_decoy": "nearer the decoy",
    "success": "success",
    "success_low": "from",
    "success_high": "to (95 %)",
    "decoy_correspondence_before": "decoy correspondence before",
    "decoy_correspondence": "after",
    "honest_distance": "distance from the honest picture",
    "accuracy_before": "accuracy before",
    "accuracy_after": "after ",
    "seconds": "seconds",
}


def main() -> None:
    asked = _arguments()
    done = read_rows(RESULTS / "adaptive_attacks.csv")
    for network, attack, units, keys in ATTACKS:
        name = _name(attack, units, keys)
        if (network, name) in {(row["network"], row["what"]) for row in done} or network not in asked.networks:
            continue
        run, start = _run(asked, network, units), time.process_time()
        settings = {"methods": METHODS, **_common(asked, network), **keys}
        found = audit(attack, run, asked.out / network / re.sub(r"\W+", "_", name), **settings)
        seconds = time.process_time() - start
        facts = {key: value for key, value in found.facts.items() if isinstance(value, float)}
        table = [{_column(key): value for key, value in line.items() if key != "attack"} for line in found.table]
        done += [{"network": network, "what": name, **line, **facts, "seconds": seconds} for line in table]
        write_table(RESULTS / "adaptive_attacks.csv", done)
        _write_page(RESULTS / "adaptive_attacks.md", done)
        print(network, found, sep="\n", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("VITAL_TEST_DATA", ".")))
    parser.add_argument("--networks", nargs="+", choices=sorted(CONTESTS), default=sorted(CONTESTS))
    parser.add_argument("--out", type=Path, default=Path("outputs/adaptive"), help="runs, pages and attacked networks")
    parser.add_argument("--steps", type=int, default=100, help="of the pictures")
    parser.add_argument("--count", type=int, default=60, help="natural images of each class")
    return parser.parse_args()


def _column(key: str) -> str:
    """A column with the name "judge" in place of the judge's own, which is long or a path."""
    return key if "[" not in key or key.endswith("[honest]") else key.split("[")[0] + "[judge]"


def _name(attack: str, units: str, keys: Mapping[str, Any]) -> str:
    at, under = (f" at {keys['aim']}" if "aim" in keys else ""), (", transforms=lucid" if "overrides" in keys else "")
    return f"{attack}{at} {units}{under}"


def _common(asked: argparse.Namespace, network: str) -> dict[str, Any]:
    return {
        "count": asked.count,
        "steps": asked.steps,
        "targets": UNITS,
        "judges": [_spec(asked, CONTESTS[network][1], network)],
    }


def _spec(asked: argparse.Namespace, name: str, contest: str) -> dict[str, Any]:
    return specs(asked.data)[name] | ({"size": MOBILENET_SIDE} if contest == "mobilenet" else {})


def _run(asked: argparse.Namespace, network: str, units: str) -> Path:
    """Make a run that gives the units and their natural images; the audit does not compare its pictures."""
    folder: Path = asked.out / network / f"run_{units}"
    if not (folder / "results.jsonl").is_file():
        own, _, images = CONTESTS[network]
        spec = _spec(asked, own, network)
        arguments = [f"+model.arguments.{key}={value}" for key, value in spec.pop("arguments", {}).items()]
        model = [f"model={spec.pop('source')}", *arguments, *(f"model.{key}={_text(spec[key])}" for key in spec)]
        hidden = ["target=channel", f"target.layer={HIDDEN_LAYER[network]}", f"target.index={_spread(network)}"]
        target = hidden if units == "hidden" else ["target.index=all"]
        brief = ["method=fourier", "steps=4", "evaluation=none", "logger=none", "progress=false"]
        given = [*model, *target, *brief, f"references.root={asked.data / 'data' / images}", f"hydra.run.dir={folder}"]
        subprocess.run([sys.executable, "-m", "vital_exp.commands.visualize", *given], check=True)
    return folder


def _spread(network: str) -> str:
    """Evenly spread channels of the hidden layer."""
    channels = {"cifar": 64, "mobilenet": 96}[network]
    return "[" + ",".join(str(place) for place in range(channels // 16, channels, channels // UNITS)) + "]"


def _text(value: Any) -> str:
    return "[" + ",".join(map(str, value)) + "]" if isinstance(value, list) else str(value)


def _write_page(place: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Replace the table at the end of the page; the text above it stays."""
    words = place.read_text(encoding="utf-8").split(HEADING)[0] if place.is_file() else "# Attacks on VITAL itself\n\n"
    with whole_file(place) as file:
        file.write(f"{words}{HEADING}\n\n{_markdown(rows)}")


def _markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    head = ["network", "attack", "method", "n", *SHOWN.values()]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        cells = [str(row[key]) for key in ("network", "what", "method")] + [f"{float(row['n']):g}"]
        cells += [_cell(row.get(key, "")) for key in SHOWN]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", "What each attack reached in its own terms:", "", *_facts(rows)]) + "\n"


def _facts(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """How far each attack reached its own aim."""
    lines = []
    for network, what in dict.fromkeys((row["network"], row["what"]) for row in rows):
        row = next(row for row in rows if (row["network"], row["what"]) == (network, what))
        found = [f"{key.replace('_', ' ')} {float(row[key]):.2f}" for key in FACTS if key in row]
        lines.append(f"- {network}, {what}: {'; '.join(found)}")
    return lines


def _cell(value: float | str) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if value > 10 else f"{value:.2f}"  # seconds, else shares


if __name__ == "__main__":
    main()
