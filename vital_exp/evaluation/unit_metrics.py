"""Metrics of pictures of units: whether they drive their own unit, and resemble the natural images that drive it.

Each has a ceiling, the same measure of the unit's natural images (``_natural``), and a floor, chance (``_chance``) or
natural images of other units (``_others``). Facets of one unit do not count as other units. Formulas:
docs/methods/metrics.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vital_exp.errors import UsageError
from vital_exp.evaluation import mis as machine
from vital_exp.evaluation import path_similarity as path
from vital_exp.evaluation.activation import own_first, shares
from vital_exp.evaluation.correspondence import correspondence as of_picture
from vital_exp.evaluation.correspondence import natural_correspondence, unit_vectors
from vital_exp.evaluation.evidence import PIXELS, TARGET, Evidence
from vital_exp.evaluation.ranking import auc
from vital_exp.evaluation.score import NotComputed, Score

Scores = dict[str, Score]
NAN = float("nan")
LEAST_ENERGY = 1e-4  # of high frequencies: smaller values come from rounding to 8 bits


# How strongly units are driven


def activation_ratio(evidence: Evidence, _view: str) -> Scores:
    """The picture's activation as a share of the unit's largest on natural images, whose ceiling is 1 by definition."""
    activations, largest = evidence.activations, largest_natural(evidence)
    values = [
        float(value) / natural if natural > 0 else NAN for value, natural in zip(activations, largest, strict=True)
    ]
    return {"activation_ratio": Score.mean(values)}


def activation_ratio_others(evidence: Evidence, _view: str) -> Scores:
    """A unit's mean activation on other units' natural images, as a share of its largest on natural images."""
    _check_units(evidence)
    found = _natural_shares(evidence)
    by_unit = {
        number: float(found[evidence.others(place), number].mean())
        for number, place in enumerate(evidence.whole_units)
        if evidence.others(place).any()
    }
    return {"activation_ratio_others": _of_wholes(evidence, by_unit)}


def own_unit_first(evidence: Evidence, _view: str) -> Scores:
    """How often a picture drives its own unit most, activations taken as shares of each unit's largest natural one."""
    if evidence.of_classes:
        raise NotComputed("needs hidden units; for classes, accuracy is the same question")
    _check_units(evidence)
    units = evidence.reading(TARGET).units
    assert units is not None
    own = torch.tensor(evidence.whole_of)
    largest = _largest_of_wholes(evidence)
    values = own_first(shares(units[:, evidence.whole_units], largest), own)
    competing = int((largest > 0).sum())
    chance = 1 / max(1, competing)
    return {
        "own_unit_first": Score.mean(values.tolist()),
        "own_unit_first_natural": _of_wholes(evidence, _strongest_first(evidence)),
        "own_unit_first_chance": Score(chance, n=competing),
    }


def _strongest_first(evidence: Evidence) -> dict[int, float]:
    """By whole unit, whether the natural image that drives it most drives it more than all other units."""
    found = _natural_shares(evidence)  # (M, K)
    owners = torch.tensor(evidence.facet_of)[evidence.natural.labels]
    first = {}
    for number in range(found.shape[1]):
        own = found[owners == number]
        if len(own) and not own[:, number].isnan().any():
            strongest = own[own[:, number].argmax()]
            first[number] = float(own_first(strongest[None], torch.tensor([number])))
    return first


def _natural_shares(evidence: Evidence) -> Tensor:
    """The activation of each natural image in each whole unit, as a share of the unit's largest, (M, K)."""
    units = evidence.natural_reading(TARGET).units
    if units is None:
        raise NotComputed("needs a network with class outputs")
    return shares(units[:, evidence.whole_units], _largest_of_wholes(evidence))


def _largest_of_wholes(evidence: Evidence) -> Tensor:
    by_unit = dict(zip(evidence.whole_of, largest_natural(evidence), strict=True))
    return torch.tensor([by_unit[number] for number in range(len(evidence.whole_units))])


def largest_natural(evidence: Evidence) -> list[float]:
    """Return the largest activation of each target's unit on natural images: of the index, or else of the references.

    Raises:
        NotComputed: the index does not hold the units, or there are no natural images.
    """
    if known := _mined(evidence):
        return known
    units = evidence.natural_reading(TARGET).units
    if units is None:
        raise NotComputed("needs a network with class outputs")
    return units.amax(dim=0)[evidence.unit_of].tolist()


def _mined(evidence: Evidence) -> list[float]:
    """The largest activation of each target's unit in the index of mined references; empty without an index."""
    if evidence.references is None:
        return []
    try:
        found = [evidence.references.largest_activation(target) for target in evidence.targets]
    except UsageError as error:
        raise NotComputed(f"needs the mining of these units ({error})") from error
    return [one for one in found if one is not None]


def _check_units(evidence: Evidence) -> None:
    if len(evidence.whole_units) < 2:
        facets = " (facets of one unit are one)" if len(evidence.units) > 1 else ""
        raise NotComputed(f"needs at least 2 units, and there is 1{facets}")


def _of_wholes(evidence: Evidence, by_unit: dict[int, float]) -> Score:
    """The mean over whole units, all facets and variations of a unit together."""
    return Score.mean([by_unit.get(number, NAN) for number in evidence.whole_of], evidence.whole_of)


# Whether pictures resemble what drives their unit


def correspondence(evidence: Evidence, view: str) -> Scores:
    """Whether an embedding finds the picture more similar to natural images of its own unit than of another unit.

    Of a unit with facets, only images of the picture's facet count as its own; images of the other facets are left out.
    The ceiling takes each own image in turn as the picture.
    """
    natural = unit_vectors(evidence.natural_reading(view).features)
    shown = unit_vectors(evidence.reading(view).features)
    pictures: list[float] = [NAN] * len(evidence.targets)
    ceiling: dict[int, float] = {}
    for facet in range(len(evidence.units)):
        own, others = natural[evidence.natural.of(facet)], natural[evidence.others(facet)]
        ceiling[facet] = natural_correspondence(own, others)
        for number, place in enumerate(evidence.unit_of):
            if place == facet:
                pictures[number] = of_picture(shown[number], own, others)
    values = evidence.spread(ceiling)
    lacking = "needs at least 2 natural images of a unit, and some of another unit"
    finite = any(map(math.isfinite, values))
    return {
        "correspondence_auc": _two_units(evidence, pictures),
        "correspondence_auc_natural": Score.mean(values, evidence.unit_of) if finite else Score.missing(lacking),
    }


def cosy(evidence: Evidence, _view: str) -> Scores:
    """CoSy's two measures, which compare the picture's activation with those of other units' natural images."""
    activations, units = evidence.activations, evidence.natural_reading(TARGET).units
    assert units is not None
    areas, deviations = [], []
    for value, unit in zip(activations, evidence.unit_of, strict=True):
        control = units[evidence.others(unit), unit]
        enough = len(control) > 1
        areas.append(auc(value[None], control) if enough else NAN)
        spread = float(control.std()) if enough else 0.0
        deviations.append(float(value - control.mean()) / spread if spread > 0 else NAN)
    return {"cosy_auc": _two_units(evidence, areas), "cosy_mad": _two_units(evidence, deviations)}


def _two_units(evidence: Evidence, values: Sequence[float]) -> Score:
    if not any(map(math.isfinite, values)):
        facets = " that are not facets of one unit" if len(evidence.units) > len(evidence.whole_units) else ""
        raise NotComputed(f"needs natural images of at least 2 targets{facets}")
    return Score.mean(values)


def mis(evidence: Evidence, view: str) -> Scores:
    """The machine interpretability score of natural references (the ceiling) and of pictures; 0.5 by chance.

    All facets of a unit count together, because each shows a part of what the unit answers to.
    """
    shown, natural = evidence.reading(view).features, evidence.natural_reading(view).features
    units = evidence.natural_reading(TARGET).units
    if units is None:
        raise NotComputed("needs a network with class outputs")
    owners = torch.tensor(evidence.whole_of)
    ceiling, found = {}, {}
    for number, place in enumerate(evidence.whole_units):
        own, activations = owners == number, units[:, place]
        ceiling[number] = machine.natural_interpretability(natural, activations, seed=number)
        if len(evidence.whole_units) > 1:
            pictures = shown[own], shown[~own]
            found[number] = machine.picture_interpretability(natural, activations, *pictures, seed=number)
    scores: Scores = {}
    for kind, by_unit in (("natural", ceiling), ("pictures", found)):
        if not by_unit:
            scores[f"mis_{kind}"] = Score.missing("needs pictures of at least 2 units, and there is 1")
            continue
        for part in ("score", "fraction"):
            name = f"mis_{kind}" if part == "score" else f"mis_{kind}_fraction"
            scores[name] = _of_wholes(evidence, {unit: getattr(one, part) for unit, one in by_unit.items()})
    return scores


def path_similarity(evidence: Evidence, _view: str) -> Scores:
    """Path similarity of pictures and natural images of their facet, of all layers together and of each layer."""
    labels = torch.tensor(evidence.unit_of)
    shown, natural = evidence.reading(TARGET).layers, evidence.natural_reading(TARGET).layers
    owners, facet_of = evidence.natural.labels[evidence.natural.path], evidence.facet_of
    scores: Scores = {}
    try:
        for measure in path.MEASURES:
            name = "path_similarity" if measure == "spearman" else f"path_similarity_{measure}"
            scores[name] = _path_score(evidence, path.pooled(shown, labels, natural, owners, measure, facet_of))
        for layer in shown:
            one = path.path_similarity(shown[layer], labels, natural[layer], owners, facet_of=facet_of)
            scores[f"path_similarity[{layer}]"] = _path_score(evidence, one)
    except ValueError as error:
        raise NotComputed(f"needs natural images of at least 2 targets ({error})") from error
    return scores


def _path_score(evidence: Evidence, found: path.PathSimilarity) -> Score:
    """The score; missing where natural images of one unit are not clearly more similar than those of two units."""
    if found.scale_low <= 0:
        alike = f"{found.same:.3f} against {found.different:.3f}"
        return Score.missing(f"needs natural images of one unit that are more similar than those of two ({alike})")
    kind, kinds = ("class", "classes") if evidence.of_classes else ("unit", "units")
    natural = f"same {kind} {found.same:.3f}, other {kinds} {found.different:.3f}"
    raw = f"raw: picture {found.picture:.3f}, {natural}"
    values = tuple(evidence.spread(found.by_class))
    return Score(found.value, found.low, found.high, found.n, raw, values)


# Fine grain


def high_frequency_ratio(evidence: Evidence) -> Scores:
    """The picture's high-frequency energy over the median of its own natural images'; geometric mean over pictures.

    ``high_frequency_natural`` is the mean of the medians over units.

    Raises:
        NotComputed: there are no natural images.
    """
    energy = evidence.reading(PIXELS).features[:, 1]
    natural = evidence.natural_reading(PIXELS).features[:, 1]
    own = {unit: natural[evidence.natural.of(unit)] for unit in range(len(evidence.units))}
    medians = {unit: float(values.quantile(0.5)) for unit, values in own.items() if len(values)}
    ratios = [
        max(float(value), LEAST_ENERGY) / max(median, LEAST_ENERGY)
        for value, median in zip(energy, evidence.spread(medians), strict=True)
    ]
    return {
        "high_frequency_ratio": Score.geometric_mean(ratios),
        "high_frequency_natural": Score.mean(evidence.spread(medians), evidence.unit_of),
    }
