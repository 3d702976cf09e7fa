"""Score a run folder, the runs of a sweep, or any folder of pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from vital_exp.config import compose_config
from vital_exp.configuration import Configuration
from vital_exp.errors import UsageError
from vital_exp.evaluation import metrics as all_metrics
from vital_exp.evaluation.clip import TEMPLATES, load_clip
from vital_exp.evaluation.evidence import CLIP, INCEPTION, TARGET, Evidence, Load
from vital_exp.evaluation.inception import FEATURES, PUBLISHED, load_inception
from vital_exp.evaluation.perceptual import BACKBONES
from vital_exp.evaluation.pictures import PATTERN, PictureSet, folder_pictures, run_pictures
from vital_exp.evaluation.reading import NetworkReader
from vital_exp.evaluation.recognition import PREDICTED, check_judge, predicted
from vital_exp.evaluation.score import NotComputed
from vital_exp.evaluation.settings import ClipSettings, LpipsSettings, MetricSettings
from vital_exp.evaluation.shared import Shared
from vital_exp.evaluation.table import Evaluation
from vital_exp.evaluation.weights import Spec
from vital_exp.models.identity import begin_call
from vital_exp.models.network import VisionNetwork
from vital_exp.modes import own_modes
from vital_exp.no_effect import flat_keys, tell_without_effect, value_at
from vital_exp.references.base import References
from vital_exp.references.none import NoReferences
from vital_exp.references.tensors import Given
from vital_exp.run_folders import find_runs, is_run, is_sweep
from vital_exp.runs.recorded import RunRecord
from vital_exp.runs.same_network import warn_of_change
from vital_exp.setup.problem import as_references
from vital_exp.targets.readout import Readout, check_unit
from vital_exp.targets.unit import Target
from vital_exp.values import flag, one_of, whole_number

Judge = Spec | VisionNetwork


class Evaluations(dict[Path, Evaluation]):
    """The tables of several runs, by run folder.

    Attributes:
        failed: the mistakes of the runs that could not be scored, by run folder.
    """

    def __init__(self) -> None:
        super().__init__()
        self.failed: dict[Path, UsageError] = {}


# Called with each run folder and its table, or the mistake that prevented the table.
Tell = Callable[[Path, Evaluation | UsageError], None]


@own_modes()
def evaluate(
    run_or_folder: str | Path,
    *,
    judges: Sequence[Judge] = (),
    metrics: Sequence[str] | str | None = None,
    model: Judge | None = None,
    references: str | Path | Given | References | None = None,
    pattern: str = PATTERN,
    targets: str | Path | None = None,
    features: Sequence[Spec] = (),
    settings: MetricSettings | None = None,
    config: Configuration | None = None,
    folder_of_pictures: bool | None = None,
    tell: Tell | None = None,
    progress: bool = False,
) -> Evaluation | Evaluations:
    """Score the pictures of a run folder, of all runs of a sweep, or of any folder.

    Args:
        run_or_folder: a run folder, a folder that holds run folders at any depth, or a folder of pictures.
        judges: names, keys of the group model, or networks; of classes only networks with the same classes.
        metrics: names from ``vital_exp.evaluation.metrics.METRICS``; None: all.
        model: the network for which the pictures were made; None: the network that the run folder has recorded.
        references: natural images as a folder, tensors, or an object; None: the references that the run has recorded.
        pattern, targets: what gives each picture's target: its file's name, or a CSV file; see :func:`folder_pictures`.
        features: further networks in whose feature spaces metrics are computed.
        settings: settings of single metrics, and whether weights may be downloaded.
        config: a composed configuration of vital-evaluate; None: its defaults.
        folder_of_pictures: whether ``run_or_folder`` is one; None: it is, if it has no results.jsonl at or below it.
        tell: called after each run of a folder of runs, with its table or its mistake.
        progress: whether progress bars are shown on a terminal.

    Returns:
        The table: ``.metrics`` as in metrics.json, ``.rows`` as in metrics.csv, ``str()``, ``.save(folder)``. For a
        folder of runs, a dict of tables by run folder; ``.failed`` has the mistakes of the other runs.

    Raises:
        UsageError: the first mistake; for a folder of runs, only if all runs fail, the first run's mistake.
    """
    folder, chosen = Path(run_or_folder).expanduser(), all_metrics.chosen(metrics)
    settings = settings or MetricSettings()
    if config is None:
        _tell_without_effect(folder, metrics, judges, features, targets, pattern, settings)
        config = compose_config([], "evaluate")
    _begin(model, judges, config)
    keys = (judges, chosen, model, references, pattern, targets, features, settings, config)
    asked = _Asked(*keys, Shared(config.cache, settings.download), progress)
    if folder_of_pictures is None and is_sweep(folder):
        return _evaluate_runs(find_runs([folder], "run"), asked, tell)
    return asked.evaluate(folder, not folder_of_pictures if folder_of_pictures is not None else is_run(folder))


def _begin(model: Judge | None, judges: Sequence[Judge], config: Configuration) -> None:
    """Identify networks from Python anew: since the last call their weights or code may have changed."""
    for one in (model, *judges):
        if isinstance(one, VisionNetwork):
            begin_call(one, config.cache)


def _tell_without_effect(
    folder: Path,
    metrics: Sequence[str] | str | None,
    judges: Sequence[Judge],
    features: Sequence[Spec],
    targets: str | Path | None,
    pattern: str,
    settings: MetricSettings,
) -> None:
    """Warn of arguments without effect, by the rules of vital-evaluate."""
    group, usual = asdict(settings), asdict(MetricSettings())
    own = {"judges": list(judges), "targets": targets, "pattern": pattern, "metrics": metrics}
    content = {
        **own,
        "evaluation": {"features": list(features), **group},
        "run": str(folder) if is_run(folder) else None,
    }
    given = [key for key in flat_keys(group) if value_at(group, key) != value_at(usual, key)]
    given = ["judges", "targets", "evaluation.features", *(f"evaluation.{key}" for key in given)]
    given = given if pattern == PATTERN else [*given, "pattern"]
    tell_without_effect("evaluate", content, given, all_metrics.chosen)


def _evaluate_runs(runs: Sequence[Path], asked: _Asked, tell: Tell | None) -> Evaluations:
    """Score runs one after another; a run that cannot be scored does not stop the others."""
    found = Evaluations()
    for run in runs:
        try:
            found[run] = asked.evaluate(run)
        except UsageError as error:
            found.failed[run] = error
        if tell is not None:
            tell(run, found.get(run) or found.failed[run])
    if not found:
        raise found.failed[runs[0]]
    return found


@dataclass(frozen=True)
class _Asked:
    """The arguments of :func:`evaluate` that hold for every run, and the loaded networks that the runs share."""

    judges: Sequence[Judge]
    metrics: Sequence[all_metrics.Metric]
    model: Judge | None
    references: str | Path | Given | References | None
    pattern: str
    targets: str | Path | None
    features: Sequence[Spec]
    settings: MetricSettings
    config: Configuration
    shared: Shared
    progress: bool

    def evaluate(self, folder: Path, of_run: bool = True) -> Evaluation:
        """Score one run folder, or one folder of pictures."""
        recorded = _recorded(folder) if of_run else None
        network = _network(self.model, recorded, self.config, self.shared)
        names, own = network.class_names, network.preprocessing
        table = None if self.targets is None else Path(self.targets).expanduser()
        pictures = (
            run_pictures(folder, names, own) if of_run else folder_pictures(folder, names, own, self.pattern, table)
        )
        if of_run:
            warn_of_change(folder, network)
        _check_targets(pictures.targets, network)
        natural = _references(self.references, recorded, self.config, network, pictures.targets)
        return evaluate_pictures(
            *(network, pictures, natural, self.judges, self.metrics, self.features, self.settings),
            self.config.cache,
            readout=_directions(pictures.targets, recorded, network),
            keep=recorded is None or recorded.config.references.cache,
            shared=self.shared,
            progress=self.progress,
        )


def evaluate_pictures(
    network: VisionNetwork,
    pictures: PictureSet,
    references: References | None,
    judges: Sequence[Judge],
    metrics: Sequence[all_metrics.Metric],
    features: Sequence[Spec],
    settings: MetricSettings,
    cache_dir: Path,
    *,
    readout: Readout | None = None,
    keep: bool = False,
    shared: Shared | None = None,
    progress: bool = False,
) -> Evaluation:
    """Score pictures that are in memory; see :func:`evaluate`.

    Args:
        network, pictures: the network, and the pictures that were made for it, with their targets.
        references: natural images of the targets; None: metrics that need references are not computed.
        judges, features, settings: see :func:`evaluate`.
        metrics: the result of :func:`vital_exp.evaluation.metrics.chosen`.
        cache_dir: the folder of downloaded weights, and of networks' outputs for natural images.
        readout: for directions, the read-out with one row per target.
        keep: whether networks' outputs for natural images are read from and written to ``cache_dir``.
        shared: networks and readings that were loaded for other pictures.
        progress: whether progress bars are shown on a terminal.

    Raises:
        UsageError: an unknown judge, or, for pictures of classes, a judge with other classes.
    """
    shared = shared or Shared(cache_dir, settings.download)
    there, absent = _judges(judges, network, shared, of_classes=pictures.targets[0].layer is None)
    load = shared.views(_loaders(features, network, settings, shared))
    spaces = [TARGET, *there, *absent, *(name for name in load if name != CLIP)]
    evidence = Evidence(
        *(network, pictures.targets, pictures.pixels),
        references=None if isinstance(references, NoReferences) else references,
        judges=there,
        absent=absent,
        load=load,
        spaces=spaces,
        results=pictures.results,
        readout=readout,
        settings=settings,
        kept=cache_dir if keep else None,
        readings=shared.readings,
        progress=progress,
    )
    return _measured(evidence, metrics, pictures, there)


def _measured(
    evidence: Evidence,
    metrics: Sequence[all_metrics.Metric],
    pictures: PictureSet,
    judges: Mapping[str, VisionNetwork],
) -> Evaluation:
    scores = all_metrics.measure(evidence, metrics)
    activations = evidence.activations.tolist() if TARGET in evidence.passes else None
    told = (pictures.targets, scores, activations, pictures.unreadable, dict(evidence.passes))
    return Evaluation(*told, predictions=_predictions(evidence, evidence.network, judges))


def _predictions(
    evidence: Evidence, network: VisionNetwork, judges: Mapping[str, VisionNetwork]
) -> dict[str, list[str]]:
    """Return the classes that the network and the judges predict for pictures of classes, as columns of metrics.csv."""
    found = {}
    for view, one in {TARGET: network, **judges}.items() if evidence.targets[0].layer is None else ():
        logits = evidence.reading(view).logits if view in evidence.passes else None
        if logits is not None:
            suffix = "" if view == TARGET else f"[{view}]"
            found[f"{PREDICTED}{suffix}"] = predicted(logits, one.head, network.class_names)
    return found


def settings_of(group: Mapping[str, Any]) -> MetricSettings:
    """Return the settings in the configuration group ``evaluation``.

    Raises:
        UsageError: a subset size that is not a whole number of at least 2, a download that is not a boolean, or an
            unknown LPIPS network, CLIP template or Inception feature layer.
    """
    size, download = group["kid_subset_size"], group["download"]
    if size is not None:
        whole_number("evaluation.kid_subset_size", size, 2)
    flag("download", download)
    lpips, clip = LpipsSettings(**group["lpips"]), ClipSettings(**group["clip"])
    for key, value, allowed in (("lpips.net", lpips.net, BACKBONES), ("clip.templates", clip.templates, TEMPLATES)):
        one_of(f"evaluation.{key}", value, allowed)
    features = group["inception_features"]
    if features not in FEATURES:
        raise UsageError("evaluation.inception_features", features, f"one of {', '.join(map(str, FEATURES))}")
    return MetricSettings(download, size, group["inception"], features, lpips, clip)


def _recorded(folder: Path) -> RunRecord:
    if not RunRecord.is_there(folder):
        raise UsageError("run", folder, "has no .hydra/config.yaml: give it as pictures=folder/images, and model=...")
    return RunRecord.of(folder)


def _network(model: Judge | None, recorded: RunRecord | None, config: Configuration, shared: Shared) -> VisionNetwork:
    if isinstance(model, VisionNetwork):
        return model
    spec = model if model is not None or recorded is None else recorded.model
    if spec is None:
        raise UsageError("model", None, "the network the pictures were made for is needed: model=resnet50")
    if isinstance(spec, Mapping) and spec.get("source") == "python" and not spec.get("factory"):
        raise UsageError("model", None, "the run's network was handed over in Python: evaluate(run, model=network)")
    try:
        network = shared.network(spec, "model")
    except NotComputed as error:
        raise UsageError("download", shared.download, f"the network {error}") from error
    return _placed(network, config)


def _placed(network: VisionNetwork, config: Configuration) -> VisionNetwork:
    from vital_exp.setup.parts import device_of

    moved: VisionNetwork = network.to(device_of(config))
    return moved


def _check_targets(targets: Sequence[Target], network: VisionNetwork) -> None:
    """Check that the network has the targets, and that all are classes or all are of one layer."""
    places = {(target.layer, target.is_direction) for target in targets}
    if len(places) > 1:
        names = ", ".join(sorted(str(layer or "classes") for layer, _ in places))
        raise UsageError("pictures", names, "targets of one layer, or classes, are scored at a time")
    layer = targets[0].layer
    if layer is None:
        for target in targets:
            if network.class_names is not None:
                network.classes.check(target.index, "targets")
        return
    from vital_exp.models.layers import unit_shape

    shape = unit_shape(network, layer, "targets")
    for target in targets:
        check_unit(target, shape, "targets")


def _references(
    given: str | Path | Given | References | None,
    recorded: RunRecord | None,
    config: Configuration,
    network: VisionNetwork,
    targets: Sequence[Target],
) -> References | None:
    """Return the references: given in Python, else named by the command, else recorded by the run; or None."""
    if isinstance(given, (Tensor, Mapping)):
        return as_references(given, network)
    if given is not None and not isinstance(given, (str, Path)):
        return given
    if given is not None:
        config = config.with_keys(references__root=str(given))
    named = config.references.root is not None or config.references.source != "folder"
    record = RunRecord(Path(), _with_model(config, recorded)) if named else recorded
    if record is None:
        return None
    keys = record.config.references
    if keys.source == "tensors":
        return None  # tensors passed in Python are not recorded
    if targets[0].layer is not None and keys.source == "folder":
        if keys.root is None:
            return None
        raise UsageError("references", "folder", "hidden units take references=mined, which finds theirs in the folder")
    try:
        return record.references(network, targets, cache_dir=config.cache_dir)
    except UsageError as error:
        if named:
            raise
        return NoReferences(f"those of the run are not there any more: {error}")


def _with_model(config: Configuration, recorded: RunRecord | None) -> Configuration:
    """Return the command's configuration with the run's model and target, on which references depend too."""
    usual = {"model": {"source": ""}, "target": {}}
    own = usual if recorded is None else {**usual, **recorded.config}
    return config.with_keys(**{key: own[key] for key in usual if not config.get(key)})


def _directions(targets: Sequence[Target], recorded: RunRecord | None, network: VisionNetwork) -> Readout | None:
    """Return the read-out of directions, whose vectors only a run's configuration names; None for other targets."""
    if not targets[0].is_direction:
        return None
    if recorded is None:
        raise UsageError(
            "pictures", targets[0].name, "directions are scored in their run folder, which names their file"
        )
    return recorded.readout(network, targets)


def _judges(
    judges: Sequence[Judge], network: VisionNetwork, shared: Shared, of_classes: bool
) -> tuple[dict[str, VisionNetwork], dict[str, str]]:
    """Return the available judges by name, and for each other judge what it lacks.

    For hidden units a judge's classes are not checked, because only its embedding is used."""
    there: dict[str, VisionNetwork] = {}
    absent: dict[str, str] = {}
    for judge in judges:
        try:
            built = judge if isinstance(judge, VisionNetwork) else shared.network(judge, "judges")
        except NotComputed as error:
            absent[_name(judge)] = str(error)
            continue
        if of_classes and network.class_names is not None:
            check_judge(built, network, "judges")
        there[built.name] = built.to(network.device)
    return there, absent


def _name(spec: Judge) -> str:
    if isinstance(spec, Mapping):
        return str(spec.get("name") or spec.get("factory"))
    return str(spec)


def _loaders(
    features: Sequence[Spec], network: VisionNetwork, settings: MetricSettings, shared: Shared
) -> dict[str, Load]:
    """Return the function that loads each further view when a metric first needs it."""
    device, clip = network.device, settings.clip
    other = settings.inception_features != PUBLISHED
    inception = f"{INCEPTION}-{settings.inception_features}" if other else INCEPTION  # results name the layer

    def space(spec: Spec) -> NetworkReader:
        return NetworkReader(shared.network(spec, "features").to(device))

    return {
        **{_name(spec): partial(space, spec) for spec in features},
        inception: lambda: load_inception(settings.inception, settings.download, device, settings.inception_features),
        CLIP: lambda: load_clip(
            *(clip.model, clip.checkpoint, clip.pretrained, clip.templates, settings.download, device, shared.cache_dir)
        ),
    }
