"""vital-visualize: make pictures that show what units of a network detect."""

from __future__ import annotations

import logging
import re
import sys
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from vital_exp.commands.announcement import LISTS
from vital_exp.commands.hydra_app import Value, run_app
from vital_exp.commands.imports import uncollected
from vital_exp.commands.outer_ranks import outer_ranks
from vital_exp.commands.sweep_lines import ONLY_ASKS, PLANNED_SECONDS
from vital_exp.configuration import Configuration
from vital_exp.errors import UsageError
from vital_exp.values import one_of

if TYPE_CHECKING:
    from vital_exp.visualization.opening import Opening
    from vital_exp.visualization.ranks import Ranks

MEMBERS_SHOWN = 3  # images of a facet that are named

logger = logging.getLogger(__name__)


def main(arguments: list[str] | None = None) -> None:
    """Run the command; without a model or an experiment it runs the demo."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    # Hydra accepts a second "=" only inside quotes, which shells remove.
    given = [re.sub(r"^steer=([^'\"]+:[^'\"]+)$", r"steer='\1'", argument) for argument in given]
    bare = [argument.lstrip("+") for argument in given]
    if not any(argument.startswith(("model=", "experiment=")) for argument in bare):
        given.insert(0, "experiment=demo")
    only_asks = any(re.fullmatch(ONLY_ASKS, argument, re.IGNORECASE) for argument in bare)
    if outer_ranks()[0] == 0 and not only_asks:
        run_app("vital-visualize", "visualize", visualize_job, given)
    with tempfile.TemporaryDirectory() as place:  # nothing is made, or rank 0 has the run folder
        given = [argument for argument in given if not re.match(r"hydra\.(run|sweep)\.dir=", argument)]
        given += [f"hydra.run.dir={'.' if only_asks else place}", f"hydra.sweep.dir={place}"]
        if outer_ranks()[0]:
            given += ["hydra/job_logging=none", "hydra/hydra_logging=none"]
        elif only_asks:
            given += ["hydra/job_logging=stdout"]
        run_app("vital-visualize", "visualize", visualize_job, given)


def visualize_job(config: Configuration) -> int | Value:
    """Make the pictures of one job; return the number of failed targets, or the value that a sweeper optimises."""
    if config.list is not None:
        return _list(config)
    if config.target.kind == "circuit":
        return _circuit(config)
    if config.dry_run:
        from vital_exp.setup.request import Request
        from vital_exp.visualization.plan import plan

        text, seconds = plan(Request.from_config(config))
        print(text)
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            Path(HydraConfig.get().runtime.output_dir, PLANNED_SECONDS).write_text(str(seconds), encoding="utf-8")
        return 0
    with _ranks(config) as ranks:
        if HydraConfig.get().mode != RunMode.MULTIRUN or ranks.size > 1 or config.trainer.devices not in (1, "1"):
            return _run(config, ranks, ranks.local_rank)
        from vital_exp.visualization.devices import own_gpu

        with own_gpu(int(HydraConfig.get().job.num)) as gpu:
            return _run(config, ranks, gpu)


def _ranks(config: Configuration) -> Ranks:
    """Return the ranks of this job; a launcher among them starts those that do not run yet."""
    with uncollected():
        from vital_exp.setup.checks import rank_patience
        from vital_exp.setup.parts import device_count
        from vital_exp.visualization.launcher import Launcher, end_with_launcher
        from vital_exp.visualization.ranks import Ranks, check_ranks, join
        from vital_exp.visualization.starters import environment, mpi_processes

    devices = device_count(config)
    started = environment()
    check_ranks(started, devices, config.trainer.num_nodes, sweep=HydraConfig.get().mode == RunMode.MULTIRUN)
    end_with_launcher()
    if (ranks := join(started, rank_patience(config))) is not None:
        return ranks
    if warning := mpi_processes():
        logger.warning(warning)
    return Ranks(Launcher(["visualize", *sys.argv[1:]], devices) if devices > 1 else None)


def _run(config: Configuration, ranks: Ranks, device: int) -> int | Value:
    with uncollected():
        from vital_exp.reporting.gallery import write_gallery
        from vital_exp.reporting.summary import print_summary
        from vital_exp.runs.folder import RunFolder
        from vital_exp.setup.request import Request
        from vital_exp.visualization.ranks import of_all_ranks
        from vital_exp.visualization.run import Visualization

    hydra = HydraConfig.get()
    request = of_all_ranks(ranks, partial(Request.from_config, config, hydra.overrides.task, device))
    path = Path(ranks.broadcast(str(_place(request.config))))
    folder = ranks.in_turn(lambda: RunFolder(path, request.config, request.overrides, joins=ranks.rank > 0))
    outcome = Visualization(request, folder=folder, ranks=ranks, keep=False, tell=_tell).make()
    if ranks.rank > 0:
        return 0  # rank 0 reports the outcome
    alone = hydra.mode != RunMode.MULTIRUN
    judges = request.config.evaluation.judges or ()
    print_summary(outcome, write_gallery(path), folder.load_json("provenance.json") or {}, alone, judges)
    folder.close()
    failed = sum(result["status"] == "failed" for result in outcome.results)
    return failed if failed or config.sweep_metric is None else _value(config.sweep_metric, outcome.metrics)


def _tell(opening: Opening) -> None:
    print(opening, flush=True)


def _value(name: str, metrics: Mapping[str, Mapping[str, object]]) -> Value:
    """The value that a sweeper optimises, of a job that has made all its pictures."""
    value = metrics.get(name, {}).get("value")
    if not isinstance(value, (int, float)):
        there = "metrics.json in its folder lists all" if metrics else "it has none, see evaluation=basic"
        raise UsageError("sweep_metric", name, f"the run has no value of this metric; {there}", metrics)
    return Value(value)


def _place(config: Configuration) -> Path:
    """The run folder of this job: in a sweep that of an earlier job of the same configuration, or else Hydra's."""
    from vital_exp.runs.folder import job_folder

    place = Path(HydraConfig.get().runtime.output_dir)
    return job_folder(place, config) if HydraConfig.get().mode == RunMode.MULTIRUN else place


def _circuit(config: Configuration) -> int:
    """Make the tree of pictures of one job; returns the number of failed pictures."""
    from vital_exp.circuits.run import CircuitRun
    from vital_exp.reporting.circuit import write_circuit

    hydra = HydraConfig.get()
    circuit = CircuitRun.from_config(config, hydra.overrides.task)
    if config.dry_run:
        counts = [circuit.config.target.width**level for level in range(len(circuit.layers) + 1)]
        places = [circuit.root.name, *circuit.layers]
        shown = ", ".join(f"{count} of {place}" for count, place in zip(counts, places, strict=True))
        print(f"circuit of {circuit.network.name}: at most {sum(counts)} pictures ({shown}), {config.steps} steps each")
        return 0
    path = Path(hydra.runtime.output_dir)
    _, failed = circuit.run(path)
    page = write_circuit(path, circuit.network.name, config.relevance.method)
    print(f"circuit: {page}\nnext: open {page} in a browser")
    return failed


def _list(config: Configuration) -> int:
    one_of("list", config.list, LISTS)
    if config.list == "facets":
        return _list_facets(config)
    from vital_exp.models.layers import describe_layers
    from vital_exp.models.loading import build_network
    from vital_exp.models.named import model_config

    print(describe_layers(build_network(model_config(config), config.cache)))
    return 0


def _list_facets(config: Configuration) -> int:
    from vital_exp.references.faceted import FacetedReferences
    from vital_exp.setup.request import Request

    request = Request.from_config(config)
    if not isinstance(request.references, FacetedReferences):
        raise UsageError("list", "facets", "there are none: references.facets=auto, or at least 2")
    for target in request.targets:
        facet, found = request.references.facet(target), request.references.describe(target)
        members = ", ".join(map(str, found["members"][:MEMBERS_SHOWN]))
        more = f" and {len(facet.members) - MEMBERS_SHOWN} more" if len(facet.members) > MEMBERS_SHOWN else ""
        print(f"{target.name}  share {facet.share:.0%}  coherence {facet.coherence:.2f}  {members}{more}")
    return 0


if __name__ == "__main__":
    main()
