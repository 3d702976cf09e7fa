"""Attacks on VITAL itself, and the circuit breaker, on real networks: a table of attack x method with success rates.

    VITAL_TEST_DATA=... python benchmarks/adaptive_attacks.py --networks cifar mobilenet

Each attack is written when it is finished, and an attack that fine-tunes a network for each unit is kept unit by unit;
a second call makes what is missing. ``--minutes`` ends the call after the unit in which the time runs out. The tables
go to benchmarks/results/adaptive_attacks.csv and adaptive_attacks.md, the pictures beside the runs. The definition of
success was fixed in advance (vital_exp/attacks/success.py).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attacks import read_rows
from class_pictures import specs

from vital_exp import audit
from vital_exp.attacks.audit import Audit
from vital_exp.attacks.comparison import honest_pictures, summary
from vital_exp.attacks.recorded import RecordedRun
from vital_exp.attacks.resemblance import perceptual_distance
from vital_exp.evaluation.correspondence import correspondence, unit_vectors
from vital_exp.evaluation.intervals import bootstrap_mean
from vital_exp.evaluation.reading import NetworkReader
from vital_exp.images.output import quantised
from vital_exp.models.named import named_network
from vital_exp.targets.words import in_words
from vital_exp.whole_files import whole_file, write_table

RESULTS = Path(__file__).parent / "results"
HEADING = "## Attack x method"
MOBILENET_SIDE = 96  # px: a fifth of what 224 costs
UNITS = 8
# Network, judge, images (None: drawn). The images of a class are split into the attacker's 70 %, and the 30 % on which
# the cost is measured.
CONTESTS: Mapping[str, tuple[str, str, str | None]] = {
    "cifar": ("resnet20", "resnet56", "cifar10/test_jpeg"),
    "mobilenet": ("mobilenet", "squeezenet", "imagenette"),
    "embedded": ("embedded_resnet", "embedded_judge", None),
}
IMAGENETTE = (0, 217, 482, 491, 497, 566, 569, 571, 574, 701)  # the classes of the images
HIDDEN_LAYER = {"cifar": "layer3", "mobilenet": "blocks.4", "embedded": "layer3"}
CHANNELS = {"cifar": 64, "mobilenet": 96, "embedded": 96}
METHODS = ("vital_fourier", "fourier")
# What a loaded CPU core does in minutes.
TUNING = {"steps": 60, "lr": 1e-3, "batch_size": 6, "preservation": 0.8}
LONGER = {**TUNING, "steps": 240}  # an attacker with four times the steps
PULSE = {"steps": 100, "lr": 1e-3, "batch_size": 16, "preservation": 0.8}
BREAKER = {"steps": 60, "lr": 1e-3, "batch_size": 8, "preservation": 0.9}
CIRCUITS = {"methods": ("vital", "vital_fourier"), "tuning": BREAKER, "count": 30}
# Transforms that do not wrap around: what a reader of the borders cannot see.
ELSE = {"methods": ("vital_fourier",), "overrides": ["transforms=lucid"]}
PRIOR = {"overrides": ["image=prior", "image.weights=embedded"]}
SPADE = {"overrides": ["model.sparsify=spade"]}
STEERED = {"overrides": ["steer=layer1:3:+2sd"]}
THEME = "objective.facet.theme={data}/cifar10/test_jpeg/ship"  # no ship is attacked
FACET = {"methods": ("fourier",), "overrides": ["objective=[activation,facet]", THEME]}
ATTACKS: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    ("cifar", "diversion", "classes", {}),
    ("mobilenet", "diversion", "classes", {"steps": 80}),
    ("cifar", "diversion", "classes", ELSE),
    ("cifar", "diversion", "hidden", {"count": 50}),
    ("cifar", "proxpulse", "hidden", {"count": 50, "tuning": PULSE}),
    ("cifar", "slingshot", "classes", {"aim": "alignment", "tuning": TUNING}),
    ("cifar", "circuit_breaker", "hidden", CIRCUITS),
    ("cifar", "slingshot", "hidden", {"aim": "alignment", "tuning": TUNING, "count": 50}),
    ("mobilenet", "diversion", "hidden", {"count": 50, "steps": 80}),
    ("mobilenet", "proxpulse", "hidden", {"count": 50, "tuning": PULSE, "steps": 80}),
    ("embedded", "diversion", "classes", {}),
    ("embedded", "diversion", "classes", PRIOR),
    ("cifar", "diversion", "hidden", {"count": 50, **SPADE}),
    ("mobilenet", "slingshot", "classes", {"aim": "alignment", "tuning": TUNING, "steps": 80}),
    ("mobilenet", "circuit_breaker", "hidden", {**CIRCUITS, "steps": 80}),
    ("mobilenet", "slingshot", "hidden", {"aim": "alignment", "tuning": TUNING, "count": 50, "steps": 80}),
    ("cifar", "slingshot", "hidden", {"aim": "alignment", "tuning": LONGER, "count": 50}),
    ("cifar", "diversion", "classes", STEERED),
    ("cifar", "diversion", "classes", FACET),
)
TOGETHER = ("diversion",)  # one detector of all units; the other attacks make a network for each unit
OTHERS = 10  # natural images of each class, as the images of other units
ENDS = ("low", "high")
FACTS = (
    *("natural_images_told_natural", "pictures_told", "slope_cosine_before", "slope_cosine_after"),
    *("attribution_share_before", "attribution_share_after", "circuit_kept_attribution", "circuit_kept_relevance"),
    *("effect_before", "effect_after", "unit_correlation"),
    *("decoy_to_top_before", "decoy_to_top_after", "top_images_kept"),
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
HIDDEN_WORDS = (
    "Hidden units: do the pictures still show the unit? Correspondence is the share of pairs of a reference of the "
    "unit and a natural image of any class in which the picture is more similar to the reference, to the judge "
    "(chance: 0.5). With 95 % bootstrap intervals over units."
)
FACT_WORDS = "What each attack reached in its own terms, with 95 % bootstrap intervals over units:"
HIDDEN = {
    "correspondence_honest": "correspondence with the unit's images before",
    "correspondence_attacked": "after",
    "change": "change",
    "honest_distance": "distance from the honest picture",
    "other_seed_distance": "of two honest pictures, other seed",
}


def main() -> None:
    asked = _arguments()
    end = time.monotonic() + 60 * asked.minutes
    done = read_rows(RESULTS / "adaptive_attacks.csv")
    for network, attack, units, keys in ATTACKS:
        name = _name(attack, units, keys)
        units_of = _units(network, units)
        parts = [units_of] if attack in TOGETHER else [[unit] for unit in units_of]
        if network not in asked.networks or _complete(done, network, name):
            continue
        rows: list[dict[str, Any]] = []
        for part in parts:
            place = asked.out / network / re.sub(r"\W+", "_", name) / "-".join(map(str, part))
            if not (place / "measured.csv").is_file():
                if time.monotonic() > end:
                    break
                _measure(asked, (network, attack, units), keys, part, place)
            rows += read_rows(place / "measured.csv")
        if not rows:
            return
        done = [row for row in done if (row["network"], row["what"]) != (network, name)]
        done += [{"network": network, "what": name, **line} for line in _lines(rows)]
        write_table(RESULTS / "adaptive_attacks.csv", done)
        _write_page(RESULTS / "adaptive_attacks.md", done)


def _complete(done: Sequence[Mapping[str, Any]], network: str, name: str) -> bool:
    """Whether the table has an attack with all of its units."""
    own = [row for row in done if (row["network"], row["what"]) == (network, name)]
    return any(row["failed"] == 1 or round(row["n"] / (1 - row["failed"])) >= UNITS for row in own)


def _measure(
    asked: argparse.Namespace,
    what: tuple[str, str, str],
    keys: Mapping[str, Any],
    units: Sequence[int],
    place: Path,
) -> None:
    """Attack units of a network, compare the pictures, and keep a row of each unit and method."""
    network, attack, kind = what
    run, start = _run(asked, network, kind, units), time.process_time()
    settings = {"methods": METHODS, **_common(asked, network), "targets": len(units), **keys}
    settings["overrides"] = [one.format(data=asked.data / "data") for one in keys.get("overrides", [])]
    found = audit(attack, run, place, **settings)
    rows = [{_column(key): value for key, value in row.items()} for row in found.rows]
    seconds = (time.process_time() - start) / len(units)
    if kind == "hidden":
        _read_units(asked, network, run, settings, found, rows)
    write_table(place / "measured.csv", [row | {"seconds": seconds} for row in rows])
    print(network, found, sep="\n", flush=True)


def _read_units(
    asked: argparse.Namespace,
    network: str,
    folder: Path,
    settings: Mapping[str, Any],
    found: Audit,
    rows: Sequence[dict[str, Any]],
) -> None:
    """Add to each row whether the pictures show the unit, to the judge, and how far another seed's picture is."""
    run, judge = RecordedRun.of(folder, settings["count"]), named_network(_spec(asked, CONTESTS[network][1], network))
    reader = NetworkReader(judge)
    others = unit_vectors(reader(run.natural(OTHERS).images).features)
    shown = {panel.name: dict(panel.pictures) for panel in found.panels}
    for row in rows:
        (target,) = (one for one in run.targets if one.name == row["target"])
        own = unit_vectors(reader(run.own_images(target, settings["count"])).features)
        pictures = shown[row["label"] or in_words(row["target"])]
        for when in ("honest", "attacked"):
            picture = unit_vectors(reader(pictures[f"{row['method']}, {when}"][None]).features)[0]
            row[f"correspondence_{when}"] = correspondence(picture, own, others)
        if found.check == "circuit_breaker":
            views = {row["method"]: ("views=2",)} if row["method"] == "fourier" else {row["method"]: ()}
            again = honest_pictures(
                run.network, [target], views, run.references, settings["count"], steps=settings["steps"], seed=1
            )
            pair = [pictures[f"{row['method']}, honest"][None], quantised(again[row["method"]][target][None])]
            row["other_seed_distance"] = float(perceptual_distance(judge, *pair))


def _lines(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one row per method: the means over units, and the intervals of facts and of correspondence."""
    lines = []
    for line in summary(rows):
        own = [row for row in rows if row["method"] == line["method"] and not row["failed"]]
        for fact in (*FACTS, "other_seed_distance", "honest_distance"):
            values = [float(row[fact]) for row in own if fact in row]
            if len(set(values)) > 1:  # a detector of all units has one value
                line |= {f"{fact}_{end}": value for end, value in bootstrap_mean(values).items() if end in ENDS}
        if own and "correspondence_honest" in own[0]:
            changes = [row["correspondence_attacked"] - row["correspondence_honest"] for row in own]
            change = bootstrap_mean(changes)
            line |= {"change": change["value"], "change_low": change["low"], "change_high": change["high"]}
        line["seconds"] = sum(float(row["seconds"]) for row in own)
        lines.append({key: value for key, value in line.items() if key != "attack"})
    return lines


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("VITAL_TEST_DATA", ".")))
    parser.add_argument("--networks", nargs="+", choices=sorted(CONTESTS), default=sorted(CONTESTS))
    parser.add_argument("--out", type=Path, default=Path("outputs/adaptive"), help="runs, pages and attacked networks")
    parser.add_argument("--steps", type=int, default=100, help="of the pictures")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="after which no further unit is begun")
    parser.add_argument("--count", type=int, default=60, help="natural images of each class")
    return parser.parse_args()


def _column(key: str) -> str:
    """A column with the name "judge" in place of the judge's own, which is long or a path."""
    return key if "[" not in key or key.endswith("[honest]") else key.split("[")[0] + "[judge]"


def _name(attack: str, units: str, keys: Mapping[str, Any]) -> str:
    at = f" at {keys['aim']}" if "aim" in keys else ""
    longer = [f"{LONGER['steps']} steps"] if keys.get("tuning") == LONGER else []
    return ", ".join([f"{attack}{at} {units}", *longer, *keys.get("overrides", [])])


def _common(asked: argparse.Namespace, network: str) -> dict[str, Any]:
    return {
        "count": asked.count,
        "steps": asked.steps,
        "targets": UNITS,
        "judges": [_spec(asked, CONTESTS[network][1], network)],
    }


def _spec(asked: argparse.Namespace, name: str, contest: str) -> dict[str, Any]:
    if contest == "embedded":
        return {"source": "embedded", "name": name}
    return specs(asked.data)[name] | ({"size": MOBILENET_SIDE} if contest == "mobilenet" else {})


def _run(asked: argparse.Namespace, network: str, kind: str, units: Sequence[int]) -> Path:
    """Return a run that gives the units and their natural images; its pictures are not used.

    One run is made of all units of a kind. A part of the units has a copy of it: of hidden units the copy lists those
    alone, of classes it lists those first, because an attack's cost is measured on the images of all classes.
    """
    whole: Path = asked.out / network / f"run_{kind}"
    if not (whole / "results.jsonl").is_file():
        own, _, images = CONTESTS[network]
        root = [f"references.root={asked.data / 'data' / images}"] if images else ["references.source=embedded"]
        spec = _spec(asked, own, network)
        arguments = [f"+model.arguments.{key}={value}" for key, value in spec.pop("arguments", {}).items()]
        named = f"model={spec.pop('source') if images else own}"
        model = [named, *arguments, *(f"model.{key}={_text(spec[key])}" for key in spec)]
        hidden = ["target=channel", f"target.layer={HIDDEN_LAYER[network]}", "references.facets=1"]
        every = _text(_units(network, kind)) if kind == "hidden" else "all"
        brief = ["method=fourier", "steps=4", "evaluation=none", "logger=none", "progress=false"]
        target = [f"target.index={every}", *(hidden if kind == "hidden" else ())]
        given = [*model, *target, *brief, *root, f"hydra.run.dir={whole}"]
        subprocess.run([sys.executable, "-m", "vital_exp.commands.visualize", *given], check=True)
    if len(units) > 1:
        return whole
    part = whole.with_name(f"{whole.name}_{'_'.join(map(str, units))}")
    if not (part / "results.jsonl").is_file():
        lines = (whole / "results.jsonl").read_text().splitlines()
        own_lines, others = ([line for line in lines if (json.loads(line)["index"] in units) is mine]
                             for mine in (True, False))  # fmt: skip
        shutil.copytree(whole, part, dirs_exist_ok=True)
        (part / "results.jsonl").write_text("\n".join(own_lines + (others if kind == "classes" else [])) + "\n")
    return part


def _units(network: str, kind: str) -> list[int]:
    """Return the first eight classes, or evenly spread channels of the hidden layer."""
    if kind == "classes":
        return list((IMAGENETTE if network == "mobilenet" else range(10))[:UNITS])
    channels = CHANNELS[network]
    return list(range(channels // 16, channels, channels // UNITS))


def _text(value: Any) -> str:
    return "[" + ",".join(map(str, value)) + "]" if isinstance(value, list) else str(value)


def _write_page(place: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Replace the table at the end of the page; the text above it stays."""
    words = place.read_text(encoding="utf-8").split(HEADING)[0] if place.is_file() else "# Attacks on VITAL itself\n\n"
    with whole_file(place) as file:
        file.write(f"{words}{HEADING}\n\n{_markdown(rows)}")


def _markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    hidden = [row for row in rows if "correspondence_honest" in row]
    parts = [_table(rows, SHOWN), HIDDEN_WORDS, _table(hidden, HIDDEN), FACT_WORDS, "\n".join(_facts(rows))]
    return "\n\n".join(parts) + "\n"


def _table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    head = ["network", "attack", "method", "n", *columns.values()]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        cells = [str(row[key]) for key in ("network", "what", "method")] + [f"{float(row['n']):g}"]
        lines.append("| " + " | ".join([*cells, *(_cell(row, key) for key in columns)]) + " |")
    return "\n".join(lines)


def _facts(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """How far each attack reached its own aim."""
    lines = []
    for network, what in dict.fromkeys((row["network"], row["what"]) for row in rows):
        row = next(row for row in rows if (row["network"], row["what"]) == (network, what))
        found = [f"{key.replace('_', ' ')} {_cell(row, key)}" for key in FACTS if key in row]
        lines.append(f"- {network}, {what}: {'; '.join(found)}")
    return lines


def _cell(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key, "")
    if not isinstance(value, float):
        return str(value)
    text = f"{value:.0f}" if value > 10 else f"{value:.2f}"  # seconds, else shares
    ends = [row.get(f"{key}_{end}") for end in ENDS]
    return text if key == "success" or None in ends else f"{text} ({ends[0]:.2f} to {ends[1]:.2f})"


if __name__ == "__main__":
    main()
