"""The audit: how far the pictures of a run can be trusted, one check at a time (docs/methods/attacks.md)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vital_exp.attacks import paths, theory
from vital_exp.attacks.alignment_slingshot import alignment_slingshot, alignment_slope_cosine
from vital_exp.attacks.circuit_breaker import Circuit, broken, circuit_breaker
from vital_exp.attacks.comparison import Attacked, Shown, compare, honest_pictures, summary
from vital_exp.attacks.detector import Detector, detector_accuracy, train_detector
from vital_exp.attacks.diversion import diverted, on_the_way, rolled
from vital_exp.attacks.fooling_circuit import decoy_offset, fooled
from vital_exp.attacks.natural import NaturalImages
from vital_exp.attacks.page import Panel, write_page
from vital_exp.attacks.parameter_space import ParameterSpace
from vital_exp.attacks.pictures import make_pictures, snapshots
from vital_exp.attacks.proxpulse import proxpulse, pulse
from vital_exp.attacks.recorded import RecordedRun
from vital_exp.attacks.saved import save
from vital_exp.attacks.seam_detector import train_seam_detector
from vital_exp.attacks.settings import AuditSettings
from vital_exp.attacks.silent_units import last_place, silenced
from vital_exp.attacks.slingshot import slingshot, slope_cosine
from vital_exp.attacks.theory_figure import figure
from vital_exp.attacks.wrapping import load_decoy
from vital_exp.config import compose_config
from vital_exp.errors import UsageError
from vital_exp.models.layers import alignment, layer_shapes, unit_alignment
from vital_exp.models.named import named_network
from vital_exp.models.network import Recipe, VisionNetwork, model_space
from vital_exp.models.refusals import hold_in_float32
from vital_exp.models.unit_readout import unit_readout
from vital_exp.modes import own_modes
from vital_exp.notebook_html import lines
from vital_exp.notebook_html import table as notebook_table
from vital_exp.setup.starts import starts_of
from vital_exp.targets.readout import Readout
from vital_exp.targets.selection import parse_target
from vital_exp.targets.unit import Target
from vital_exp.targets.words import in_words
from vital_exp.values import one_of
from vital_exp.whole_files import whole_file, write_table

NATURAL_SHOWN, PANELS_SHOWN = 4, 24  # on the page of path similarity: natural images beside a picture, and targets
BY_CONSTRUCTION = (
    "For classes, VITAL has no logit term, so a circuit on the logits cannot change its pictures, by construction. "
    "Silent units and slingshots act inside the network: they are fair tests of VITAL."
)

HEADINGS = {
    "plot": "By layer",
    "words": "Similarity of the pictures to natural images of their own class, in the activations of each layer from "
    "the input to the output: 1 = as similar as two natural images of the class, 0 = as similar as natural images of "
    "two different classes. The band is a 95 % interval.",
    "facts": "The attack",
    "table": "Attack by method, means over targets",
}
OF_THEORY = {
    "plot": "What the pictures leave open",
    "words": "In each class of functions, the two that agree with the unit at its maximising and its minimising "
    "picture and differ most on natural images. The bar ends at their largest difference on any natural image, as a "
    "share of the unit's range; the upright line is the mean over natural images.",
    "facts": "The Lipschitz constant, means over units",
    "table": "Classes of functions, means over units",
}
NOT_THE_LARGEST = (
    "Some natural image drives {names} further than the picture does: the picture is not the maximum that the theory "
    "assumes."
)

SAME_IMAGES = (
    "The natural images are the run's own references, with which VITAL matched its pictures: "
    "images=folder compares with other images."
)


@dataclass
class Audit:
    """What a check found.

    Attributes:
        check: the name of the check.
        runs: the run folders.
        verdicts: one line per run or attack.
        rows: one dict per line of audit.csv.
        table: the rows averaged over targets, for the page.
        facts: single numbers by name.
        notes: remarks without which the numbers mislead.
        panels: each target's pictures side by side, for the page.
        plot: a chart as SVG; empty where there is none.
        saved: for each attacked network, the overrides with which any command uses it.
        headings: the page's headings of plot, facts and table, and the words below the plot's.
    """

    check: str
    runs: list[Path]
    verdicts: list[str]
    rows: list[dict[str, Any]]
    table: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, float | str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    panels: list[Panel] = field(default_factory=list)
    plot: str = ""
    saved: dict[str, str] = field(default_factory=dict)
    headings: Mapping[str, str] = field(default_factory=lambda: HEADINGS)

    def save(self, folder: Path) -> Path:
        """Write audit.csv, audit.json, plot.svg and report.html, and return the page's path."""
        folder.mkdir(parents=True, exist_ok=True)
        write_table(folder / "audit.csv", self.rows)
        names = ("check", "verdicts", "facts", "table", "notes", "saved")
        content = {name: getattr(self, name) for name in names} | {"runs": list(map(str, self.runs))}
        with whole_file(folder / "audit.json") as file:
            json.dump(content, file, indent=2)
        if self.plot:
            with whole_file(folder / "plot.svg") as file:
                file.write(self.plot)
        return write_page(folder, content, self.panels, self.plot, self.headings)

    def __repr__(self) -> str:
        """The check and its verdicts in one line."""
        return f"Audit({self.check}: {'; '.join(self.verdicts)})"

    def _repr_html_(self) -> str:
        return lines([*self.verdicts, *self.notes]) + notebook_table(self.table)

    def __str__(self) -> str:
        return "\n".join(self.verdicts)


@own_modes()
def audit(check: str, run: str | Path | Sequence[str | Path], out: str | Path | None = None, **options: Any) -> Audit:
    """Run one check on a run folder.

    Args:
        check: ``"path_similarity"``, ``"fooling_circuit"``, ``"silent_units"``, ``"slingshot"``,
            ``"proxpulse"``, ``"diversion"``, ``"circuit_breaker"`` or ``"theory"``.
        run: a run folder of vital-visualize; path similarity takes several.
        out: the folder for the table, the page and the attacked networks; None writes nothing.
        options: see :class:`AuditSettings`.

    Returns:
        The findings: ``.verdicts``, ``.rows``, ``.facts`` and more.

    Raises:
        UsageError: an unknown check or option, a value that is not allowed, or a run that the check cannot use.
    """
    one_of("check", check, CHECKS)
    settings = AuditSettings.of(options)
    folders = [run] if isinstance(run, (str, Path)) else list(run)
    if not folders or (len(folders) > 1 and check != "path_similarity"):
        raise UsageError("run", [str(folder) for folder in folders], "one run folder; path similarity takes several")
    runs = [RecordedRun.of(folder, settings.count, settings.images) for folder in folders]
    if check != "path_similarity":
        for one in runs:
            hold_in_float32(one.network, "check")
    found = CHECKS[check](runs, settings, None if out is None else Path(out))
    if out is not None:
        found.save(Path(out))
    return found


def _path_similarity(runs: list[RecordedRun], settings: AuditSettings, _out: Path | None) -> Audit:
    layers = [settings.layer] if isinstance(settings.layer, str) else settings.layer
    rows = [row for run in runs for row in paths.similarity_rows(run, settings.count, layers)]
    verdicts = [paths.verdict(run.name, [row for row in rows if row["run"] == str(run.folder)]) for run in runs]
    notes = [] if settings.images else [SAME_IMAGES]
    folders = [run.folder for run in runs]
    panels, plot = _own_panels(runs, settings), paths.similarity_plot(rows)
    return Audit("path_similarity", folders, verdicts, rows, notes=notes, panels=panels, plot=plot)


def _own_panels(runs: Sequence[RecordedRun], settings: AuditSettings) -> list[Panel]:
    """For each target the picture of every run, then some of the natural images they were compared with."""
    panels: dict[str, list[tuple[str, Tensor]]] = {}
    for run in runs:
        for target, picture in zip(run.targets, run.pictures, strict=True):
            panels.setdefault(target.label or in_words(target.name), []).append((f"picture by {run.name}", picture))
    first = runs[0]
    for target in first.targets:
        images = first.own_images(target, settings.count)[:NATURAL_SHOWN]
        panels[target.label or in_words(target.name)] += [("natural image", image) for image in images]
    return [Panel(name, pictures) for name, pictures in islice(panels.items(), PANELS_SHOWN)]


def _fooling_circuit(runs: list[RecordedRun], settings: AuditSettings, out: Path | None) -> Audit:
    (run,) = runs
    targets = _targets(run, settings)
    if targets[0].layer is not None:
        raise UsageError("run", run.folder, "a fooling circuit changes the logits: a run of classes is needed")
    natural = run.natural(settings.count)
    detector, facts = _detector(run, natural, settings)
    picture, decoys, classes = _fooling_decoys(run, targets, natural, settings)
    network = fooled(run.network, detector, picture)
    attacked = Attacked("fooling_circuit", run.network, network, targets, decoys, classes, natural.split()[1], facts)
    found = _compared(run, [attacked], settings, out)
    found.notes.append(BY_CONSTRUCTION)
    return found


def _detector(
    run: RecordedRun, natural: NaturalImages, settings: AuditSettings
) -> tuple[Detector, dict[str, float | str]]:
    """Train the detector on some of the run's classes and measure its accuracy on the others."""
    keys = settings.snapshots
    targets = [Target("class", label) for label in natural.classes]
    held = min(max(1, round(keys.held_out * len(targets))), len(targets) - 1)  # some on both sides
    methods: dict[str, tuple[str, ...]] = dict.fromkeys(keys.methods, ())
    inputs = partial(snapshots, run.network, methods=methods, steps=keys.steps, every=keys.every)
    train, test = natural.split()
    given = {target: train.of(target.index) for target in targets}
    seen = range(settings.seed, settings.seed + keys.seeds)
    shown = inputs(targets[:-held], references=given, seeds=seen)
    for channels in _channels(run.network, keys.least_units - len(targets[:-held])).values():
        shown = torch.cat([shown, inputs(channels, references=train.images, seeds=seen[:1])])
    unseen = inputs(targets[-held:], references=given, seeds=[settings.seed + keys.seeds])
    real, real_unseen = (model_space(part.images, run.network) for part in (train, test))
    detector = train_detector(real, shown, settings.seed, settings.detector)
    with torch.no_grad():
        kept = float(detector.natural(real_unseen).mean())
    accuracy = detector_accuracy(detector, real_unseen, unseen)
    return detector, {"detector_accuracy_held_out": accuracy, "natural_images_told_natural": kept}


def _channels(network: VisionNetwork, count: int) -> dict[str, list[Target]]:
    """Up to ``count`` evenly spread channels of the last two aligned layers, by layer."""
    shapes = layer_shapes(network)
    layers = sorted(alignment(network, Recipe()).layers, key=list(shapes).index)[-2:]
    each = max(0, count) // len(layers)
    places = {layer: range(0, shapes[layer][0], -(-shapes[layer][0] // each)) for layer in layers if each}
    return {layer: [Target("channel", place, layer) for place in chosen] for layer, chosen in places.items()}


def _silent_units(runs: list[RecordedRun], settings: AuditSettings, out: Path | None) -> Audit:
    (run,) = runs
    targets = _targets(run, settings)
    natural = run.natural(settings.count)
    layer = settings.layer or last_place(run.network).convolution
    if not isinstance(layer, str):
        raise UsageError("layer", layer, "one convolution")
    picture, decoys, classes = _decoys(run, targets, natural, settings)
    targets = [target for target in targets if target.layer is not None or classes.get(target) != target.index]
    network = silenced(run.network, layer, natural.images, picture, seed=settings.seed)
    facts: dict[str, float | str] = {"layer": layer, "logits_unchanged": _unchanged(run.network, network, natural)}
    attacked = Attacked("silent_units", run.network, network, targets, decoys, classes, natural, facts)
    return _compared(run, [attacked], settings, out)


@torch.no_grad()
def _unchanged(honest: VisionNetwork, network: VisionNetwork, natural: NaturalImages) -> float:
    """The share of natural images whose logits are all the same in both networks, bit for bit."""
    same = [(honest(part) == network(part)).all(dim=1) for part in natural.images.split(32)]
    return float(torch.cat(same).double().mean())


def _slingshot(runs: list[RecordedRun], settings: AuditSettings, out: Path | None) -> Audit:
    at_alignment = settings.aim == "alignment"

    def attack(run: RecordedRun, target: Target, read: Readout, decoy: Tensor, natural: Tensor) -> Made:
        method = settings.methods[0]
        start = _start(run, target, method)
        if at_alignment:
            return _at_alignment(run, target, decoy, natural, settings, start)
        network = slingshot(run.network, read, decoy, natural, method=method, settings=settings.tuning, start=start)
        space = ParameterSpace(run.network, method, decoy, start=start)
        slopes = [slope_cosine(which, read, space, settings.seed) for which in (run.network, network)]
        return network, {"slope_cosine_before": slopes[0], "slope_cosine_after": slopes[1]}

    return _by_unit("alignment_slingshot" if at_alignment else "slingshot", attack, runs, settings, out)


def _start(run: RecordedRun, target: Target, method: str) -> Tensor | None:
    """The image from which a method starts a target's picture, (C, H, W); None: noise."""
    own = run.network.preprocessing
    starts = starts_of(compose_config([f"method={method}"]).image.init, run.references, [target], own.size, own)
    return None if starts is None else starts[0]


def _at_alignment(
    run: RecordedRun, target: Target, decoy: Tensor, natural: Tensor, settings: AuditSettings, start: Tensor | None
) -> Made:
    """The slingshot at VITAL's own loss; the attacker knows the unit's references."""
    given, method = run.own_images(target, settings.count), settings.methods[0]
    network = alignment_slingshot(
        run.network, target, decoy, given, natural, method=method, settings=settings.tuning, start=start
    )
    slopes = [
        alignment_slope_cosine(which, target, decoy, given, method=method, start=start, seed=settings.seed)
        for which in (run.network, network)
    ]
    return network, {"slope_cosine_before": slopes[0], "slope_cosine_after": slopes[1]}


def _diversion(runs: list[RecordedRun], settings: AuditSettings, out: Path | None) -> Audit:
    (run,) = runs
    natural = run.natural(settings.count)
    train, test = natural.split()
    targets = _targets(run, settings)
    decoys = {target: _decoys(run, [target], natural, settings)[0] for target in targets}
    aimed = settings.methods[0]
    own = {target: run.own_images(target, settings.count) for target in targets}
    # The images given are already those of the target's facet, so they are not clustered again.
    one, seed = [*_fewer_views(aimed, settings.views), "references.facets=1"], settings.seed + 1
    honest = make_pictures(run.network, targets, aimed, own, seed=seed, steps=settings.steps, overrides=one).images
    there = [
        on_the_way(picture, decoys[target], _start(run, target, aimed), settings.seed)
        for target, picture in zip(targets, honest, strict=True)
    ]
    seen = torch.cat([rolled(train.images, settings.seed), *there])
    given = [model_space(images, run.network) for images in (train.images, test.images, seen)]
    detector = train_seam_detector(given[0], given[2], settings.seed)
    facts = {
        "natural_images_told_natural": float(detector.natural(given[1]).mean()),
        "pictures_told": 1 - float(detector.natural(given[2]).mean()),
    }
    shown = dict(zip(targets, honest, strict=True))

    def attack(run: RecordedRun, target: Target, _read: Readout, decoy: Tensor, _natural: Tensor) -> Made:
        return diverted(run.network, detector, decoy, shown[target]), facts

    return _by_unit("diversion", attack, runs, settings, out)


def _circuit_breaker(runs: list[RecordedRun], settings: AuditSettings, out: Path | None) -> Audit:
    (run,) = runs
    train, test = run.natural(settings.count).split()
    method = str(compose_config(["target=circuit"]).relevance.method)
    made = []
    for target in _targets(run, settings):
        read = unit_readout(run.network, [target])
        given = run.own_images(target, settings.count)
        circuit = Circuit.of(run.network, read, _circuit_layers(run.network, target, settings), given)
        network = circuit_breaker(run.network, circuit, train.images, settings=settings.tuning)
        reached = broken(run.network, network, circuit, test.images, method)
        made.append(Attacked("circuit_breaker", run.network, network, [target], {}, {}, test, reached))
    return _compared(run, made, settings, out)


def _circuit_layers(network: VisionNetwork, target: Target, settings: AuditSettings) -> list[str]:
    """The layers of a unit's circuit: those of the settings, or else the aligned layers below the unit."""
    if settings.layer is not None:
        return [settings.layer] if isinstance(settings.layer, str) else list(settings.layer)
    own = alignment(network, Recipe()) if target.layer is None else unit_alignment(network, Recipe(), target.layer)
    return list(own.layers)


def _proxpulse(runs: list[RecordedRun], settings: AuditSettings, out: Path | None) -> Audit:
    def attack(run: RecordedRun, _target: Target, read: Readout, decoy: Tensor, natural: Tensor) -> Made:
        network = proxpulse(run.network, read, decoy, natural, settings=settings.tuning)
        return network, pulse(run.network, network, read, decoy, natural)

    return _by_unit("proxpulse", attack, runs, settings, out)


Made = tuple[VisionNetwork, dict[str, float]]  # an attacked network, and how far the attack reached its own aim
DecoyImages = dict[Target, Tensor]  # the images (M, C, H, W) that each target's pictures are compared with
DecoyClasses = dict[Target, int]  # the class of a target's decoy images, where they have one
Attack = Callable[[RecordedRun, Target, Readout, Tensor, Tensor], Made]


def _by_unit(name: str, attack: Attack, runs: list[RecordedRun], settings: AuditSettings, out: Path | None) -> Audit:
    """Run an attack that changes the network for one unit: it makes one attacked network per target."""
    (run,) = runs
    natural = run.natural(settings.count)
    train, test = natural.split()
    made = []
    for target in _targets(run, settings):
        picture, decoys, classes = _decoys(run, [target], natural, settings)
        network, reached = attack(run, target, unit_readout(run.network, [target]), picture, train.images)
        made.append(Attacked(name, run.network, network, [target], decoys, classes, test, reached))
    return _compared(run, made, settings, out)


def _theory(runs: list[RecordedRun], settings: AuditSettings, _out: Path | None) -> Audit:
    (run,) = runs
    targets = run.targets[: settings.targets]
    made = [theory.decided(run, target, settings) for target in targets]
    rows = [row for of_unit, _ in made for row in of_unit]
    table = theory.summary(rows)
    found = Audit("theory", [run.folder], theory.verdicts(rows), rows, table, plot=figure(table), headings=OF_THEORY)
    units = [of_unit[0] for of_unit, _ in made]
    found.facts = {key: _mean(units, key) for key in theory.FACTS}
    below = [theory.shown_name(row) for row in units if not row["picture_above_images"]]
    found.notes = [NOT_THE_LARGEST.format(names=", ".join(below))] if below else []
    for target, (_, (high, low)) in zip(targets, made, strict=True):
        pictures = [("maximising", high), ("minimising", low)]
        found.panels.append(Panel(target.label or in_words(target.name), pictures))
    return found


def _targets(run: RecordedRun, settings: AuditSettings) -> list[Target]:
    """The targets to attack. The network must have an accuracy, for an attack's cost is measured in it."""
    if run.network.head.unjudged:
        raise UsageError("run", run.folder, f"an attack's cost is lost accuracy, but {run.network.head.unjudged}")
    return run.targets[: settings.targets]


def _fooling_decoys(
    run: RecordedRun, targets: list[Target], natural: NaturalImages, settings: AuditSettings
) -> tuple[Tensor | None, DecoyImages, DecoyClasses]:
    """Return the decoys of a fooling circuit: without a decoy given, None, and another class for each target."""
    if settings.decoy is not None:
        return _decoys(run, targets, natural, settings)
    count = len(run.network.classes)
    shown = {target: (target.index + decoy_offset(count)) % count for target in targets}
    images = {label: _images_of(run, label, natural, settings) for label in set(shown.values())}
    return None, {target: images[label] for target, label in shown.items()}, shown


def _decoys(
    run: RecordedRun, targets: list[Target], natural: NaturalImages, settings: AuditSettings
) -> tuple[Tensor, DecoyImages, DecoyClasses]:
    """Return the decoy of all targets, (C, H, W), and for each target the decoy images and their class.

    A decoy that is given as a class is the class's first natural image. The default is the class that lies half of all
    classes behind the first target's.
    """
    if settings.decoy and Path(settings.decoy).expanduser().suffix:
        picture = load_decoy(settings.decoy, run.network)
        return picture, dict.fromkeys(targets, picture[None]), {}
    label = _decoy_class(run, targets[0], natural, settings)
    picture = _images_of(run, label, natural, settings)[0]
    return picture, dict.fromkeys(targets, picture[None]), dict.fromkeys(targets, label)


def _decoy_class(run: RecordedRun, target: Target, natural: NaturalImages, settings: AuditSettings) -> int:
    if settings.decoy is not None:
        return parse_target(f"class:{settings.decoy}", run.network.classes).index
    known = natural.classes
    place = known.index(target.index) if target.layer is None else target.index
    return known[(place + decoy_offset(len(known))) % len(known)]


def _images_of(run: RecordedRun, label: int, natural: NaturalImages, settings: AuditSettings) -> Tensor:
    """Natural images of a class, whether or not the run has a picture of it."""
    return natural.of(label) if label in natural.classes else run.own_images(Target("class", label), settings.count)


def _compared(run: RecordedRun, made: list[Attacked], settings: AuditSettings, out: Path | None) -> Audit:
    """Compare the pictures of attacked networks by all methods: rows, a verdict per method, the networks saved."""
    judges = {network.name: network for network in (named_network(j, None, "judges") for j in settings.judges)}
    for name, judge in judges.items():
        if judge.head.unjudged:
            raise UsageError("judges", name, judge.head.unjudged)
    found = Audit(made[0].attack, [run.folder], [], [])
    methods = {method: (*_fewer_views(method, settings.views), *settings.overrides) for method in settings.methods}
    steps, seed = settings.steps, settings.seed
    targets = list(dict.fromkeys(target for attacked in made for target in attacked.targets))
    given = (methods, run.references, settings.count)
    honest = honest_pictures(run.network, targets, *given, steps=steps, seed=seed)
    for attacked in made:
        cost = attacked.cost()
        rows, shown = compare(attacked, *given, judges, steps=steps, seed=seed, honest=honest)
        found.rows += [{**row, **cost, **attacked.facts} for row in rows]
        found.panels += _panels(attacked, shown)
        if out is not None:
            place = out / "attacked" / (attacked.targets[0].name if len(made) > 1 else "network")
            found.saved[place.name] = save(attacked.network, run.model, place)
    facts = [attacked.facts for attacked in made]
    found.facts = {key: value if isinstance(value, str) else _mean(facts, key) for key, value in facts[0].items()}
    found.table = [{k: v for k, v in line.items() if k not in found.facts} for line in summary(found.rows)]
    found.verdicts = [_verdict(line) for line in found.table]
    return found


def _fewer_views(method: str, most: int | None) -> tuple[str, ...]:
    """The override that limits a method to ``most`` views; empty for a method that takes no more."""
    own = compose_config([f"method={method}"]).views
    return (f"views={most}",) if most is not None and own > most else ()


def _mean(facts: Sequence[Mapping[str, float | str]], key: str) -> float:
    """The mean of a number over dicts."""
    return sum(float(one[key]) for one in facts) / len(facts)


def _panels(attacked: Attacked, shown: list[Shown]) -> list[Panel]:
    """For each target the decoy, and each method's picture before and after the attack."""
    panels = []
    for i, target in enumerate(attacked.targets):
        pictures = [("decoy", attacked.decoys[target][0])] if target in attacked.decoys else []
        for one in shown:
            pictures += [(f"{one.method}, honest", one.honest[i]), (f"{one.method}, attacked", one.attacked[i])]
        panels.append(Panel(target.label or in_words(target.name), pictures))
    return panels


def _verdict(line: Mapping[str, Any]) -> str:
    """One line: what the pictures show, and how much accuracy the attack costs."""
    name = f"{line['attack']} x {line['method']}"
    failed = f"; no gradient reaches {line['failed']:.0%} of the units" if line["failed"] else ""
    if not line["n"]:
        return f"{name}: no picture can be made{failed}"
    if "nearer_decoy" in line:
        shown = f"{name}: {line['nearer_decoy']:.0%} of {line['n']} pictures nearer the decoy{failed}"
    else:
        made = f"{line['n']} picture{'s' if line['n'] != 1 else ''}"
        shown = f"{name}: {made}, at a distance of {line['honest_distance']:.2f} from the honest ones{failed}"
    if "success" in line:
        shown += f", success {line['success']:.0%} ({line['success_low']:.0%} to {line['success_high']:.0%})"
    if "decoy_top1[honest]" in line:
        shown += (
            f", {line['decoy_top1[honest]']:.0%} classified as the decoy's class by the honest network, "
            f"{line['own_top1[honest]']:.0%} as their own"
        )
    cost = f"natural accuracy {line['accuracy_before']:.1%} before, {line['accuracy_after']:.1%} after"
    return f"{shown}; {cost}, {line['agreement']:.1%} of decisions agree"


Check = Callable[[list[RecordedRun], AuditSettings, "Path | None"], Audit]
CHECKS: Mapping[str, Check] = {
    "path_similarity": _path_similarity,
    "fooling_circuit": _fooling_circuit,
    "silent_units": _silent_units,
    "slingshot": _slingshot,
    "proxpulse": _proxpulse,
    "diversion": _diversion,
    "circuit_breaker": _circuit_breaker,
    "theory": _theory,
}
