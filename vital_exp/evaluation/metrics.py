"""All metrics: what each needs, whether higher is better, and how it is computed from the evidence.

Formulas and sources: docs/methods/metrics.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from tqdm import tqdm

from vital_exp.errors import UsageError
from vital_exp.evaluation import clip as clip_words
from vital_exp.evaluation import distances, semantic_lens
from vital_exp.evaluation import unit_metrics as units
from vital_exp.evaluation.evidence import CLIP, PIXELS, TARGET, Evidence
from vital_exp.evaluation.perceptual import load_lpips, mean_distance
from vital_exp.evaluation.recognition import verdicts
from vital_exp.evaluation.score import NotComputed, Score
from vital_exp.evaluation.unit_metrics import LEAST_ENERGY, Scores, high_frequency_ratio
from vital_exp.models.heads import SOFTMAX, Head
from vital_exp.progress_bars import hidden

ALL, BASIC, UNITS = "all", "basic", "units"
STUDY = "study_"  # begins the names of metrics of people's answers (vital_exp.evaluation.study)
# The part of the human study that a metric is a proxy of, by the beginning of the metric's name in the table.
RATING, REFERENCES, NAMING = "(a) rating by name", "(b) picture against references", "(c) free naming"
PROXIES = {
    "clip_probability": RATING,
    "correspondence_auc": REFERENCES,
    "mis_pictures": REFERENCES,
    "naming": NAMING,
}
NATURAL = "_natural"  # ends the names of metrics of natural images
# Names that stand for several metrics. Basic: one pass over the pictures, little more. Units: how readable pictures of
# hidden units are; each metric has a ceiling and a floor.
SETS: Mapping[str, tuple[str, ...]] = {
    BASIC: ("accuracy", "transfer", "activation_ratio"),
    UNITS: (
        *("activation_ratio", "activation_ratio_others", "own_unit_first"),
        *("correspondence", "mis", "path_similarity", "high_frequency"),
    ),
}
RATIOS = ("high_frequency_ratio",)  # metrics whose mean is the geometric one
# How often a metric is computed: once, for each judge, for the network itself and each judge, for each feature space.
ONCE, JUDGES, CLASSIFIERS, SPACES = "once", "judges", "classifiers", "spaces"
NAN = float("nan")


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        name: the name in the configuration. Names in the table begin with it or with a name of its parts; a judge or
            feature space follows in brackets.
        measure: maps the evidence and the name of a view to scores by name; raises NotComputed.
        over: ``ONCE``, ``JUDGES``, ``CLASSIFIERS`` or ``SPACES``.
        better: by the beginning of a name in the table, +1 for higher, -1 for lower, 0 for neither.
        natural: whether it needs natural images of the targets.
        classes: whether the targets must be classes.
        views: further views that must read the natural images.
        layers: whether it needs layers of the network.
    """

    name: str
    measure: Callable[[Evidence, str], Scores]
    over: str = ONCE
    better: Mapping[str, int] = field(default_factory=dict)
    natural: bool = False
    classes: bool = False
    views: tuple[str, ...] = (TARGET,)
    layers: bool = False


def _accuracy(evidence: Evidence, _view: str) -> Scores:
    return _recognition(evidence, TARGET, "accuracy")


def _transfer(evidence: Evidence, view: str) -> Scores:
    return _recognition(evidence, view, "transfer")


def _recognition(evidence: Evidence, view: str, name: str) -> Scores:
    logits, head = _opinion(evidence, view, evidence.reading(view).logits)
    names = {"top1": f"{name}_top1", "top5": f"{name}_top5", "probability": "probability"}
    found = verdicts(logits, evidence.labels, head)
    return {names[part]: Score.mean(values.tolist()) for part, values in found.items()}


def _crops(evidence: Evidence, view: str) -> Scores:
    logits, head = _opinion(evidence, view, evidence.crop_logits(view))
    each = len(logits) // len(evidence.targets)
    found = verdicts(logits, evidence.labels.repeat_interleave(each), head)
    first, probability = (found[part].float().view(-1, each) for part in ("top1", "probability"))  # (N, crops)
    return {
        "crops_top1": Score.mean(first.mean(dim=1).tolist()),
        "crops_any_top1": Score.mean(first.amax(dim=1).tolist()),
        "crops_probability": Score.mean(probability.mean(dim=1).tolist()),
    }


def _opinion(evidence: Evidence, view: str, logits: Tensor | None) -> tuple[Tensor, Head]:
    """A view's logits, (n, classes), and the head that makes probabilities of them."""
    head = evidence.reader(view).head
    if logits is None:
        raise NotComputed("needs a network with class outputs")
    if head.unjudged:
        raise NotComputed(head.unjudged)
    return logits, head


def _inception_score(evidence: Evidence, view: str) -> Scores:
    logits, head = _opinion(evidence, view, evidence.reading(view).logits)
    if head.kind != SOFTMAX or logits.shape[1] < 2:
        there = f"1 output, model.head={head.kind}" if logits.shape[1] == 1 else f"model.head={head.kind}"
        raise NotComputed(f"needs a softmax over at least 2 classes, and there is {there}")
    return {"inception_score": distances.inception_score(head.log_probabilities(logits) if head.inside else logits)}


def _fid(evidence: Evidence, view: str) -> Scores:
    natural = evidence.natural_reading(view)
    return {"fid": distances.fid(evidence.reading(view).features, natural.features)}


def _kid(evidence: Evidence, view: str) -> Scores:
    natural = evidence.natural_reading(view)
    pictures = evidence.reading(view).features
    return {"kid": distances.kid(pictures, natural.features, evidence.settings.kid_subset_size)}


def _by_unit(owners: Sequence[int], of: Callable[[int, list[int]], float]) -> Score:
    """The mean over units of a number; ``of`` maps a unit and its targets to the number, and may raise NotComputed.

    ``owners`` holds the unit of each target.
    """
    found, reason = {}, ""
    for unit in sorted(set(owners)):
        members = [number for number, own in enumerate(owners) if own == unit]
        try:
            found[unit] = of(unit, members)
        except NotComputed as error:
            reason = str(error)
    if not found:
        raise NotComputed(reason)
    return Score.mean([found.get(unit, NAN) for unit in owners], owners)


def _diversity(evidence: Evidence, _view: str) -> Scores:
    if len(evidence.whole_units) == len(evidence.targets):
        raise NotComputed("needs at least 2 pictures of a unit: target.variations=2 or references.facets=2")
    settings = evidence.settings
    evidence.check_rgb()
    lpips = load_lpips(settings.lpips.net, settings.lpips.checkpoint, settings.download)

    def of(_unit: int, members: list[int]) -> float:
        if len(members) < 2:
            raise NotComputed("needs at least 2 pictures of a unit")
        return mean_distance(lpips, evidence.rgb(members))

    return {"lpips_diversity": _by_unit(evidence.whole_of, of)}


def _clip(evidence: Evidence, _view: str) -> Scores:
    model = evidence.reader(CLIP)
    assert isinstance(model, clip_words.Clip)
    pictures, names = evidence.reading(CLIP).features, evidence.network.classes
    if len(names) < 2:
        raise NotComputed("needs the names of at least 2 classes to choose from, and there is 1")
    texts = model.names([names.label(index) for index in range(len(names))])
    cosines = pictures @ texts.T
    own = cosines.gather(1, evidence.labels[:, None])[:, 0]
    parts = verdicts(model.scale * cosines, evidence.labels)
    scores = {f"clip_{part}": Score.mean(values.tolist()) for part, values in parts.items()}
    return {**scores, "clip_score": Score.mean((100 * own).clamp(min=0).tolist())}


def _naming(evidence: Evidence, _view: str) -> Scores:
    model, names = evidence.reader(CLIP), evidence.network.classes
    assert isinstance(model, clip_words.Clip)
    words = model.names(clip_words.vocabulary(evidence.settings.clip.vocabulary, names))
    own = model.names([names.label(target.index) for target in evidence.targets])
    return {"naming": Score.mean(clip_words.naming(evidence.reading(CLIP).features, words, own).tolist())}


def _semantic_lens(evidence: Evidence, view: str) -> Scores:
    shown, owners = evidence.reading(view).features, torch.tensor(evidence.unit_of)
    scores = _lens(evidence, shown, owners, "")
    if evidence.references is not None:
        natural = evidence.natural_reading(view).features
        scores |= _lens(evidence, natural, evidence.natural.labels, "_natural")
    return scores


def _lens(evidence: Evidence, features: Tensor, owners: Tensor, suffix: str) -> Scores:
    scores: Scores = {}
    for name, of in (("clarity", semantic_lens.clarity), ("polysemanticity", semantic_lens.polysemanticity)):
        try:
            scores[name + suffix] = _by_unit(evidence.unit_of, partial(_lens_of, of, features, owners))
        except NotComputed as error:
            scores[name + suffix] = Score.missing(str(error))
    present = owners.unique().tolist()
    unit = torch.nn.functional.normalize(features.double(), dim=1)
    try:
        values = semantic_lens.redundancy(torch.stack([unit[owners == place].mean(dim=0) for place in present]))
        by_unit = dict(zip(present, values.tolist(), strict=True))
        scores[f"redundancy{suffix}"] = Score.mean(evidence.spread(by_unit), evidence.unit_of)
    except NotComputed as error:
        scores[f"redundancy{suffix}"] = Score.missing(str(error))
    return scores


def _lens_of(of: Callable[[Tensor], float], features: Tensor, owners: Tensor, unit: int, _members: list[int]) -> float:
    return of(features[owners == unit])


def _repetition(evidence: Evidence, _view: str) -> Scores:
    return _pixels(evidence, "repetition", 0, lambda values: values)


def _high_frequency(evidence: Evidence, _view: str) -> Scores:
    scores = _pixels(evidence, "high_frequency", 1, lambda values: values.clamp(min=LEAST_ENERGY).log())
    if evidence.references is None:
        return {**scores, "high_frequency_ratio": Score.missing("needs natural images of the targets")}
    return {**scores, **high_frequency_ratio(evidence)}


def _pixels(evidence: Evidence, name: str, column: int, scale: Callable[[Tensor], Tensor]) -> Scores:
    """A statistic of the pixels, and its distance from natural images' mean in units of their standard deviation."""
    values = evidence.reading(PIXELS).features[:, column]
    scores = {name: Score.mean(values.tolist())}
    if evidence.references is None:
        return {**scores, f"{name}_deviation": Score.missing("needs natural images of the targets")}
    natural = scale(evidence.natural_reading(PIXELS).features[:, column])
    away = (scale(values) - natural.mean()).abs() / natural.std().clamp(min=torch.finfo(torch.float32).eps)
    return {**scores, f"{name}_deviation": Score.mean(away.tolist())}


def _seconds(evidence: Evidence, _view: str) -> Scores:
    return {"seconds": _recorded(evidence, "seconds")}


def _memory(evidence: Evidence, _view: str) -> Scores:
    return {"memory": _recorded(evidence, "memory")}


def _recorded(evidence: Evidence, key: str) -> Score:
    values = [result.get(key) for result in evidence.results]
    numbers = [float(value) if isinstance(value, (int, float)) else NAN for value in values]
    if not any(map(math.isfinite, numbers)):
        raise NotComputed(f"needs a run folder that recorded the {key} of its pictures")
    return Score.mean(numbers)


UP, DOWN, NEITHER = 1, -1, 0
METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", _accuracy, better={"accuracy": UP, "probability": UP}, classes=True),
        Metric("transfer", _transfer, JUDGES, {"transfer": UP}, classes=True),
        Metric("crops", _crops, CLASSIFIERS, {"crops": UP}, classes=True),
        Metric("activation_ratio", units.activation_ratio, better={"activation_ratio": UP}, natural=True),
        Metric(
            "activation_ratio_others",
            units.activation_ratio_others,
            better={"activation_ratio_others": NEITHER},
            natural=True,
        ),
        Metric(
            "own_unit_first",
            units.own_unit_first,
            better={"own_unit_first": UP, "own_unit_first_natural": NEITHER, "own_unit_first_chance": NEITHER},
            natural=True,
        ),
        Metric("inception_score", _inception_score, SPACES, {"inception_score": UP}),
        Metric("fid", _fid, SPACES, {"fid": DOWN}, natural=True, views=()),
        Metric("kid", _kid, SPACES, {"kid": DOWN}, natural=True, views=()),
        Metric("lpips_diversity", _diversity, better={"lpips_diversity": NEITHER}),
        Metric("clip", _clip, better={"clip": UP}, classes=True),
        Metric("naming", _naming, better={"naming": UP}, classes=True),
        Metric("mis", units.mis, JUDGES, {"mis_pictures": UP, "mis_natural": NEITHER}, natural=True),
        Metric(
            "correspondence",
            units.correspondence,
            JUDGES,
            {"correspondence": UP, "correspondence_auc_natural": NEITHER},
            natural=True,
            views=(),
        ),
        Metric("cosy", units.cosy, better={"cosy": UP}, natural=True),
        Metric("path_similarity", units.path_similarity, better={"path_similarity": UP}, natural=True, layers=True),
        Metric(
            "semantic_lens",
            _semantic_lens,
            JUDGES,
            {"clarity": NEITHER, "redundancy": NEITHER, "polysemanticity": NEITHER},
            views=(),
        ),
        Metric(
            "repetition", _repetition, better={"repetition_deviation": DOWN, "repetition": NEITHER}, views=(PIXELS,)
        ),
        Metric(
            "high_frequency",
            _high_frequency,
            better={"high_frequency_deviation": DOWN, "high_frequency": NEITHER},
            views=(PIXELS,),
        ),
        Metric("seconds", _seconds, better={"seconds": DOWN}),
        Metric("memory", _memory, better={"memory": DOWN}),
    )
}


def higher_is_better(name: str) -> bool | None:
    """Return whether higher is better, for a name in the table; None for a metric that only describes."""
    if name.startswith(STUDY):
        return True
    known = {prefix: direction for metric in METRICS.values() for prefix, direction in metric.better.items()}
    fitting = [prefix for prefix in known if name.startswith(prefix)]
    if not fitting:
        raise KeyError(name)
    direction = known[max(fitting, key=len)]
    return None if direction == NEITHER else direction == UP


def proxy_of(name: str) -> str:
    """Return the part of the human study that a metric is a proxy of, for a name in the table; empty: none."""
    if name.partition("[")[0].endswith(NATURAL):
        return ""
    return next((part for prefix, part in PROXIES.items() if name.startswith(prefix)), "")


NAMES = (ALL, *SETS, *METRICS)  # allowed in the configuration


def chosen(names: Sequence[str] | str | None, key: str = "metrics") -> list[Metric]:
    """Return metrics by name; ``"all"`` or None stands for all, ``"basic"`` and ``"units"`` for those of ``SETS``.

    Raises:
        UsageError: a name is unknown, or there is none.
    """
    asked = [ALL] if names is None else [names] if isinstance(names, str) else list(map(str, names))
    asked = [one for name in asked for one in SETS.get(name, (name,))]
    for name in asked:
        if name != ALL and name not in METRICS:
            raise UsageError(key, name, "no such metric; vital-evaluate --help evaluation lists all", NAMES)
    if not asked:
        raise UsageError(key, "[]", "at least one metric, or all of them: all")
    if ALL in asked:
        return list(METRICS.values())
    return [METRICS[name] for name in dict.fromkeys(asked)]


def measure(evidence: Evidence, metrics: Sequence[Metric]) -> Scores:
    """Return the scores of metrics by name. The score of a metric that cannot be computed holds the reason.

    Pictures and natural images pass through each network once, for all metrics together.
    """
    natural = [metric for metric in metrics if metric.natural or metric.name in OPTIONAL_NATURAL]
    views = [view for metric in natural for view in _views(evidence, metric)]
    evidence.natural_views = list(dict.fromkeys([*views, *(v for metric in natural for v in metric.views)]))
    evidence.with_layers = any(metric.layers for metric in metrics)
    scores: Scores = {}
    disable = hidden(evidence.progress)
    with tqdm(metrics, desc="metrics", unit="metric", leave=False, disable=disable, dynamic_ncols=True) as bar:
        for metric in bar:
            bar.set_postfix_str(metric.name)
            scores |= _scores(evidence, metric)
    return scores


OPTIONAL_NATURAL = ("semantic_lens", "repetition", "high_frequency")  # use natural images, but do not need them


def _views(evidence: Evidence, metric: Metric) -> list[str]:
    """The views for each of which a metric is computed; empty for a metric that is computed once."""
    if metric.over == ONCE:
        return []
    if metric.over == SPACES:
        return list(dict.fromkeys(evidence.spaces))
    return [*evidence.judges, *evidence.absent]


def _scores(evidence: Evidence, metric: Metric) -> Scores:
    scores = _attempt(evidence, metric, TARGET) if metric.over in (ONCE, CLASSIFIERS) else {}
    views = _views(evidence, metric)
    if not views and metric.over == JUDGES:
        return {metric.name: Score.missing("needs a judge: judges=[...]")}
    for view in views:
        scores |= {f"{name}[{view}]": score for name, score in _attempt(evidence, metric, view).items()}
    return scores


def _attempt(evidence: Evidence, metric: Metric, view: str) -> Scores:
    try:
        if metric.classes and not evidence.of_classes:
            raise NotComputed("needs class targets, and these are hidden units")
        if metric.natural and evidence.references is None:
            raise NotComputed("needs natural images of the targets: references.root=folder")
        return metric.measure(evidence, view)
    except NotComputed as error:
        return {metric.name: Score.missing(str(error))}
