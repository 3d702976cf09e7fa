"""The Python API: one function for each command, with the command's name."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vital_exp.atlases.opened import Atlas
from vital_exp.attacks.audit import Audit
from vital_exp.attacks.audit import audit as audit_runs
from vital_exp.config import compose_config, plain
from vital_exp.errors import UsageError
from vital_exp.evaluation.metrics import chosen
from vital_exp.evaluation.table import Evaluation
from vital_exp.mining.counts import IMAGES_PER_UNIT
from vital_exp.mining.index import Index
from vital_exp.mining.mine import mine as mine_network
from vital_exp.models.named import load_model
from vital_exp.models.network import VisionNetwork
from vital_exp.modes import own_modes
from vital_exp.no_effect import flat_keys, keys_of, tell_without_effect
from vital_exp.references.tensors import Given
from vital_exp.reporting.report import Report, write_report
from vital_exp.runs.evaluate import evaluate
from vital_exp.runs.folder import RunFolder
from vital_exp.setup.checks import rank_patience
from vital_exp.setup.parts import device_count
from vital_exp.setup.request import Request
from vital_exp.targets.unit import Target
from vital_exp.visualization.outcome import Pictures
from vital_exp.visualization.ranks import Ranks, check_ranks, join, of_all_ranks
from vital_exp.visualization.run import Visualization
from vital_exp.visualization.starters import script_environment

__all__ = [
    "Atlas",
    "Audit",
    "Evaluation",
    "Index",
    "Pictures",
    "Report",
    "atlas",
    "audit",
    "evaluate",
    "load_model",
    "mine",
    "report",
    "visualize",
]


@own_modes()
def visualize(
    model: str | nn.Module | VisionNetwork,
    targets: Sequence[str | Target] | str | Target,
    *,
    method: str = "vital",
    references: str | Path | Given | None = None,
    steps: int | None = None,
    seed: int = 0,
    init: Tensor | None = None,
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
) -> Pictures:
    """Make pictures of what units of a network detect.

    Args:
        model: a name, or a network (wrap it with :func:`load_model` to give mean, std and size).
        targets: ``"class:207"``, ``"class:golden retriever"``, ``"layer4.2:1935"`` (a channel), ``"layer4.2:1935@7,7"``
            (a neuron), or Target objects. One call takes classes or hidden units, not both. With
            ``references.facets`` a unit stands for all its facets; ``"layer4.2:1935#1"`` names one facet.
        method: an option of the configuration group ``method``.
        references: a folder of natural images, with a sub-folder per class (for hidden units it is mined); a tensor
            (B, C, H, W) in [0, 1] for all targets, or {target: tensor}. Tensors are never clamped.
        steps: number of optimisation steps; None: the method's number.
        seed: every random number depends on the seed, the target and the step alone.
        init: (N, C, H, W) in [0, 1], the image from which each target's picture starts.
        overrides: the command's arguments, ``["optimizer.lr=0.5"]``; ``"progress=true"`` shows a progress bar.
        out: a run folder to write or to resume; None: only the cache is written. Ranks that torchrun or SLURM started
            share the targets, and exchange their results in this folder.

    Returns:
        The pictures in the order of the targets. A failed picture is NaN, and ``.results`` has the reason.

    Raises:
        UsageError: a mistake in what was asked for.

    Examples:
        >>> from vital_exp import visualize
        >>> options = ["references.count=2", "trainer.accelerator=cpu"]
        >>> pictures = visualize("embedded_resnet", "class:star", steps=2, overrides=options)
        >>> pictures.images.shape, pictures.results[0]["status"]
        (torch.Size([1, 3, 64, 64]), 'done')
    """
    given = [*([] if out else ["logger=none"]), "progress=false", *overrides]
    with (_join(overrides) if out else None) or Ranks() as ranks:
        asked = partial(Request.of, model, targets, method=method, references=references, seed=seed, steps=steps)
        asked = partial(asked, overrides=given, local_rank=ranks.local_rank)
        request = of_all_ranks(ranks, lambda found: asked(found=found))
        if ranks.rank == 0:
            tell_without_effect("visualize", {**plain(request.config), "out": out}, keys_of(overrides), chosen)
        return _made(request, init, out, ranks)


def _made(request: Request, init: Tensor | None, out: str | Path | None, ranks: Ranks) -> Pictures:
    """Make the pictures of a request, and a gallery if there is a folder."""
    _check_devices(request, ranks)
    folder = ranks.in_turn(lambda: _folder(request, out, ranks))
    run = Visualization(request, init, folder, ranks)
    pictures = run.run()
    if folder:
        from vital_exp.reporting.gallery import write_gallery

        if ranks.rank == 0:
            write_gallery(folder.path)
        folder.close()
    return pictures


def _join(overrides: Sequence[str]) -> Ranks | None:
    """Join the other ranks if torchrun or SLURM started this script as a rank; None otherwise."""
    if (started := script_environment()) is None:
        return None
    asked = [override for override in overrides if override.startswith("rank_timeout=")]
    return join(started, rank_patience(compose_config(asked)))


def _folder(request: Request, out: str | Path | None, ranks: Ranks) -> RunFolder | None:
    return RunFolder(Path(out), request.config, request.overrides, joins=ranks.rank > 0) if out else None


def _check_devices(request: Request, ranks: Ranks) -> None:
    """Refuse several devices without a rank for each: a function cannot start its caller's script again."""
    trainer = request.config.trainer
    check_ranks(script_environment(), device_count(request.config), trainer.num_nodes, sweep=False)
    if trainer.devices not in (1, "1", "auto") and device_count(request.config) > 1 and ranks.size == 1:
        command = f"torchrun --nproc-per-node={device_count(request.config)} script.py, with out=folder"
        raise UsageError("trainer.devices", trainer.devices, f"in Python the ranks are started from outside: {command}")


def audit(
    check: str, run: str | Path | Sequence[str | Path], out: str | Path | None = None, **options: object
) -> Audit:
    """Run one check of how far the pictures of a run folder can be trusted.

    Args:
        check: ``"path_similarity"``, ``"fooling_circuit"``, ``"silent_units"``, ``"slingshot"``, ``"proxpulse"``,
            ``"diversion"``, ``"circuit_breaker"`` or ``"theory"``.
        run: a run folder of vital-visualize; path similarity takes several.
        out: the folder for the table, the page and the attacked networks; None: nothing is written.
        options: see :class:`vital_exp.attacks.settings.AuditSettings`.

    Returns:
        The check's table: ``.verdicts``, ``.rows``, ``.facts``.

    Raises:
        UsageError: a mistake in what was asked for.
    """
    tell_without_effect("audit", {"check": {"name": check}, **options}, flat_keys(options), chosen)
    return audit_runs(check, run, out, **options)


@own_modes()
def mine(
    model: str | nn.Module | VisionNetwork,
    layers: Sequence[str] | str,
    images: str | Path,
    *,
    k: int = IMAGES_PER_UNIT,
    out: str | Path | None = None,
    **options: Any,
) -> Index:
    """Find the images of a folder, and their patches, that drive the units of layers most and least.

    Args:
        model: a name, or a network (wrap it with :func:`load_model` to give mean, std and size).
        layers: module names.
        images: a folder of images, with sub-folders at any depth.
        k: number of strongest images, of weakest images and of patches per unit.
        out: the folder of the index, to write or to resume; None: the index is kept in the cache.
        options: channels, pooling, patch, batch_size, workers, ...; see :func:`vital_exp.mining.mine.mine`.

    Returns:
        The index: ``.top("layer3.5", 7)``, ``.bottom(...)`` and ``.patches(...)`` return lists of rows.

    Raises:
        UsageError: an unknown layer, a channel out of range, or fewer than ``k`` images.
    """
    network = model if isinstance(model, VisionNetwork) else load_model(model)
    return mine_network(network, layers, images, k=k, out=out, **options)


def atlas(folder: str | Path) -> Atlas:
    """Open an atlas, finished or still being made by vital-atlas.

    Args:
        folder: the atlas's folder.

    Returns:
        ``.units`` (a pandas DataFrame where pandas is installed), ``.pictures("layer3.5", 7)``,
        ``.neighbours("layer3.5", 7)``, ``.layers``, ``.meta``; a notebook displays it.

    Raises:
        UsageError: the folder holds no atlas.
    """
    return Atlas(folder)


def report(
    runs: str | Path | Sequence[str | Path],
    *,
    out: str | Path | None = None,
    metrics: Sequence[str] | str | None = None,
    title: str | None = None,
) -> Report:
    """Write one table and one page of the run folders of a sweep.

    Args:
        runs: a folder that holds run folders at any depth, or a list of such folders.
        out: the folder of the report; None: ``report`` in the first of ``runs``.
        metrics: names of the metrics that the table shows first, with or without [judge]; ``"all"``; None: the usual
            metrics.
        title: the page's title; None: the networks' names.

    Returns:
        ``.page``, ``.table`` (cells by model, method and metric) and ``.runs``.

    Raises:
        UsageError: no run folders, no finished picture in any run, or a metric that no run has.
    """
    places = [runs] if isinstance(runs, (str, Path)) else list(runs)
    if not places:
        raise UsageError("runs", "[]", "at least one folder of run folders")
    folder = Path(places[0]).expanduser() / "report" if out is None else Path(out).expanduser()
    return write_report(places, folder, metrics, title)
