"""How far a unit's two extreme pictures determine it, for each class of functions (docs/methods/theory.md)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vital_exp.attacks import function_classes as classes
from vital_exp.attacks.function_classes import Bounds, Known
from vital_exp.attacks.natural import NaturalImages
from vital_exp.attacks.pictures import make_pictures
from vital_exp.attacks.recorded import RecordedRun
from vital_exp.attacks.settings import AuditSettings
from vital_exp.errors import UsageError
from vital_exp.images.output import quantised, resized
from vital_exp.models.network import VisionNetwork, model_space
from vital_exp.models.precision import exact
from vital_exp.models.unit_readout import unit_readout
from vital_exp.references.base import References
from vital_exp.targets.readout import Readout
from vital_exp.targets.unit import Target
from vital_exp.targets.words import in_words

LARGEST = 200  # natural images that are compared; of more, evenly spread ones
PER_PASS = 16
FACTORS = (1, 2, 4)  # Lipschitz constants, as multiples of the least one that the two pictures allow
DIMENSIONS = (2, 8)  # numbers of dimensions of affine functions, beside one and all
DECIDED, OPEN = 0.01, 0.99  # shares of the range below which a class is decided, above which it is open
FACTS = (
    "lipschitz_constant",
    "least_lipschitz_constant",
    "binding_radius",
    "nearest_image",
    "images_within",
    "picture_above_images",
)


@dataclass(frozen=True)
class UnitFunction:
    """A unit as a function of pictures.

    Attributes:
        network: the frozen network.
        read: the unit's read-out.
        size: (C, H, W) of the pictures.
    """

    network: VisionNetwork
    read: Readout
    size: tuple[int, ...]

    def __call__(self, points: Tensor) -> Tensor:
        """Return the unit's values (N,), float64, at points (N, C H W) in [0, 1]: the logit, or a channel's maximum."""
        with torch.no_grad():
            return torch.cat([self._values(part).double() for part in points.split(PER_PASS)]).cpu()

    def _values(self, points: Tensor) -> Tensor:
        taps = self.network.taps([self.read.layer])
        activations, _ = taps(model_space(points.view(-1, *self.size).float(), self.network))
        return self.read.select([0] * len(points)).value(exact(activations[self.read.layer]))

    def steepness(self, points: Tensor) -> Tensor:
        """Return the Euclidean norm of the unit's gradient by the values in [0, 1] at each point, (N,)."""
        found = []
        for part in points.split(PER_PASS):
            given = part.float().requires_grad_()
            with torch.enable_grad():
                (gradient,) = torch.autograd.grad(self._values(given).sum(), given)
            found.append(gradient.double().norm(dim=1).cpu())
        return torch.cat(found)


def decided(run: RecordedRun, target: Target, settings: AuditSettings) -> tuple[list[dict[str, Any]], Tensor]:
    """Return a row per class of functions, and the two pictures (2, C, H, W), the maximising one first.

    Columns: target, label, class, construction, n, undecided, undecided_mean, difference, and ``FACTS``. Undecided is
    the distance between the largest and the smallest member of the class that agree with f at the pictures, as a share
    of the range of f: the largest over natural images, and the mean. Difference is the largest distance of f from the
    farther member, as a share of the range.

    Raises:
        UsageError: the target is a direction, or the unit has the same value for all images.
    """
    if target.is_direction:
        raise UsageError("run", run.folder, "a run of classes, channels or neurons is needed, not of directions")
    known, unit, f = known_of(run, target, settings)
    facts = lipschitz_facts(known, unit, f)
    rows = []
    for name, construction, bounds in constructions(known, unit, facts["lipschitz_constant"]):
        words = {"target": target.name, "label": target.label, "class": name, "construction": construction}
        rows.append(words | measured(known, f, bounds) | facts)
    return rows, known.pictures.float().view(2, *unit.size)


def known_of(run: RecordedRun, target: Target, settings: AuditSettings) -> tuple[Known, UnitFunction, Tensor]:
    """Return what is known of a unit (see :class:`Known`), the unit, and its values (N,) at the natural images."""
    place = run.targets.index(target)
    picture = resized(run.pictures[place : place + 1], run.network.preprocessing.size)
    natural = resized(everyday_images(run, settings.count), run.network.preprocessing.size)
    unit = UnitFunction(run.network, unit_readout(run.network, [target]), tuple(natural.shape[1:]))
    images = torch.unique(natural.flatten(1), dim=0).double()
    images = classes.thinned(images, min(LARGEST, images.shape[1] - 2))
    f = unit(images)
    lowest = minimising_picture(run, target, images[f.argmin()].view(unit.size), settings)
    pictures = torch.cat([picture.flatten(1), lowest.flatten()[None]]).double()
    values = unit(pictures)
    ends = torch.cat([values, f])
    low, high = float(ends.min()), float(ends.max())
    if not math.isfinite(high - low) or high - low < torch.finfo(torch.float32).eps * max(abs(low), abs(high), 1e-30):
        raise UsageError("run", run.folder, f"{target.name} is {low:g} for all images: it has no range to compare with")
    return Known(pictures, values, images, low, high), unit, f


def everyday_images(run: RecordedRun, count: int) -> Tensor:
    """Return up to ``count`` natural images of each class or, where the images have no classes, of each target."""
    found: NaturalImages | None = None
    references: References = run.references
    if run.network.class_names is not None and any(target.layer is not None for target in run.targets):
        try:
            found = run.natural(count)
        except UsageError:  # a folder that was mined need not have classes
            found = None
    if found is not None:
        return found.images
    labels = references.class_indices() if run.targets[0].layer is None else None
    asked = run.targets if labels is None else [Target("class", label) for label in labels]
    return torch.cat([run.own_images(target, count) for target in asked])


def minimising_picture(run: RecordedRun, target: Target, weakest: Tensor, settings: AuditSettings) -> Tensor:
    """Return a picture (C, H, W) that minimises the unit: Lucid's recipe with the negative activation.

    Where the picture fails (no gradient behind a ReLU), or its value is above the weakest natural image's, return that
    image.
    """
    minus = ["objective.activation.weight=-1"]
    made = make_pictures(run.network, [target], "fourier", seed=settings.seed, steps=settings.steps, overrides=minus)
    lowest = resized(quantised(made.images[0])[None], run.network.preprocessing.size)[0]
    if not torch.isfinite(lowest).all():
        return weakest
    unit = UnitFunction(run.network, unit_readout(run.network, [target]), tuple(weakest.shape))
    values = unit(torch.stack([lowest.double().flatten(), weakest.flatten()]))
    return lowest if values[0] <= values[1] else weakest


def lipschitz_facts(known: Known, unit: UnitFunction, f: Tensor) -> dict[str, float]:
    """Return ``FACTS``: a lower bound of the Lipschitz constant L, and how far from a picture L bounds the unit.

    ``lipschitz_constant`` is the largest norm of the gradient at images and pictures, or the largest slope between two
    of these, if it is larger. The true L is at least as large, so the true ``binding_radius`` is at most the one
    returned. ``images_within`` is the share of natural images nearer to a picture than that radius.
    """
    points = torch.cat([known.pictures, known.images])
    steepest = float(unit.steepness(points).max())
    estimated = max(steepest, classes.pair_slope(points, torch.cat([known.values, f])))
    nearest = torch.cdist(known.images, known.pictures).amin(dim=1)
    radius = classes.binding_radius(known, estimated)
    within, above = (nearest < radius).double().mean(), known.values[0] >= f.max()
    values = [estimated, known.slope, radius, *map(float, (nearest.min(), within, above))]
    return dict(zip(FACTS, values, strict=True))


def constructions(known: Known, unit: UnitFunction, estimated: float) -> Iterator[tuple[str, str, Bounds | None]]:
    """Yield each class of functions, the construction of its extreme members, and their bounds; None: no members."""
    yield "black box", "f at the pictures, an end of the range elsewhere", classes.black_box(known)
    yield "neural network", "f plus a ReLU network that is 0 at the pictures", classes.neural_network(known, unit)
    yield "network of least empirical risk", "the same, and 0 at every second image too", _same_risk(known, unit)
    for factor in FACTORS:
        name = f"Lipschitz, {factor:g} times the least L" if factor > 1 else "Lipschitz, the least L"
        yield name, "McShane's extensions, clamped", classes.lipschitz(known, factor * known.slope)
    yield "Lipschitz, L of the network", "McShane's extensions, clamped", classes.lipschitz(known, estimated)
    yield "piecewise affine", "an end of the range, with a bump at each picture", classes.piecewise_affine(known)
    yield "monotonic", "steps above and below the pictures", classes.monotonic(known)
    yield "convex", "the larger of a constant and an affine function", classes.convex(known)
    yield "affine in all dimensions", "through any values at the images", classes.affine_function(known)
    for count in DIMENSIONS:
        if count < min(len(known.images), known.images.shape[1]):
            solved = classes.affine_in(known, count)
            yield f"affine in {count} dimensions", "two linear programs per image", solved
    yield "affine in one dimension", "the line through the pictures", classes.line(known)
    yield "constant", "the value at the picture", classes.constant(known)


def _same_risk(known: Known, unit: UnitFunction) -> Bounds | None:
    """A network that equals f at every second image, so that any empirical risk over these images is the same."""
    if len(known.images) < 2:
        return None
    kept, others = known.images[::2], known.images[1::2]
    part = Known(known.pictures, known.values, others, known.low, known.high)
    found = classes.neural_network(part, unit, kept)
    return Bounds(found.low, found.high, found.members, slice(1, None, 2))


def measured(known: Known, f: Tensor, bounds: Bounds | None) -> dict[str, Any]:
    """Return how far a class of functions leaves f open, in shares of the range; None where it has no member."""
    if bounds is None or not bool(torch.isfinite(bounds.low + bounds.high).all()):
        return {"n": len(f), "undecided": None, "undecided_mean": None, "difference": None}
    f = f if bounds.images is None else f[bounds.images]
    width = (bounds.high - bounds.low) / known.range
    apart = torch.maximum((bounds.high - f).abs(), (f - bounds.low).abs()) / known.range
    return {
        "n": len(f),
        "undecided": float(width.max()),
        "undecided_mean": float(width.mean()),
        "difference": float(apart.max()),
    }


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one line per class of functions: means over units."""
    names = list(dict.fromkeys(row["class"] for row in rows))
    return [_line(name, [row for row in rows if row["class"] == name]) for name in names]


def _line(name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    line: dict[str, Any] = {"class": name, "construction": rows[0]["construction"]}
    for key in ("undecided", "undecided_mean", "difference"):
        values = [row[key] for row in rows if row[key] is not None]
        line[key] = sum(values) / len(values) if values else None
    line["pictures_decide"] = "–" if line["undecided"] is None else "yes" if line["undecided"] < DECIDED else "no"
    return line


def verdicts(rows: list[dict[str, Any]]) -> list[str]:
    """Return one line about the classes of functions, then one line per unit about its Lipschitz constant."""
    lines = [line for line in summary(rows) if line["undecided"] is not None]
    nothing = [line["class"] for line in lines if line["undecided"] > OPEN]
    decided = [line["class"] for line in lines if line["undecided"] < DECIDED]
    said = [
        f"the pictures determine the unit in these classes of functions: {', '.join(decided) or 'none'}; in "
        f"{len(nothing)} of {len(lines)} classes they leave its whole range open at some natural image"
    ]
    return said + [_bound(row) for row in {row["target"]: row for row in rows}.values()]


def shown_name(row: Mapping[str, Any]) -> str:
    """Return what the page calls a row's unit: its label, or its name in words."""
    return str(row["label"] or in_words(row["target"]))


def _bound(row: Mapping[str, Any]) -> str:
    return (
        f"{shown_name(row)}: L is at least {row['lipschitz_constant']:.3g}, so a picture bounds the unit within "
        f"a distance of at most {row['binding_radius']:.3g}; the nearest natural image is {row['nearest_image']:.3g} "
        f"away, and {row['images_within']:.0%} of {row['n']} natural images are within"
    )
