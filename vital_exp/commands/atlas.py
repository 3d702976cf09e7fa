"""vital-atlas: a site of a whole network, with the pictures, images, numbers and neighbours of each unit."""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from vital_exp.commands.hydra_app import run_app
from vital_exp.commands.imports import uncollected
from vital_exp.commands.outer_ranks import outer_ranks
from vital_exp.configuration import Configuration
from vital_exp.recorded_config import record_config

if TYPE_CHECKING:
    from vital_exp.atlases.store import Store
    from vital_exp.visualization.ranks import Ranks

COMMAND = "atlas"
# The atlas of a command without arguments: some units of the embedded network, in three minutes on two cores.
DEMO = ("units=0-9", "steps=100", "facets=1", "map=pca", 'overrides=["references.count=8"]')


def main(arguments: list[str] | None = None) -> None:
    """Run the command; without arguments it uses an embedded network and images drawn by code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not _any("(model|images|layers|compare|sae|concepts)=", given):
        given = [*(one for one in DEMO if not _any(re.escape(one.partition("=")[0]) + "=", given)), *given]
    if _any("(?i:dry_run=true$)", given):
        given = [argument for argument in given if not argument.startswith("hydra.run.dir=")]
        given = ["hydra.run.dir=.", "hydra/job_logging=stdout", *given]  # no folder, for nothing is made
    if outer_ranks()[0] == 0:
        run_app("vital-atlas", COMMAND, atlas_job, given)
    with tempfile.TemporaryDirectory() as place:  # rank 0 has the run folder, and prints the lines
        given = [argument for argument in given if not re.match(r"hydra\.(run|sweep)\.dir=", argument)]
        given += [f"hydra.run.dir={place}", f"hydra.sweep.dir={place}"]
        given += ["hydra/job_logging=none", "hydra/hydra_logging=none"]
        run_app("vital-atlas", COMMAND, atlas_job, given)


def _any(pattern: str, arguments: list[str]) -> bool:
    """Whether an argument begins with a match of the pattern, behind any plus signs."""
    return any(re.match(rf"\+*({pattern})", argument, re.IGNORECASE) for argument in arguments)


def atlas_job(config: Configuration) -> int:
    """Make one atlas, or compare two; returns the number of failed units."""
    out = Path(HydraConfig.get().runtime.output_dir)
    if config.compare is not None:
        return _compare(config, out)
    if config.dry_run:
        with uncollected():
            from vital_exp.atlases.plan import describe
            from vital_exp.atlases.request import AtlasRequest

        print(describe(AtlasRequest.of(config)))
        return 0
    with _ranks(config) as ranks:
        return _atlas(config, out, ranks)


def _ranks(config: Configuration) -> Ranks:
    """Return the ranks of this job; a launcher among them starts those that do not run yet."""
    with uncollected():
        from vital_exp.setup.parts import device_count
        from vital_exp.visualization.launcher import Launcher, end_with_launcher
        from vital_exp.visualization.ranks import Ranks, check_ranks, join
        from vital_exp.visualization.starters import environment

    devices, started = device_count(config), environment()
    check_ranks(started, devices, 1, sweep=HydraConfig.get().mode == RunMode.MULTIRUN)
    end_with_launcher()
    return join(started) or Ranks(Launcher([COMMAND, *sys.argv[1:]], devices) if devices > 1 else None)


def _atlas(config: Configuration, out: Path, ranks: Ranks) -> int:
    with uncollected():
        from vital_exp.atlases.request import AtlasRequest
        from vital_exp.atlases.run import AtlasRun, told_corrupt
        from vital_exp.atlases.store import FAILED

    asked = ranks.in_turn(lambda: AtlasRequest.of(config, ranks.local_rank))
    out = Path(ranks.broadcast(str(out)))
    store = AtlasRun(asked, out, ranks, HydraConfig.get().overrides.task).run()
    if ranks.rank > 0:
        return 0  # rank 0 reports the outcome
    record_config(config, out)
    failed = store.count(status=FAILED)
    layers = "1 layer" if len(store.layers()) == 1 else f"{len(store.layers())} layers"
    print(f"atlas: {store.path} ({store.count()} units of {layers}, {failed} failed)")
    for line in told_corrupt(store):
        print(line)
    if config.wandb:
        _send(config, store)
    print(f"next: open {out / 'index.html'} in a browser")
    return failed


def _send(config: Configuration, store: Store) -> None:
    from vital_exp.atlases.dashboard import send_units

    print(f"wandb: {send_units(store, config.project, config.offline)}")


def _compare(config: Configuration, out: Path) -> int:
    with uncollected():
        from vital_exp.atlases.compare import compare

    before, after = map(str, config.compare)
    found = compare(before, after, out)
    print(found)
    print(f"next: open {found.page} in a browser")
    return 0


if __name__ == "__main__":
    main()
