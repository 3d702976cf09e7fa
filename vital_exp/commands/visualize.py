"""vital-visualize: make pictures of what units of a network detect."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from vital_exp.commands.hydra_app import run_app
from vital_exp.config import normalised
from vital_exp.errors import UsageError

LISTS = ("layers",)


def main(arguments: list[str] | None = None) -> None:
    """Run the command; without a model or an experiment it is the demo."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    bare = [argument.lstrip("+") for argument in given]
    if not any(argument.startswith(("model=", "experiment=")) for argument in bare):
        given.insert(0, "experiment=demo")
    if any(re.fullmatch("dry_run=true|list=.*", argument, re.IGNORECASE) for argument in bare):
        given = [argument for argument in given if not argument.startswith("hydra.run.dir=")]
        given = ["hydra.run.dir=.", "hydra/job_logging=stdout", *given]  # nothing is made, so no folder for it
    run_app("vital-visualize", "visualize", visualize_job, given)


def visualize_job(config: DictConfig) -> int:
    """Make the pictures of one job; returns the number of failed targets."""
    config = normalised(config)
    if config.list is not None:
        return _list(config)
    if config.target.kind == "circuit":
        return _circuit(config)
    from vital_exp.engine.request import Request

    hydra = HydraConfig.get()
    request = Request.from_config(config, hydra.overrides.task)
    if config.dry_run:
        from vital_exp.reporting.plan import describe_plan

        print(describe_plan(request))
        return 0
    return _run(request, Path(hydra.runtime.output_dir))


def _run(request, path: Path) -> int:  # type: ignore[no-untyped-def]
    from vital_exp.engine.run_folder import RunFolder
    from vital_exp.engine.visualization import Visualization
    from vital_exp.reporting.gallery import write_gallery
    from vital_exp.reporting.summary import print_summary

    folder = RunFolder(path, request.config, request.overrides)
    run = Visualization(request.config, request.network, request.targets, request.references, folder=folder)
    pictures = run.run()
    print_summary(pictures, write_gallery(path))
    return sum(result["status"] == "failed" for result in pictures.results)


def _circuit(config: DictConfig) -> int:
    """Make the tree of pictures of one job; returns the number of failed pictures."""
    from vital_exp.circuits.run import Circuit
    from vital_exp.reporting.circuit import write_circuit

    hydra = HydraConfig.get()
    circuit = Circuit.from_config(config, hydra.overrides.task)
    if config.dry_run:
        counts = [circuit.config.target.width**level for level in range(len(circuit.layers) + 1)]
        places = [circuit.root.name, *circuit.layers]
        shown = ", ".join(f"{count} of {place}" for count, place in zip(counts, places, strict=True))
        print(f"circuit of {circuit.network.name}: at most {sum(counts)} pictures ({shown}), {config.steps} steps each")
        return 0
    path = Path(hydra.runtime.output_dir)
    _, failed = circuit.run(path)
    print(f"circuit: {write_circuit(path, circuit.network.name, config.relevance.method)}")
    return failed


def _list(config: DictConfig) -> int:
    if config.list not in LISTS:
        raise UsageError("list", config.list, f"one of {', '.join(LISTS)}", LISTS)
    from vital_exp.engine.setup import cache_dir
    from vital_exp.models.layers import describe_layers
    from vital_exp.models.loading import build_network
    from vital_exp.models.named import model_config

    print(describe_layers(build_network(model_config(config), cache_dir(config))))
    return 0


if __name__ == "__main__":
    main()
