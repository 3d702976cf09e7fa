"""An image set drawn by code: ten classes of coloured shapes on textured grounds, with any number of images each.

Each class has a typical palette, ground and pose, as objects in photographs do. In the control set
(``palettes="swapped"``) every image takes the palette and the ground of another class, so that only the shape tells the
class.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw
from torch import Tensor
from torch.nn import functional

from vital_exp.errors import UsageError
from vital_exp.models.channels import RGB, in_channels
from vital_exp.references.base import PER_TARGET, Candidate, Competing
from vital_exp.targets.unit import Target
from vital_exp.values import whole_number

Array = NDArray[np.float32]
Colour = tuple[int, int, int]
Part = tuple[Array, str]  # outline (K, 2) in [-1, 1], y pointing down, and the role of its colour in the palette
Texture = Callable[[np.random.Generator], Array]  # returns the share of the second ground colour, (64, 64) in [0, 1]

SIZE = 64  # pixels; enough for a person to name the shape, small enough for a CPU
CANVAS = 3 * SIZE  # shapes are drawn at three times the size and averaged down, for smooth edges
PALETTES = ("typical", "swapped")
REVISION = 1  # raise it whenever a pixel changes: fingerprints, and so cached statistics, depend on it

RADIUS = (0.27, 0.34)  # half the object's extent, as a share of the image's side: 54 to 68 % across
SHIFT = 0.06  # largest distance of the object's centre from the image's, along each axis, as a share of the side
STRETCH = 0.08  # width and height are scaled by 1 plus or minus at most this
COLOUR_JITTER = 14.0  # standard deviation of a palette colour, in 1/255
LIGHT_GAIN = 0.10  # the overall brightness is 1 plus or minus at most this
LIGHT_SLOPE = 0.16  # the brightness falls by at most this from one border to the other
NOISE = (0.005, 0.03)  # standard deviation of the sensor's noise
SHADOW_OFFSET = (0.03, 0.04)  # of the cast shadow to the right and down, as a share of the side
SHADOW_TONE = 0.62  # the shadow's colour is the ground's mean times this
DARK_TONE = 0.72  # the colour "dark main" is the colour "main" times this, and so for the other roles

_ROWS, _COLUMNS = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) / np.float32(SIZE)


# --- outlines -------------------------------------------------------------------------------------------------------


def _points(*pairs: tuple[float, float]) -> Array:
    return np.array(pairs, dtype=np.float32)


def _arc(x: float, y: float, rx: float, ry: float, start: float = 0.0, stop: float = 360.0, count: int = 28) -> Array:
    """Return points (count, 2) on an ellipse's arc; angles in degrees, clockwise from the right."""
    angle = np.radians(np.linspace(start, stop, count, dtype=np.float32))
    return np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], axis=1).astype(np.float32)


def _box(left: float, top: float, right: float, bottom: float) -> Array:
    return _points((left, top), (right, top), (right, bottom), (left, bottom))


def _between(outer: Array, inner: Array) -> Array:
    """Return the area between two arcs or two closed curves as one outline."""
    return np.concatenate([outer, inner[::-1]])


def _star() -> list[Part]:
    angle = np.radians(np.arange(10, dtype=np.float32) * 36.0 - 90.0)
    radius = np.where(np.arange(10) % 2 == 0, 1.08, 0.47)
    outline = np.stack([radius * np.cos(angle), radius * np.sin(angle) + 0.08], axis=1).astype(np.float32)
    facets = [np.stack([outline[i], outline[(i + 1) % 10], _points((0, 0.08))[0]]) for i in range(0, 10, 2)]
    return [(outline, "main"), *((facet, "dark main") for facet in facets)]


def _heart() -> list[Part]:
    t = np.linspace(0, 2 * math.pi, 40, dtype=np.float32)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    outline = np.stack([x / 16.5, (y - 2.5) / 15.5], axis=1).astype(np.float32)
    return [
        (outline, "dark main"),
        (outline * 0.84 - _points((0, 0.02)), "main"),
        (_arc(-0.42, -0.42, 0.2, 0.15), "second"),
    ]


def _fish() -> list[Part]:
    body = _between(_arc(-0.2, 0.42, 0.82, 0.98, 200, 340), _arc(-0.2, -0.42, 0.82, 0.98, 160, 20))
    tail = _points((0.42, 0), (1.08, -0.58), (0.88, 0), (1.08, 0.58))
    return [
        (tail, "dark main"),
        (_points((-0.35, -0.5), (0.1, -0.86), (0.3, -0.38)), "dark main"),
        (body, "main"),
        (_box(-0.28, -0.53, -0.02, 0.53), "second"),
        (_box(0.26, -0.36, 0.42, 0.36), "second"),
        (_arc(-0.62, -0.12, 0.13, 0.13, count=14), "second"),
        (_arc(-0.64, -0.12, 0.075, 0.075, count=12), "accent"),
    ]


def _tree() -> list[Part]:
    tiers = [(0.5, -1.1, -0.42), (0.68, -0.72, 0.08), (0.86, -0.28, 0.66)]
    parts: list[Part] = [(_box(-0.15, 0.6, 0.15, 1.08), "second")]
    for width, top, bottom in reversed(tiers):
        parts.append((_points((0, top), (width, bottom), (-width, bottom)), "main"))
        parts.append((_points((0, top), (width, bottom), (0.18, bottom)), "dark main"))
    return parts


def _house() -> list[Part]:
    return [
        (_box(0.4, -0.98, 0.64, -0.3), "dark main"),
        (_box(-0.78, -0.2, 0.78, 0.98), "second"),
        (_points((0, -1.0), (1.06, -0.08), (-1.06, -0.08)), "main"),
        (_box(-0.14, 0.3, 0.24, 0.98), "accent"),
        (_box(-0.62, 0.16, -0.28, 0.5), "accent"),
        (_box(0.38, 0.16, 0.66, 0.5), "accent"),
    ]


def _mushroom() -> list[Part]:
    cap = np.concatenate([_arc(0, 0.06, 1.04, 1.04, 180, 360), _arc(0, 0.06, 1.04, 0.2, 0, 180)])
    stem = _points((-0.26, 0.0), (0.26, 0.0), (0.36, 0.94), (0.2, 1.04), (-0.2, 1.04), (-0.36, 0.94))
    spots = [(-0.5, -0.34, 0.2), (0.1, -0.62, 0.22), (0.6, -0.24, 0.17), (0.06, -0.1, 0.15), (-0.76, 0.02, 0.1)]
    return [
        (stem, "second"),
        (_box(-0.26, 0.1, 0.28, 0.36), "dark second"),
        (cap, "main"),
        *((_arc(x, y, r, 0.9 * r, count=16), "second") for x, y, r in spots),
    ]


def _moon() -> list[Part]:
    outline = _between(_arc(0.1, 0, 1.02, 1.02, 52, 308, 36), _arc(0.5, 0, 0.82, 0.82, 79, 281, 30))
    craters = [(-0.62, -0.12, 0.12), (-0.44, 0.44, 0.15), (-0.34, -0.56, 0.1)]
    return [(outline, "main"), *((_arc(x, y, r, r, count=14), "dark main") for x, y, r in craters)]


def _mug() -> list[Part]:
    handle = _between(_arc(0.48, 0.12, 0.6, 0.56, -90, 90, 18), _arc(0.48, 0.12, 0.36, 0.32, -90, 90, 18))
    body = np.concatenate([_arc(-0.2, -0.7, 0.78, 0.2, 180, 360), _arc(-0.2, 0.82, 0.7, 0.2, 0, 180)])
    return [
        (handle, "dark main"),
        (body, "main"),
        (_arc(-0.2, -0.7, 0.78, 0.2), "second"),
        (_arc(-0.2, -0.67, 0.66, 0.14), "accent"),
        (_box(-0.96, 0.02, 0.55, 0.34), "second"),
    ]


def _flower() -> list[Part]:
    angles = np.radians(np.arange(6) * 60.0 + 30.0)
    petals: list[Part] = [(_arc(0.64 * math.cos(a), 0.64 * math.sin(a), 0.41, 0.41, count=20), "main") for a in angles]
    veins: list[Part] = [(_arc(0.5 * math.cos(a), 0.5 * math.sin(a), 0.2, 0.2, count=14), "dark main") for a in angles]
    return [
        *petals,
        *veins,
        (_arc(0, 0, 0.36, 0.36, count=24), "second"),
        (_arc(0, 0, 0.2, 0.2, count=16), "dark second"),
    ]


def _doughnut() -> list[Part]:
    t = np.linspace(0, 2 * math.pi, 49, dtype=np.float32)
    wave = (0.87 + 0.05 * np.sin(7 * t))[:, None]
    icing = _between((_arc(0, 0, 1, 1, count=49) * wave).astype(np.float32), _arc(0, 0, 0.42, 0.42, count=24))
    sprinkles: list[Part] = []
    for i, radius in enumerate((0.58, 0.72, 0.56, 0.7, 0.6, 0.72, 0.57, 0.7, 0.6)):
        a, turn = math.radians(40 * i), 1.9 * i
        along, across = np.array([math.cos(turn), math.sin(turn)]), np.array([-math.sin(turn), math.cos(turn)])
        corners = [s * 0.11 * along + u * 0.042 * across for s, u in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
        bar = np.stack(corners) + radius * np.array([math.cos(a), math.sin(a)])
        sprinkles.append((bar.astype(np.float32), "accent"))
    return [
        (_between(_arc(0, 0, 1.0, 1.0, count=40), _arc(0, 0, 0.34, 0.34, count=24)), "second"),
        (icing, "main"),
        *sprinkles,
    ]


# --- grounds --------------------------------------------------------------------------------------------------------


def _clipped(values: NDArray[np.floating]) -> Array:
    """Clip values to [0, 1]."""
    inside: Array = np.clip(values, 0, 1)
    return inside


def _clouds(stream: np.random.Generator, cells: int) -> Array:
    """Return smooth noise of ``cells`` by ``cells`` blobs, (64, 64) in [0, 1]."""
    grid = Image.fromarray(stream.random((cells, cells), dtype=np.float32))
    return _clipped(np.asarray(grid.resize((SIZE, SIZE), Image.Resampling.BICUBIC)))


def _wave(phase: Array, sharpness: float = 2.0) -> Array:
    """Return bands of the two ground colours with soft borders, one pair per unit of ``phase``."""
    return _clipped(0.5 + sharpness * np.sin(2 * math.pi * phase))


def _checker(stream: np.random.Generator) -> Array:
    cells = stream.uniform(3.6, 4.6)
    dx, dy = stream.random(2, dtype=np.float32)
    along = np.sin(math.pi * (cells * _COLUMNS + dx)) * np.sin(math.pi * (cells * _ROWS + dy))
    return _clipped(0.5 + 6 * along)


def _stripes(stream: np.random.Generator) -> Array:
    count, slope = stream.uniform(5, 6.5), stream.uniform(0.8, 1.2)
    return _wave(count * (_COLUMNS + slope * _ROWS) / 1.5 + stream.random(dtype=np.float32), 3)


def _water(stream: np.random.Generator) -> Array:
    ripple = 0.22 * np.sin(2 * math.pi * (stream.uniform(2, 3) * _COLUMNS + stream.random(dtype=np.float32)))
    return _wave(stream.uniform(5, 6.5) * _ROWS + ripple + stream.random(dtype=np.float32), 0.7)


def _snow(stream: np.random.Generator) -> Array:
    flakes = (stream.random((SIZE, SIZE), dtype=np.float32) > 0.93).astype(np.float32)
    return _clipped(0.25 + 0.45 * _ROWS + 0.25 * _clouds(stream, 5) + 0.6 * flakes)


def _meadow(stream: np.random.Generator) -> Array:
    horizon = stream.uniform(0.62, 0.74) + 0.03 * np.sin(2 * math.pi * (_COLUMNS + stream.random(dtype=np.float32)))
    land = np.clip((_ROWS - horizon) * 20, 0, 1)
    return _clipped(land * (0.8 + 0.3 * _clouds(stream, 16)) + 0.12 * (1 - land) * _clouds(stream, 4))


def _soil(stream: np.random.Generator) -> Array:
    return _clipped(2.2 * _clouds(stream, 11) - 0.6)


def _dusk(stream: np.random.Generator) -> Array:
    stars = (stream.random((SIZE, SIZE), dtype=np.float32) > 0.988).astype(np.float32)
    return _clipped(stream.uniform(0.75, 0.95) * _ROWS + 0.15 * _clouds(stream, 4) + 0.9 * stars)


def _wood(stream: np.random.Generator) -> Array:
    grain = 0.5 * _clouds(stream, 4)
    planks = np.abs((stream.uniform(2.6, 3.4) * _ROWS + stream.random(dtype=np.float32)) % 1 - 0.5) > 0.46
    return _clipped(0.75 * _wave(7 * _ROWS + grain * 2, 0.5) + 0.7 * planks)


def _grass(stream: np.random.Generator) -> Array:
    blades = stream.random((1, SIZE), dtype=np.float32) * 0.5 + 0.5 * _clouds(stream, 22)
    return _clipped(1.7 * blades - 0.35)


def _dots(stream: np.random.Generator) -> Array:
    count, (dx, dy) = stream.uniform(4.2, 5.2), stream.random(2, dtype=np.float32)
    bump = np.cos(2 * math.pi * (count * _COLUMNS + dx)) + np.cos(2 * math.pi * (count * _ROWS + dy))
    return _clipped(3 * (bump - 0.75))


# --- the ten classes ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Palette:
    """The colours of the shape by role, and the two colours of the ground, each "#rrggbb"."""

    main: str
    second: str
    accent: str
    ground: str
    other_ground: str


@dataclass(frozen=True)
class DrawnClass:
    """One class: its shape, and its typical pose, palette and ground."""

    name: str
    outline: Callable[[], list[Part]]
    tilt: float  # largest rotation either way, in degrees
    palette: Palette
    texture: Texture


CLASSES = (
    DrawnClass("star", _star, 10, Palette("#ffce2e", "#fff0aa", "#c86e14", "#18265c", "#304a96"), _checker),
    DrawnClass("heart", _heart, 8, Palette("#e01a3e", "#ffced6", "#780a28", "#fff0e2", "#f7c6cc"), _stripes),
    DrawnClass("fish", _fish, 9, Palette("#fa7e1c", "#fff8ec", "#181824", "#187abc", "#56bee2"), _water),
    DrawnClass("tree", _tree, 4, Palette("#187446", "#684228", "#dc3c32", "#accae6", "#f4f8fc"), _snow),
    DrawnClass("house", _house, 3, Palette("#b03a2a", "#faeece", "#465482", "#96cef6", "#68b042"), _meadow),
    DrawnClass("mushroom", _mushroom, 8, Palette("#d0241e", "#faf0dc", "#5a3c28", "#26341a", "#5e5c2c"), _soil),
    DrawnClass("moon", _moon, 12, Palette("#faf4cc", "#d6cea8", "#a09678", "#2a1454", "#c468b0"), _dusk),
    DrawnClass("mug", _mug, 4, Palette("#16a09e", "#e8faf4", "#46281c", "#d8a262", "#a66e3a"), _wood),
    DrawnClass("flower", _flower, 30, Palette("#faf8fc", "#fcc41a", "#e68214", "#287a24", "#84c442"), _grass),
    DrawnClass("doughnut", _doughnut, 180, Palette("#f06eaa", "#c48446", "#fffcc8", "#a8e2cc", "#f0fcf6"), _dots),
)

CLASS_NAMES: tuple[str, ...] = tuple(drawn.name for drawn in CLASSES)
_RGB = {c.palette: {role: ImageColor.getrgb(tone) for role, tone in asdict(c.palette).items()} for c in CLASSES}
_OUTLINES = tuple(tuple(drawn.outline()) for drawn in CLASSES)


# --- drawing --------------------------------------------------------------------------------------------------------


def draw(class_index: int, number: int, seed: int, palettes: str = "typical") -> Tensor:
    """Draw one image, which depends on nothing but these arguments.

    Args:
        class_index: 0 to 9, the position in ``CLASS_NAMES``.
        number: the image's number in its class, from 0.
        seed: the number of the set, from 0.
        palettes: ``"typical"``, or ``"swapped"`` for the colours and the ground of another class, chosen at random; the
            shape and its pose stay those of the typical image.

    Returns:
        (3, 64, 64) float32 RGB in [0, 1].

    Raises:
        UsageError: class_index, number, seed or palettes is out of range.
    """
    _check(class_index, number, seed, palettes)
    lender = CLASSES[_lender(class_index, number, seed, palettes)]
    stream = np.random.default_rng([seed, class_index, number])
    colours = _jittered(lender.palette, stream)
    placement = _placement(CLASSES[class_index].tilt, stream)
    shares = lender.texture(stream)[..., None]  # (64, 64, 1)
    ground = colours["ground"] + (colours["other_ground"] - colours["ground"]) * shares  # (64, 64, 3) in 1/255
    image = _paint(_OUTLINES[class_index], placement, colours, ground) / np.float32(255)
    return torch.from_numpy(np.ascontiguousarray(_lit(image, stream).transpose(2, 0, 1)))


def object_mask(class_index: int, number: int, seed: int, palettes: str = "typical") -> Tensor:
    """Return the share of each pixel that the object covers in :func:`draw`, (1, 64, 64) float32 in [0, 1]."""
    _check(class_index, number, seed, palettes)
    stream = np.random.default_rng([seed, class_index, number])
    _jittered(CLASSES[_lender(class_index, number, seed, palettes)].palette, stream)  # advances the stream as draw does
    placement = _placement(CLASSES[class_index].tilt, stream)
    canvas = Image.new("L", (CANVAS, CANVAS))
    pen = ImageDraw.Draw(canvas)
    for points, _ in _OUTLINES[class_index]:
        pen.polygon((points @ placement[:2] + placement[2]).ravel().tolist(), fill=255)
    return torch.from_numpy(np.asarray(canvas.reduce(CANVAS // SIZE), dtype=np.float32) / 255)[None]


def draw_set(count_per_class: int, seed: int, palettes: str = "typical") -> tuple[Tensor, Tensor]:
    """Draw ``count_per_class`` images of every class.

    Returns:
        Images (10 * count_per_class, 3, 64, 64) float32 RGB in [0, 1], the classes one after the other, and their
        labels (10 * count_per_class,) int64.
    """
    whole_number("count_per_class", count_per_class, 1, allowed="must be at least 1")
    images = [draw(c, n, seed, palettes) for c in range(len(CLASSES)) for n in range(count_per_class)]
    return torch.stack(images), torch.arange(len(CLASSES)).repeat_interleave(count_per_class)


def _check(class_index: int, number: int, seed: int, palettes: str) -> None:
    if not 0 <= class_index < len(CLASSES):
        raise UsageError("class_index", class_index, f"the drawn classes are 0 to {len(CLASSES) - 1}")
    whole_number("number", number, allowed="must be at least 0")
    whole_number("seed", seed, allowed="must be at least 0")
    if palettes not in PALETTES:
        raise UsageError("palettes", palettes, f"must be one of {', '.join(PALETTES)}", PALETTES)


def _lender(class_index: int, number: int, seed: int, palettes: str) -> int:
    """Return the class that lends palette and ground: the class itself or, swapped, another at random."""
    if palettes == "typical":
        return class_index
    other = np.random.default_rng([seed, class_index, number, 1]).integers(1, len(CLASSES))
    return (class_index + int(other)) % len(CLASSES)


def _jittered(palette: Palette, stream: np.random.Generator) -> dict[str, Array]:
    """Return the palette's colours by role with random deviations, each (3,) in 0 to 255."""
    roles = tuple(_RGB[palette])
    base = np.array(tuple(_RGB[palette].values()), dtype=np.float32)
    base = base + COLOUR_JITTER * stream.standard_normal((len(roles), 3), dtype=np.float32)
    colours = dict(zip(roles, np.clip(base, 0, 255), strict=True))
    return colours | {f"dark {role}": DARK_TONE * colours[role] for role in roles[:3]}


def _placement(tilt: float, stream: np.random.Generator) -> Array:
    """Return the affine map from outline to canvas pixels, (3, 2): two rows rotate and scale, the last row shifts."""
    angle = math.radians(stream.uniform(-tilt, tilt))
    radius = stream.uniform(*RADIUS) * CANVAS
    width, height = (radius * (1 + stream.uniform(-STRETCH, STRETCH)) for _ in range(2))
    x, y = CANVAS * (0.5 + stream.uniform(-SHIFT, SHIFT, 2))
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([[width * cos, width * sin], [-height * sin, height * cos], [x, y]], dtype=np.float32)


def _paint(outlines: tuple[Part, ...], placement: Array, colours: dict[str, Array], ground: Array) -> Array:
    """Return the shape and its shadow on the ground, (64, 64, 3) in 0 to 255."""
    canvas = Image.fromarray(ground.astype(np.uint8)).resize((CANVAS, CANVAS), Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(canvas)
    placed = [((points @ placement[:2] + placement[2]), role) for points, role in outlines]
    shadow = _ink(SHADOW_TONE * ground.mean(axis=(0, 1)))
    offset = CANVAS * np.array(SHADOW_OFFSET, dtype=np.float32)
    for points, _ in placed:
        pen.polygon((points + offset).ravel().tolist(), fill=shadow)
    for points, role in placed:
        pen.polygon(points.ravel().tolist(), fill=_ink(colours[role]))
    return np.asarray(canvas.reduce(CANVAS // SIZE), dtype=np.float32)


def _ink(colour: Array) -> Colour:
    red, green, blue = colour.tolist()
    return int(red), int(green), int(blue)


def _lit(image: Array, stream: np.random.Generator) -> Array:
    """Return an image under light that falls off to one side, with a sensor's noise, clipped to [0, 1]."""
    angle, gain = stream.uniform(0, 2 * math.pi), 1 + stream.uniform(-LIGHT_GAIN, LIGHT_GAIN)
    slope = stream.uniform(0, LIGHT_SLOPE)
    light = gain + slope * (math.cos(angle) * (_COLUMNS - 0.5) + math.sin(angle) * (_ROWS - 0.5))
    noise = stream.standard_normal(image.shape, dtype=np.float32) * np.float32(stream.uniform(*NOISE))
    return _clipped(image * light[..., None].astype(np.float32) + noise)


# --- as references --------------------------------------------------------------------------------------------------


class DrawnReferences(Competing):
    """The drawn set as reference images: a class gets images of the class, a hidden unit a mixture of all classes.

    Args:
        count: images for a target, at least 1.
        seed: the number of the set, at least 0.
        size: side in px; None keeps 64, any other size is resized to (bilinear, antialiased).
        candidates: images that compete for the facets of a target.
        channels: 3 for RGB; 1 for the luminance.

    Raises:
        UsageError: count, seed or size is out of range.
    """

    def __init__(
        self,
        count: int = PER_TARGET,
        seed: int = 0,
        size: int | None = None,
        candidates: int = PER_TARGET,
        channels: int = RGB,
    ) -> None:
        for key, value, least in (("count", count, 1), ("seed", seed, 0), ("size", SIZE if size is None else size, 1)):
            whole_number(f"references.{key}", value, least, allowed=f"must be at least {least}")
        self.count, self.seed, self.size = count, seed, SIZE if size is None else size
        self.competing, self.channels = candidates, channels

    def images(self, target: Target) -> Iterator[Tensor]:
        """Yield ``count`` images, each (C, size, size) float32 in [0, 1].

        Raises:
            UsageError: the target is a class that the set does not have.
        """
        self._check_class(target)
        for number in range(self.count):
            yield self._image(target, number)

    def candidates(self, target: Target) -> list[Candidate]:
        """Return the images that compete for a target's facets: the first ``candidates`` images."""
        self._check_class(target)
        shared = target.kind != "class"
        return [
            Candidate(number, partial(self._image, target, number), number if shared else None)
            for number in range(self.competing)
        ]

    def competition(self, target: Target) -> dict[str, object]:
        """Return a hash of the set and the number of its images that compete."""
        return {"references": self.fingerprint(target), "candidates": self.competing}

    def fingerprint(self, target: Target) -> str:
        """Return a hexadecimal hash of the settings that decide the target's images; all hidden units share one."""
        self._check_class(target)
        subject = CLASS_NAMES[target.index] if target.kind == "class" else "mixture"
        channels = "" if self.channels == RGB else f"/{self.channels}"
        text = f"drawn-{REVISION}/{subject}/{self.count}/{self.seed}/{self.size}{channels}"
        return hashlib.sha256(text.encode()).hexdigest()

    def class_indices(self) -> list[int]:
        """Return the ten classes."""
        return list(range(len(CLASSES)))

    def _image(self, target: Target, number: int) -> Tensor:
        class_index = target.index if target.kind == "class" else number % len(CLASSES)
        return in_channels(self._resized(draw(class_index, number, self.seed)), self.channels)

    def _check_class(self, target: Target) -> None:
        if target.kind == "class" and not 0 <= target.index < len(CLASSES):
            raise UsageError("target.index", target.index, f"the drawn set has the classes 0 to {len(CLASSES) - 1}")

    def _resized(self, image: Tensor) -> Tensor:
        if self.size == SIZE:
            return image
        sides = (self.size, self.size)
        resized = functional.interpolate(image[None], sides, mode="bilinear", antialias=True, align_corners=False)[0]
        return resized.clamp(0, 1)
