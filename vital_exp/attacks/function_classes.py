"""What the two extreme pictures of a unit decide, class of functions by class (docs/methods/theory.md).

Each class is asked for its smallest and its largest member among the functions that agree with f at the pictures and
stay in the range of f. Images are points (N, D), float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import relu

Function = Callable[[Tensor], Tensor]  # points (N, D) -> values (N,)
RESIDUAL = 1e-6  # of an affine function through given values, as a share of their range; more: there is none


@dataclass(frozen=True)
class Known:
    """What is known of a function f.

    Attributes:
        pictures: (2, D), the maximising and the minimising one.
        values: (2,), f of these.
        images: (N, D), natural images.
        low, high: the least and the largest value of f over images and pictures.
    """

    pictures: Tensor
    values: Tensor
    images: Tensor
    low: float
    high: float

    @property
    def range(self) -> float:
        """Of f."""
        return self.high - self.low

    @property
    def slope(self) -> float:
        """The least Lipschitz constant of a function with these values at the pictures, per unit of distance."""
        return float((self.values[0] - self.values[1]).abs() / torch.dist(self.pictures[0], self.pictures[1]))


@dataclass(frozen=True)
class Bounds:
    """The smallest and largest values, (N,) each, that members of a class have at the natural images.

    Attributes:
        low, high: over the members that agree with f at the pictures.
        members: the two functions that have these values everywhere; none where each image has two of its own.
        images: which of the natural images they are of; None: all.
    """

    low: Tensor
    high: Tensor
    members: tuple[Function, Function] | None = None
    images: slice | None = None


def black_box(known: Known) -> Bounds:
    """Any function: f at the two pictures, the end of the range everywhere else."""
    return _of_members(known, *(_at_pictures(known, value) for value in (known.low, known.high)))


def _at_pictures(known: Known, elsewhere: float) -> Function:
    def function(points: Tensor) -> Tensor:
        same = (points[:, None] == known.pictures[None]).all(dim=2)  # (N, 2)
        values = torch.where(same, known.values.to(points), -torch.inf).amax(dim=1)
        return torch.where(same.any(dim=1), values, elsewhere)

    return function


def _of_members(known: Known, low: Function, high: Function) -> Bounds:
    return Bounds(low(known.images), high(known.images), (low, high))


class Bumps(nn.Module):
    """A ReLU network: 1 at each of its anchors, 0 from a distance on: sum over anchors of ReLU(1 - |x - a|_1 / width).

    |t| = ReLU(t) + ReLU(-t), so the network is two layers of ReLUs deep and piecewise affine.

    Args:
        anchors: (A, D).
        width: an L1 distance, at most half of that of any two anchors.
        heights: (A,) of the bumps; None: 1 each.
    """

    def __init__(self, anchors: Tensor, width: float, heights: Tensor | None = None) -> None:
        super().__init__()
        self.anchors, self.width = anchors, width
        self.heights = anchors.new_ones(len(anchors)) if heights is None else heights

    def forward(self, points: Tensor) -> Tensor:
        """Return (N,) for points (N, D)."""
        total = points.new_zeros(len(points))
        for anchor, height in zip(self.anchors, self.heights, strict=True):
            distance = (relu(points - anchor) + relu(anchor - points)).sum(dim=1)
            total = total + height * relu(1 - distance / self.width)
        return total


def room(anchors: Tensor, others: Tensor) -> float:
    """Return half the least L1 distance between anchors, and from anchors to other points."""
    between = torch.cdist(anchors, anchors, p=1)
    between.fill_diagonal_(torch.inf)
    nearest = torch.cat([between.flatten(), torch.cdist(anchors, others, p=1).flatten()]).min()
    return float(nearest) / 2


def neural_network(known: Known, f: Function, kept: Tensor | None = None) -> Bounds:
    """A network: f with a ReLU network added and the sum clamped by two ReLUs; f at the pictures and at ``kept``.

    g = clamp(f +- range (1 - bumps), low, high).

    Args:
        known: its images are where g and f differ.
        f: the network.
        kept: (M, D), further images at which g equals f: those an empirical risk is the mean over.
    """
    anchors = known.pictures if kept is None else torch.cat([known.pictures, kept])
    bumps = Bumps(anchors, room(anchors, known.images))

    def member(sign: int) -> Function:
        added = sign * known.range
        return lambda points: (f(points) + added * (1 - bumps(points))).clamp(known.low, known.high)

    return _of_members(known, member(-1), member(1))


def piecewise_affine(known: Known) -> Bounds:
    """Piecewise affine: the end of the range but for a bump at each picture (:class:`Bumps`)."""
    width = room(known.pictures, known.images)

    def member(elsewhere: float) -> Function:
        bumps = Bumps(known.pictures, width, known.values.to(known.pictures) - elsewhere)
        return lambda points: elsewhere + bumps(points)

    return _of_members(known, member(known.low), member(known.high))


def lipschitz(known: Known, constant: float) -> Bounds:
    """L-Lipschitz: McShane's and Whitney's extensions of the two values, clamped to the range.

    low(x) = max(low, max_i v_i - L d(x, p_i)), high(x) = min(high, min_i v_i + L d(x, p_i)), d Euclidean.
    No function has these values if L is below :attr:`Known.slope`.
    """
    values = known.values.to(known.pictures)

    def reach(points: Tensor) -> Tensor:
        return constant * torch.cdist(points, known.pictures)  # (N, 2)

    return _of_members(
        known,
        lambda points: (values - reach(points)).amax(dim=1).clamp(min=known.low),
        lambda points: (values + reach(points)).amin(dim=1).clamp(max=known.high),
    )


def monotonic(known: Known) -> Bounds:
    """Monotonic in every pixel, with the sign in which the maximising picture exceeds the minimising one.

    An image is decided only where it is at least, or at most, a picture in all its pixels at once.
    """
    signs = (known.pictures[0] - known.pictures[1]).sign()
    pictures, values = known.pictures * signs, known.values.to(known.pictures)

    def low(points: Tensor) -> Tensor:
        above = ((points * signs)[:, None] >= pictures[None]).all(dim=2)  # (N, 2)
        return torch.where(above, values, known.low).amax(dim=1)

    def high(points: Tensor) -> Tensor:
        below = ((points * signs)[:, None] <= pictures[None]).all(dim=2)
        return torch.where(below, values, known.high).amin(dim=1)

    return _of_members(known, low, high)


def convex(known: Known) -> Bounds | None:
    """Convex: the larger of the range's low end and an affine function; None where no affine function is found."""
    affine = affine_function(known)
    if affine is None or affine.members is None:
        return None
    low, high = affine.members
    return _of_members(
        known, lambda points: low(points).clamp(min=known.low), lambda points: high(points).clamp(min=known.low)
    )


def affine_function(known: Known) -> Bounds | None:
    """Affine in all pixels: through the pictures' values, and one end of the range at every natural image.

    The one of smallest gradient; None where images and pictures are affinely dependent (more of them than pixels).
    """
    points = torch.cat([known.pictures, known.images])
    values = torch.stack([torch.full_like(points[:, 0], end) for end in (known.low, known.high)], dim=1)  # (N + 2, 2)
    values[:2] = known.values.to(values)[:, None]
    origin, centre = points.mean(dim=0), values.mean(dim=0)
    centred, wanted = points - origin, values - centre
    dual = torch.linalg.pinv(centred @ centred.T, rtol=1e-12, hermitian=True) @ wanted
    gradient = centred.T @ dual  # (D, 2)
    if (centred @ gradient - wanted).abs().max() > RESIDUAL * known.range:
        return None
    low, high = (lambda x, k=k: (x - origin) @ gradient[:, k] + centre[k] for k in (0, 1))
    return _of_members(known, low, high)


def affine_in(known: Known, dimensions: int) -> Bounds:
    """Affine in a few known dimensions: that from picture to picture, then the images' principal components.

    Two linear programs per image; bounds, not members. In one dimension the two pictures leave one function.
    """
    from scipy.optimize import linprog

    points = coordinates(known, dimensions)  # (N + 2, d); the minimising picture is the origin
    design = np.concatenate([points, np.ones((len(points), 1))], axis=1)
    limits = {"A_eq": design[:2], "b_eq": known.values.double().numpy(), "bounds": (None, None)}
    limits |= {"A_ub": np.concatenate([design[2:], -design[2:]])}
    ends = [np.full(len(design) - 2, known.high), np.full(len(design) - 2, -known.low)]
    found = []
    for sign in (1, -1):
        solved = [linprog(sign * row, b_ub=np.concatenate(ends), **limits) for row in design[2:]]
        found.append([sign * one.fun if one.status == 0 else np.nan for one in solved])
    low, high = (torch.tensor(values, dtype=torch.float64) for values in found)
    return Bounds(low, high)


def coordinates(known: Known, dimensions: int) -> NDArray[np.float64]:
    """Return the pictures' and the images' coordinates (N + 2, d), in units of the distance of the two pictures."""
    points = torch.cat([known.pictures, known.images]) - known.pictures[1]
    axis = points[0] / points[0].norm()
    along = points @ axis
    rest = points - along[:, None] * axis
    gram = rest @ rest.T
    values, vectors = torch.linalg.eigh(gram)
    components = vectors.flip(1)[:, : dimensions - 1] * values.flip(0)[: dimensions - 1].clamp(min=0).sqrt()
    table: NDArray[np.float64] = (torch.cat([along[:, None], components], dim=1) / along[0]).numpy()
    return table


def line(known: Known) -> Bounds:
    """Affine in one dimension, the line through the pictures: one function, m + (M - m) t."""
    points = known.images - known.pictures[1]
    axis = known.pictures[0] - known.pictures[1]
    share = points @ axis / (axis @ axis)
    values = known.values[1] + (known.values[0] - known.values[1]) * share
    return Bounds(values, values)


def constant(known: Known) -> Bounds:
    """Constant: the value at the maximising picture."""
    values = known.values[:1].to(known.images).expand(len(known.images))
    return Bounds(values, values)


def binding_radius(known: Known, constant: float) -> float:
    """Return how far from a picture L bounds f at all: range / L; farther away the whole range is possible."""
    return known.range / constant


def pair_slope(points: Tensor, values: Tensor) -> float:
    """Return the largest slope |f(x) - f(y)| / |x - y| between different points: L is at least that."""
    distances = torch.cdist(points, points)
    slopes = (values[:, None] - values[None]).abs() / distances
    return float(slopes[distances > 0].max())


def thinned(images: Sequence[Tensor] | Tensor, most: int) -> Tensor:
    """Return at most so many of some images, evenly spread."""
    places = torch.linspace(0, len(images) - 1, min(most, len(images))).round().long()
    return torch.as_tensor(images)[places]
