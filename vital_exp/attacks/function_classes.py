"""How far two extreme pictures determine a unit f, for each class of functions (docs/methods/theory.md).

Of each class this file constructs the smallest and the largest member among the functions that agree with f at the
pictures and stay in the range of f. Images are points (N, D), float64.
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
RESIDUAL = 1e-6  # largest error of an affine function through given values, as a share of their range


@dataclass(frozen=True)
class Known:
    """What is known of a function f.

    Attributes:
        pictures: (2, D), the maximising and the minimising picture.
        values: (2,), f at the pictures.
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
        """The range of f, high - low."""
        return self.high - self.low

    @property
    def slope(self) -> float:
        """The least Lipschitz constant of a function with these values at the pictures, per unit of distance."""
        return float((self.values[0] - self.values[1]).abs() / torch.dist(self.pictures[0], self.pictures[1]))


@dataclass(frozen=True)
class Bounds:
    """The smallest and the largest values that members of a class have at the natural images.

    Attributes:
        low, high: (N,) each, over the members that agree with f at the pictures.
        members: the two functions with these values; None where the extreme members differ from image to image.
        images: the natural images to which the values belong; None: all.
    """

    low: Tensor
    high: Tensor
    members: tuple[Function, Function] | None = None
    images: slice | None = None


def black_box(known: Known) -> Bounds:
    """Any function: f at the two pictures, an end of the range everywhere else."""
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
    """A ReLU network, 1 at each anchor a and 0 far from all: the sum over anchors of ReLU(1 - |x - a|_1 / width).

    |t| = ReLU(t) + ReLU(-t), so the network has two layers of ReLUs and is piecewise affine.

    Args:
        anchors: (A, D).
        width: the L1 distance from an anchor at which its bump ends, at most half the distance of any two anchors.
        heights: (A,), the value at each anchor; None: 1.
    """

    def __init__(self, anchors: Tensor, width: float, heights: Tensor | None = None) -> None:
        super().__init__()
        self.anchors, self.width = anchors, width
        self.heights = anchors.new_ones(len(anchors)) if heights is None else heights

    def forward(self, points: Tensor) -> Tensor:
        """Return the values (N,) at points (N, D)."""
        total = points.new_zeros(len(points))
        for anchor, height in zip(self.anchors, self.heights, strict=True):
            distance = (relu(points - anchor) + relu(anchor - points)).sum(dim=1)
            total = total + height * relu(1 - distance / self.width)
        return total


def room(anchors: Tensor, others: Tensor) -> float:
    """Return half the least L1 distance from an anchor to another anchor or to one of the other points."""
    between = torch.cdist(anchors, anchors, p=1)
    between.fill_diagonal_(torch.inf)
    nearest = torch.cat([between.flatten(), torch.cdist(anchors, others, p=1).flatten()]).min()
    return float(nearest) / 2


def neural_network(known: Known, f: Function, kept: Tensor | None = None) -> Bounds:
    """A network g: f plus or minus a ReLU network, clamped by two ReLUs; g equals f at the pictures and at ``kept``.

    g = clamp(f +- range (1 - bumps), low, high).

    Args:
        known: g is an end of the range at its images.
        f: the network.
        kept: (M, D), further images at which g equals f, those of an empirical risk.
    """
    anchors = known.pictures if kept is None else torch.cat([known.pictures, kept])
    bumps = Bumps(anchors, room(anchors, known.images))

    def member(sign: int) -> Function:
        added = sign * known.range
        return lambda points: (f(points) + added * (1 - bumps(points))).clamp(known.low, known.high)

    return _of_members(known, member(-1), member(1))


def piecewise_affine(known: Known) -> Bounds:
    """Piecewise affine: an end of the range, with a bump at each picture (:class:`Bumps`)."""
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
    """Monotonic in every pixel: rising where the maximising picture exceeds the minimising one, falling elsewhere.

    A picture bounds f only at images that are at least, or at most, the picture in all pixels (with these signs).
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
    """Convex: the maximum of the range's low end and an affine function; None where there is no affine function."""
    affine = affine_function(known)
    if affine is None or affine.members is None:
        return None
    low, high = affine.members
    return _of_members(
        known, lambda points: low(points).clamp(min=known.low), lambda points: high(points).clamp(min=known.low)
    )


def affine_function(known: Known) -> Bounds | None:
    """Affine in all pixels: f at the pictures, and one end of the range at every natural image.

    Of several such functions, the one with the smallest gradient; None where there is none, because images and pictures
    are affinely dependent (as where they outnumber the pixels).
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
    """Affine in a few given dimensions: the line through the pictures, then the images' principal components.

    Two linear programs per image give its bounds, each attained by another function. In one dimension there is only one
    function, see :func:`line`.
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
    """Return the coordinates of pictures and images (N + 2, d), in units of the distance between the two pictures."""
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
    """Return range / L, the distance from a picture beyond which L does not restrict f to less than its range."""
    return known.range / constant


def pair_slope(points: Tensor, values: Tensor) -> float:
    """Return the largest slope |f(x) - f(y)| / |x - y| between different points, a lower bound of L."""
    distances = torch.cdist(points, points)
    slopes = (values[:, None] - values[None]).abs() / distances
    return float(slopes[distances > 0].max())


def thinned(images: Sequence[Tensor] | Tensor, most: int) -> Tensor:
    """Return at most ``most`` of the images, evenly spread."""
    places = torch.linspace(0, len(images) - 1, min(most, len(images))).round().long()
    return torch.as_tensor(images)[places]
