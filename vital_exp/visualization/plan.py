"""The plan of a run, for ``dry_run``: targets, batches, and estimates of time, memory and disk."""

from __future__ import annotations

import math

from vital_exp.mining.plan import duration
from vital_exp.mining.references import MinedReferences
from vital_exp.models.layers import layer_shapes
from vital_exp.references.faceted import FacetedReferences
from vital_exp.setup.batching import automatic_batch_size, batches, bytes_per_picture
from vital_exp.setup.request import Request
from vital_exp.visualization.run import check_size
from vital_exp.visualization.step_time import seconds_per_step, trial

TARGETS_SHOWN = 10
BYTES_PER_PIXEL_ON_DISK = 5  # measured, for PNG files: a picture, the masked picture, and their part of the gallery
BYTES_PER_HISTORY_ROW = 60  # of one step of one target in history.csv


def describe_plan(request: Request) -> str:
    """Return the plan as text; makes a few steps of the first batch to estimate the time."""
    return plan(request)[0]


def plan(request: Request) -> tuple[str, float]:
    """Return the plan as text, and the seconds of the optimisation, estimated from a few steps."""
    setup, network = request.setup, request.network
    size, seen = setup.size, setup.seen_size(setup.size)
    check_size(network, seen)
    count = len(request.targets)
    batch_size = setup.batch_size or automatic_batch_size(network, seen, count)
    number = len(list(batches(request.targets, batch_size)))
    together = setup.together(size, batch_size)
    tried = trial(setup, next(batches(request.targets, batch_size)), batch_size, together)
    seconds = seconds_per_step(tried) * setup.steps * number
    memory = bytes_per_picture(network, seen) * batch_size * together
    kept = count * (size[0] * size[1] * BYTES_PER_PIXEL_ON_DISK + setup.steps * BYTES_PER_HISTORY_ROW)
    shown = request.targets[:TARGETS_SHOWN]
    names = ", ".join(f"{target.name} ({target.label})" if target.label else target.name for target in shown)
    aligned = setup.alignment(request.targets[0].layer).layers
    parameters = sum(p.numel() for p in network.module.parameters())
    automatic = "" if setup.batch_size else " (auto)"
    views = f", {setup.views} views a step, {together} at a time" if setup.views > 1 else ""
    lines = {
        "model": f"{network.name}, {parameters:,} parameters, on {network.device}",
        "method": f"{setup.method}, {setup.steps} steps{views}",
        "layers": ", ".join(f"{layer} x {weight:g}" for layer, weight in aligned.items()),
        "targets": f"{count}: {names}{' ...' if count > TARGETS_SHOWN else ''}",
        **_mining_lines(request),
        **_facets_line(request),
        "batches": f"{number} of {batch_size}{automatic}, pictures of {size[0]} x {size[1]} px",
        "time": f"about {duration(seconds)}, and reading the references",
        "memory": f"about {memory / 1e9:.2f} GB of activations",
        "disk": f"about {kept / 1e6:.1f} MB in the run folder{_cache_note(request)}",
    }
    return "\n".join(f"{name:8} {value}" for name, value in lines.items()), seconds


def _mining_lines(request: Request) -> dict[str, str]:
    """Return a line with the mining that comes first, and its time; no line without mining."""
    references = request.references
    source = references.source if isinstance(references, FacetedReferences) else references
    if not isinstance(source, MinedReferences) or source.is_mined() or source.plan is None:
        return {}
    passes = source.plan()
    return {"mining": "; ".join(f"{name}: {text}" for name, text in passes.items())}


def _facets_line(request: Request) -> dict[str, str]:
    """Return a line with the number of facets, or with the units whose facets are still to be found."""
    if not isinstance(request.references, FacetedReferences):
        return {}
    wanted = f"references.facets={request.references.wanted}"
    found = {target.unit: len(request.references.known(target) or ()) for target in request.targets}
    known = [number for number in found.values() if number]
    waiting = len(found) - len(known)
    parts = [f"{sum(known)} of {len(known)} {'unit' if len(known) == 1 else 'units'}"] if known else []
    if waiting:
        units = "one unit" if waiting == 1 else f"{waiting} units"
        parts.append(f"those of {units} are found first; the estimates count one facet of each")
    return {"facets": f"{', '.join(parts)} ({wanted})"}


def _cache_note(request: Request) -> str:
    setup = request.setup
    if setup.cache is None:
        return ""
    shapes, aligned = layer_shapes(request.network), setup.alignment(request.targets[0].layer)
    numbers = sum(math.prod(shapes[layer]) for layer in aligned.layers)
    total = 4 * numbers * len({request.references.fingerprint(target) for target in request.targets})
    return f", {total / 1e6:.1f} MB of reference statistics in {setup.cache_dir}"
