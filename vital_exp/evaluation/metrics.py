"""All metrics: what each needs, which direction is better, and how it is computed from the evidence.

Formulas and sources: docs/methods/metrics.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from vital_exp.errors import UsageError
from vital_exp.evaluation import clip as clip_words
from vital_exp.evaluation import distances, mis, path_similarity, semantic_lens
from vital_exp.evaluation.evidence import CLIP, PIXELS, TARGET, Evidence
from vital_exp.evaluation.perceptual import load_lpips, mean_distance
from vital_exp.evaluation.ranking import auc
from vital_exp.evaluation.reading import Reading
from vital_exp.evaluation.recognition import verdicts
from vital_exp.evaluation.score import NotComputed, Score
from vital_exp.models.heads import SOFTMAX, Head

Scores = dict[str, Score]
ALL, BASIC = "all", "basic"
STUDY = "study_"  # what people answered: ratings and right names, vital_exp.evaluation.study
# What stands in for the three parts of the human study, by the beginnings of names in the table.
RATING, REFERENCES, NAMING = "(a) rating by name", "(b) picture against references", "(c) free naming"
PROXIES = {
    "clip_probability": RATING,
    "correspondence_auc": REFERENCES,
    "mis_pictures": REFERENCES,
    "naming": NAMING,
}
# What basic stands for: little more than a pass over the pictures.
BASIC_METRICS = ("accuracy", "transfer", "activation_ratio")
# What a metric is computed over: once for the pictures, for each judge, for the network and each judge, for each
# feature space.
ONCE, JUDGES, SPACES = "once", "judges", "spaces"
NAN = float("nan")


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        name: what a user asks for; the table has it, or parts of it, with a judge or feature space in brackets.
        measure: from the evidence and the name of a view to scores by name; raises NotComputed.
        over: ``ONCE``, ``JUDGES`` or ``SPACES``.
        better: +1 higher, -1 lower, 0 neither, by name in the table.
        natural: whether it needs natural images of the targets.
        classes: whether the targets must be classes.
        views: that natural images must be passed through, whatever it is computed over.
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
    logits, head = _opinion(evidence, view)
    names = {"top1": f"{name}_top1", "top5": f"{name}_top5", "probability": "probability"}
    found = verdicts(logits, evidence.labels, head)
    return {names[part]: Score.mean(values.tolist()) for part, values in found.items()}


def _opinion(evidence: Evidence, view: str) -> tuple[Tensor, Head]:
    """A view's logits of the pictures, (N, classes), and what makes probabilities of them."""
    logits, head = evidence.reading(view).logits, evidence.reader(view).head
    if logits is None:
        raise NotComputed("needs a network with class outputs")
    if head.unjudged:
        raise NotComputed(head.unjudged)
    return logits, head


def _activation_ratio(evidence: Evidence, _view: str) -> Scores:
    activations, largest = evidence.activations, _largest_natural(evidence)
    values = [
        float(value) / natural if natural > 0 else NAN for value, natural in zip(activations, largest, strict=True)
    ]
    return {"activation_ratio": Score.mean(values)}


def _largest_natural(evidence: Evidence) -> list[float]:
    """The largest natural activation of each target's unit: of a mining where there is one, else of its references."""
    mined = getattr(evidence.references, "largest_activation", None)
    if mined is not None:
        try:
            return [mined(target) for target in evidence.targets]
        except UsageError as error:
            raise NotComputed(f"needs the mining of these units ({error})") from error
    units = evidence.natural_reading(TARGET).units
    assert units is not None
    return units.amax(dim=0)[evidence.unit_of].tolist()


def _inception_score(evidence: Evidence, view: str) -> Scores:
    logits, head = _opinion(evidence, view)
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


def _by_unit(evidence: Evidence, of: Callable[[int, list[int]], float]) -> Score:
    """The mean over units of a number of each; ``of`` is given a unit and its targets, and may raise NotComputed."""
    found, reason = {}, ""
    for unit in range(len(evidence.units)):
        members = [number for number, own in enumerate(evidence.unit_of) if own == unit]
        try:
            found[unit] = of(unit, members)
        except NotComputed as error:
            reason = str(error)
    if not found:
        raise NotComputed(reason)
    return Score.mean(evidence.spread(found), evidence.unit_of)


def _diversity(evidence: Evidence, _view: str) -> Scores:
    if len(evidence.units) == len(evidence.targets):
        raise NotComputed("needs at least 2 pictures of a target: target.variations=2")
    settings = evidence.settings
    lpips = load_lpips(settings.lpips.net, settings.lpips.checkpoint, settings.download)

    def of(_unit: int, members: list[int]) -> float:
        if len(members) < 2:
            raise NotComputed("needs at least 2 pictures of a target")
        return mean_distance(lpips, evidence.pictures[members].float() / 255)

    return {"lpips_diversity": _by_unit(evidence, of)}


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


def _mis(evidence: Evidence, view: str) -> Scores:
    shown, natural = evidence.reading(view).features, evidence.natural_reading(view).features
    units = evidence.natural_reading(TARGET).units
    if units is None:
        raise NotComputed("needs a network with class outputs")
    owners = torch.tensor(evidence.unit_of)
    ceiling, found = {}, {}
    for unit in range(len(evidence.units)):
        own = owners == unit
        ceiling[unit] = mis.natural_interpretability(natural, units[:, unit], seed=unit)
        if len(evidence.units) > 1:
            found[unit] = mis.picture_interpretability(natural, units[:, unit], shown[own], shown[~own], seed=unit)
    scores: Scores = {}
    for kind, by_unit in (("natural", ceiling), ("pictures", found)):
        if not by_unit:
            scores[f"mis_{kind}"] = Score.missing("needs pictures of at least 2 units, and there is 1")
            continue
        for part in ("score", "fraction"):
            name = f"mis_{kind}" if part == "score" else f"mis_{kind}_fraction"
            values = evidence.spread({unit: getattr(one, part) for unit, one in by_unit.items()})
            scores[name] = Score.mean(values, evidence.unit_of)
    return scores


def _correspondence(evidence: Evidence, view: str) -> Scores:
    natural = _normalised(evidence.natural_reading(view))
    cosines = _normalised(evidence.reading(view)) @ natural.T  # (N, M)
    values = []
    for row, unit in zip(cosines, evidence.unit_of, strict=True):
        own = evidence.natural.of(unit)
        values.append(auc(row[own], row[~own]) if own.any() and not own.all() else NAN)
    return {"correspondence_auc": _two_units(values)}


def _cosy(evidence: Evidence, _view: str) -> Scores:
    activations, units = evidence.activations, evidence.natural_reading(TARGET).units
    assert units is not None
    areas, deviations = [], []
    for value, unit in zip(activations, evidence.unit_of, strict=True):
        control = units[~evidence.natural.of(unit), unit]
        enough = len(control) > 1
        areas.append(auc(value[None], control) if enough else NAN)
        spread = float(control.std()) if enough else 0.0
        deviations.append(float(value - control.mean()) / spread if spread > 0 else NAN)
    return {"cosy_auc": _two_units(areas), "cosy_mad": _two_units(deviations)}


def _two_units(values: Sequence[float]) -> Score:
    if not any(map(math.isfinite, values)):
        raise NotComputed("needs natural images of at least 2 targets")
    return Score.mean(values)


def _paths(evidence: Evidence, _view: str) -> Scores:
    labels = torch.tensor(evidence.unit_of)
    shown, natural = evidence.reading(TARGET).layers, evidence.natural_reading(TARGET).layers
    owners = evidence.natural.labels[evidence.natural.path]
    scores: Scores = {}
    try:
        for measure in path_similarity.MEASURES:
            name = "path_similarity" if measure == "spearman" else f"path_similarity_{measure}"
            scores[name] = _path_score(evidence, path_similarity.pooled(shown, labels, natural, owners, measure))
        for layer in shown:
            one = path_similarity.path_similarity(shown[layer], labels, natural[layer], owners)
            scores[f"path_similarity[{layer}]"] = _path_score(evidence, one)
    except ValueError as error:
        raise NotComputed(f"needs natural images of at least 2 targets ({error})") from error
    return scores


def _path_score(evidence: Evidence, found: path_similarity.PathSimilarity) -> Score:
    raw = f"raw: picture {found.picture:.3f}, same class {found.same:.3f}, other classes {found.different:.3f}"
    values = tuple(evidence.spread(found.by_class))
    return Score(found.value, found.low, found.high, found.n, raw, values)


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
            scores[name + suffix] = _by_unit(evidence, partial(_lens_of, of, features, owners))
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
    return _pixels(evidence, "high_frequency", 1, lambda values: values.clamp(min=LEAST_ENERGY).log())


def _pixels(evidence: Evidence, name: str, column: int, scale: Callable[[Tensor], Tensor]) -> Scores:
    """A statistic of the pixels, and how many standard deviations of natural images it is from their mean."""
    values = evidence.reading(PIXELS).features[:, column]
    scores = {name: Score.mean(values.tolist())}
    if evidence.references is None:
        return {**scores, f"{name}_deviation": Score.missing("needs natural images of the targets")}
    natural = scale(evidence.natural_reading(PIXELS).features[:, column])
    away = (scale(values) - natural.mean()).abs() / natural.std().clamp(min=torch.finfo(torch.float32).eps)
    return {**scores, f"{name}_deviation": Score.mean(away.tolist())}


LEAST_ENERGY = 1e-4  # of high frequencies: below it is the rounding to 8 bits


def _normalised(reading: Reading) -> Tensor:
    return torch.nn.functional.normalize(reading.features.double(), dim=1)


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
        Metric("activation_ratio", _activation_ratio, better={"activation_ratio": UP}, natural=True),
        Metric("inception_score", _inception_score, SPACES, {"inception_score": UP}),
        Metric("fid", _fid, SPACES, {"fid": DOWN}, natural=True, views=()),
        Metric("kid", _kid, SPACES, {"kid": DOWN}, natural=True, views=()),
        Metric("lpips_diversity", _diversity, better={"lpips_diversity": NEITHER}),
        Metric("clip", _clip, better={"clip": UP}, classes=True),
        Metric("naming", _naming, better={"naming": UP}, classes=True),
        Metric("mis", _mis, JUDGES, {"mis_pictures": UP, "mis_natural": NEITHER}, natural=True),
        Metric("correspondence", _correspondence, JUDGES, {"correspondence": UP}, natural=True, views=()),
        Metric("cosy", _cosy, better={"cosy": UP}, natural=True),
        Metric("path_similarity", _paths, better={"path_similarity": UP}, natural=True, layers=True),
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
    """Return whether more is better of a number by its name in the table; None when it only describes."""
    if name.startswith(STUDY):
        return True
    for metric in METRICS.values():
        for prefix, direction in metric.better.items():
            if name.startswith(prefix):
                return None if direction == NEITHER else direction == UP
    raise KeyError(name)


def proxy_of(name: str) -> str:
    """Return the part of the human study that a number stands in for, by its name in the table; empty for none."""
    return next((part for prefix, part in PROXIES.items() if name.startswith(prefix)), "")


def chosen(names: Sequence[str] | str | None, key: str = "metrics") -> list[Metric]:
    """Return the metrics of these names; ``"all"`` or None stands for all, ``"basic"`` for three.

    Raises:
        UsageError: an unknown name; the nearest are suggested.
    """
    asked = [ALL] if names is None else [names] if isinstance(names, str) else list(map(str, names))
    asked = [one for name in asked for one in (BASIC_METRICS if name == BASIC else [name])]
    for name in asked:
        if name != ALL and name not in METRICS:
            raise UsageError(key, name, f"no such metric; all, or some of {', '.join(METRICS)}", METRICS)
    if not asked:
        raise UsageError(key, "[]", "at least one metric, or all")
    if ALL in asked:
        return list(METRICS.values())
    return [METRICS[name] for name in dict.fromkeys(asked)]


def measure(evidence: Evidence, metrics: Sequence[Metric]) -> Scores:
    """Compute metrics; what cannot be computed is in the table with its reason.

    Pictures, and natural images, are passed once through each network and shared by all metrics.
    """
    natural = [metric for metric in metrics if metric.natural or metric.name in OPTIONAL_NATURAL]
    views = [view for metric in natural for view in _views(evidence, metric)]
    evidence.natural_views = list(dict.fromkeys([*views, *(v for metric in natural for v in metric.views)]))
    evidence.with_layers = any(metric.layers for metric in metrics)
    scores: Scores = {}
    for metric in metrics:
        scores |= _scores(evidence, metric)
    return scores


# Metrics that use natural images where there are some.
OPTIONAL_NATURAL = ("semantic_lens", "repetition", "high_frequency")


def _views(evidence: Evidence, metric: Metric) -> list[str]:
    """The views a metric is computed over, one after the other."""
    if metric.over == ONCE:
        return []
    if metric.over == SPACES:
        return list(dict.fromkeys(evidence.spaces))
    return [*evidence.judges, *evidence.absent]


def _scores(evidence: Evidence, metric: Metric) -> Scores:
    if metric.over == ONCE:
        return _attempt(evidence, metric, TARGET)
    views = _views(evidence, metric)
    if not views:
        return {metric.name: Score.missing("needs a judge: judges=[...]")}
    scores: Scores = {}
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
