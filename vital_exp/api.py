"""The Python functions of the commands' names."""

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
            (a position), or Target objects; classes and hidden units are two calls. With ``references.facets`` a unit
            stands for all its facets, the clearest first, and ``"layer4.2:1935#1"`` for one.
        method: an option of the group ``method``.
        references: a folder of real images (of classes, by sub-folder; hidden units find in it what drives them), a
            tensor (B, 3, H, W) RGB for all targets, or {target: tensor}; tensors are never clamped.
        steps: optimisation steps; the method's by default.
        seed: with target and step it decides every random number.
        init: (N, 3, H, W) RGB to start from, one per target.
        overrides: as the command takes them, ``["optimizer.lr=0.5"]``; ``"progress=true"`` shows a progress bar.
        out: a run folder to write, or to go on with; None writes nothing but the cache. Ranks that torchrun or SLURM
            started share the targets and meet there.

    Returns:
        The pictures in the order of the targets. A failed one is NaN and says why in ``.results``.

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
    """Make the pictures of a request, with gallery if there is a folder."""
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
    """Join the ranks that a script was started as one of."""
    if (started := script_environment()) is None:
        return None
    asked = [override for override in overrides if override.startswith("rank_timeout=")]
    return join(started, rank_patience(compose_config(asked)))


def _folder(request: Request, out: str | Path | None, ranks: Ranks) -> RunFolder | None:
    return RunFolder(Path(out), request.config, request.overrides, joins=ranks.rank > 0) if out else None


def _check_devices(request: Request, ranks: Ranks) -> None:
    """Refuse devices that nobody has started ranks for: a script, or a notebook, is not run again for each."""
    trainer = request.config.trainer
    check_ranks(script_environment(), device_count(request.config), trainer.num_nodes, sweep=False)
    if trainer.devices not in (1, "1", "auto") and device_count(request.config) > 1 and ranks.size == 1:
        command = f"torchrun --nproc-per-node={device_count(request.config)} script.py, with out=folder"
        raise UsageError("trainer.devices", trainer.devices, f"in Python the ranks are started from outside: {command}")


def audit(
    check: str, run: str | Path | Sequence[str | Path], out: str | Path | None = None, **options: object
) -> Audit:
    """Run one check on a run folder: how far can its pictures be trusted?

    Args:
        check: ``"path_similarity"``, ``"fooling_circuit"``, ``"silent_units"``, ``"slingshot"``, ``"proxpulse"`` or
            ``"theory"``.
        run: a run folder of vital-visualize; path similarity takes several.
        out: where to write the table, the page and the attacked networks; None writes nothing.
        options: see :class:`vital_exp.attacks.settings.AuditSettings`.

    Returns:
        Its table: ``.verdicts``, ``.rows``, ``.facts``.

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
    """Find the images of a folder, and the patches of them, that drive the units of layers most and least.

    Args:
        model: a name, or a network (wrap it with :func:`load_model` to give mean, std and size).
        layers: module names.
        images: a folder, any tree.
        k: images on each side, and patches, per unit.
        out: the folder of the index, to write or to go on with; None keeps it in the cache.
        options: channels, pooling, patch, batch_size, workers, ..., see :func:`vital_exp.mining.mine.mine`.

    Returns:
        The index: ``.top("layer3.5", 7)``, ``.bottom(...)``, ``.patches(...)`` are lists of rows.

    Raises:
        UsageError: an unknown layer, a channel out of range, no images, fewer than ``k``.
    """
    network = model if isinstance(model, VisionNetwork) else load_model(model)
    return mine_network(network, layers, images, k=k, out=out, **options)


def atlas(folder: str | Path) -> Atlas:
    """Open an atlas that vital-atlas has made, or is making.

    Args:
        folder: of the atlas.

    Returns:
        ``.units`` (a pandas DataFrame where pandas is installed), ``.pictures("layer3.5", 7)``,
        ``.neighbours("layer3.5", 7)``, ``.layers``, ``.meta``; a notebook displays it.

    Raises:
        UsageError: there is no atlas.
    """
    return Atlas(folder)


def report(
    runs: str | Path | Sequence[str | Path],
    *,
    out: str | Path | None = None,
    metrics: Sequence[str] | str | None = None,
    title: str | None = None,
) -> Report:
    """Gather the run folders of a sweep into one table and one page.

    Args:
        runs: a folder that holds run folders at any depth, or several.
        out: where the report goes; None: the folder ``report`` in the first of ``runs``.
        metrics: what the table shows first, names with or without [judge]; None: the usual ones; ``"all"``.
        title: of the page; None: the networks' names.

    Returns:
        ``.page``, ``.table`` (its cells by model, method and metric), ``.runs``.

    Raises:
        UsageError: no runs there, none with a finished picture, or a metric that none has.
    """
    places = [runs] if isinstance(runs, (str, Path)) else list(runs)
    if not places:
        raise UsageError("runs", "[]", "at least one folder of run folders")
    folder = Path(places[0]).expanduser() / "report" if out is None else Path(out).expanduser()
    return write_report(places, folder, metrics, title)
