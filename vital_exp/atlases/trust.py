"""Circuits and audits of an atlas's units: circuits are made if asked for, audits of its pictures are looked up."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vital_exp.atlases.pictures import PICTURES
from vital_exp.atlases.request import EMBEDDED, AtlasRequest
from vital_exp.atlases.store import safe_name
from vital_exp.circuits.run import CircuitRun
from vital_exp.config import compose_config, plain
from vital_exp.errors import UsageError
from vital_exp.reporting.circuit import PAGE, write_circuit
from vital_exp.run_folders import RESULTS, read_results
from vital_exp.setup.checks import check_numbers, check_tree
from vital_exp.targets.selection import parse_target
from vital_exp.targets.unit import OUTPUT, Target

CIRCUITS, AUDITS = "circuits", "audits"
KEY = "circuits"
UNREADABLE = (OSError, KeyError, TypeError, ValueError)  # of somebody else's folder

logger = logging.getLogger(__name__)


def circuit_targets(asked: AtlasRequest) -> list[Target]:
    """Return the units whose circuits are asked for.

    Raises:
        UsageError: a unit that is not in the atlas, or is neither a channel nor a class.
    """
    given = plain(asked.config)[KEY]
    spellings = [] if given is None else [given] if isinstance(given, (str, int)) else list(given)
    targets = []
    for spelling in map(str, spellings):
        names = asked.network.classes if spelling.startswith("class") else None
        try:
            target = parse_target(spelling, names)
        except UsageError as error:
            raise UsageError(KEY, error.value, error.problem, error.options) from None
        part = asked.parts.get(target.layer or OUTPUT)
        if part is None or target.index not in part.units or target.kind not in ("channel", "class"):
            problem = f"a channel or class of this atlas, {' or '.join(asked.parts)}: layer:number, class:name"
            raise UsageError(KEY, spelling, problem)
        targets.append(target)
    return targets


def make_circuits(asked: AtlasRequest, out: Path) -> None:
    """Make the circuits that are asked for and not there yet, each in ``out/circuits/<layer>-<number>``."""
    for target in circuit_targets(asked):
        path = out / CIRCUITS / _name(target.layer or OUTPUT, target.index)
        if (path / PAGE).is_file():
            continue
        unit = f"class:{target.index}" if target.layer is None else f"{target.layer}:{target.index}"
        overrides = [*_overrides(asked), f"target.unit='{unit}'"]
        config = compose_config(overrides).with_keys(model=plain(asked.config)["model"])
        check_numbers(config)
        check_tree(config)
        CircuitRun(config, asked.network, overrides).run(path)
        write_circuit(path, asked.network.name, str(config.relevance.method))


def _overrides(asked: AtlasRequest) -> list[str]:
    """Return what a circuit is made with: the atlas's images, method, steps and seed."""
    config = asked.config
    method = str(config.pictures) if asked.makes_pictures else "vital_fourier"
    given = ["model=python", "target=circuit", f"method={method}", f"seed={int(config.seed)}"]
    given += [] if config.steps is None else [f"steps={int(config.steps)}"]
    if config.images or config.model.source != EMBEDDED:
        given.append(f"references.root='{asked.folder.root.resolve()}'")
    given += [f"trainer.accelerator={config.trainer.accelerator}", f"cache_dir='{config.cache_dir}'"]
    return [*given, "progress=false", "logger=none", "evaluation=none", *map(str, config.overrides)]


def _name(layer: str, unit: int) -> str:
    return f"{safe_name(layer)}-{unit}"


def linked(folder: Path, units: Mapping[str, list[int]]) -> dict[str, dict[str, Any]]:
    """Return the circuits and audits that the pages of units link.

    An audit is linked if it lies in ``folder/audits/<any name>`` and its pictures in ``folder/pictures/<layer>``.

    Args:
        folder: of the atlas.
        units: the numbers of the units of each layer.

    Returns:
        ``circuits``: ``layer/unit`` to a page; ``audits``: ``layer/unit`` to check, verdict and page of each.
    """
    circuits = {}
    audits: dict[str, list[dict[str, str]]] = {}
    for layer, numbers in units.items():
        for unit in numbers:
            page = Path(CIRCUITS) / _name(layer, unit) / PAGE
            if (folder / page).is_file():
                circuits[f"{layer}/{unit}"] = page.as_posix()
    for path in sorted(folder.glob(f"{AUDITS}/*/audit.json")):
        try:
            own = _audit(path, folder, units)
        except UNREADABLE as error:
            logger.warning("%s cannot be read (%s)", path.parent, error)
            continue
        if not own:
            logger.warning("%s is not an audit of this atlas's pictures", path.parent)
        for unit_name, line in own.items():
            audits.setdefault(unit_name, []).append(line)
    return {"circuits": circuits, "audits": audits}


def _audit(path: Path, folder: Path, units: Mapping[str, list[int]]) -> dict[str, dict[str, str]]:
    """Return what the page of each audited unit shows of an audit."""
    content = json.loads(path.read_text(encoding="utf-8"))
    line = {"check": str(content["check"]).replace("_", " "), "verdict": "; ".join(map(str, content["verdicts"]))}
    line["page"] = (path.parent / "report.html").relative_to(folder).as_posix()
    with (path.parent / "audit.csv").open(newline="", encoding="utf-8") as file:
        audited = {row["target"] for row in csv.DictReader(file) if row.get("target")}
    runs = {Path(run).resolve() for run in content["runs"]}
    found = {}
    for layer in units:
        place = folder / PICTURES / safe_name(layer)
        if place.resolve() in runs and (place / RESULTS).is_file():
            made = [result for result in read_results(place)[0] if not audited or result["target"] in audited]
            found.update({f"{layer}/{result['index']}": line for result in made})
    return found
