"""Random transforms: properties of all from one table, geometry against torchvision and numpy, mistakes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as twin

from vital_exp.config import compose_config
from vital_exp.config_tree import options_of
from vital_exp.errors import UsageError
from vital_exp.images.randomness import RandomStreams
from vital_exp.images.transforms import (
    CircularJitter,
    Compose,
    CropJitter,
    GaussianBlur,
    HorizontalFlip,
    NormalCrop,
    NormalNoise,
    Pad,
    RandomAffine,
    Rotate,
    Scale,
    ShrinkingCrop,
    ToInputSize,
    UniformCrop,
    UniformNoise,
)
from vital_exp.images.transforms.noise import blur_weights
from vital_exp.images.transforms.resampling import _Windows, antialiased_boxes, boxes, gathered, sample
from vital_exp.setup.parts import transform_of

NAMES = ("class-0", "class-1", "class-2")
MANY = tuple(f"class-{i}" for i in range(400))
HEIGHT, WIDTH = 32, 40


@dataclass
class Kind:
    """A transform and what it does to a batch."""

    transform: Any
    size: tuple[int, int] = (HEIGHT, WIDTH)  # of what comes out
    random: bool = True


KINDS = {
    "jitter": Kind(CircularJitter(60)),
    "crop jitter": Kind(CropJitter(30), (28, 36)),
    "pad grey": Kind(Pad(30), (40, 48), random=False),
    "pad reflect": Kind(Pad(30, "reflect"), (40, 48), random=False),
    "pad edge": Kind(Pad(30, "edge"), (40, 48), random=False),
    "scale": Kind(Scale([0.7, 1.0, 1.3])),
    "rotate": Kind(Rotate([-30, -10, 10, 45], "edge")),
    "affine": Kind(RandomAffine(20, 0.2, [0.7, 1.4], "reflect")),
    "flip": Kind(HorizontalFlip(0.5)),
    "uniform noise": Kind(UniformNoise(0.1)),
    "normal noise": Kind(NormalNoise(0.1)),
    "blur": Kind(GaussianBlur([0.0, 2.0])),
    "normal crop": Kind(NormalCrop(0.25, 0.1, size=[20, 24]), (20, 24)),
    "normal crop, own size": Kind(NormalCrop(0.5, 0.2, antialias=True)),
    "shrinking crop": Kind(ShrinkingCrop(0.5, 0.05, 0.05, 10, size=16), (16, 16)),
    "uniform crop": Kind(UniformCrop([0.05, 0.99], antialias=True, size=16), (16, 16)),
    "horama crop": Kind(UniformCrop([0.2, 0.25], horama_quirk=True, position="centre", size=16), (16, 16)),
    "input size": Kind(ToInputSize([24, 20]), (24, 20), random=False),
    "all": Kind(Compose({"a": Pad(30), "b": Rotate([5, 9]), "c": UniformCrop([0.3, 0.9])}, (16, 18)), (16, 18)),
}
all_kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def pictures(count: int = 3, channels: int = 3, size: tuple[int, int] = (HEIGHT, WIDTH)) -> Tensor:
    return torch.randn(count, channels, *size, generator=torch.Generator().manual_seed(0))


@all_kinds
@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shape_and_type(kind: Kind, channels: int, dtype: torch.dtype) -> None:
    out = kind.transform(pictures(channels=channels).to(dtype), RandomStreams(0, NAMES), 3)
    assert out.shape == (3, channels, *kind.size)
    assert out.dtype == dtype
    assert out.isfinite().all()


@all_kinds
def test_a_picture_is_transformed_the_same_in_any_company(kind: Kind) -> None:
    x = pictures()
    others = x.flip(0).clone()
    others[1] = x[1]
    for step in range(4):
        together = kind.transform(x, RandomStreams(7, NAMES), step)
        changed = kind.transform(others, RandomStreams(7, ("class-5", NAMES[1], "class-6")), step)
        assert torch.equal(together[1], changed[1])
        alone = kind.transform(x[1:2], RandomStreams(7, NAMES[1:2]), step)
        torch.testing.assert_close(together[1:2], alone, rtol=1e-6, atol=1e-5)
        assert torch.equal(kind.transform(x, RandomStreams(7, NAMES), step), together)


@all_kinds
def test_pictures_steps_seeds_and_views_draw_their_own(kind: Kind) -> None:
    same = pictures(1).expand(40, -1, -1, -1)

    def drawn(seed: int = 0, step: int = 0, view: int = 0) -> Tensor:
        out: Tensor = kind.transform(same, RandomStreams(seed, MANY[:40]).views([view]), step)
        return out

    first = drawn()
    if not kind.random:
        assert torch.equal(first, first[:1].expand_as(first))
        return
    assert any(not torch.equal(first[0], other) for other in first[1:])
    for other in (drawn(seed=1), drawn(step=1), drawn(view=1)):
        assert not torch.equal(other, first)


@all_kinds
def test_gradients_match_finite_differences(kind: Kind) -> None:
    x = pictures(2, 1, (9, 8)).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda p: kind.transform(p, RandomStreams(1, NAMES[:2]), 2), x)


@all_kinds
def test_no_picture_changes_another(kind: Kind) -> None:
    x = pictures().requires_grad_()
    out = kind.transform(x, RandomStreams(0, NAMES), 0)
    (gradient,) = torch.autograd.grad(out[1].square().sum(), x)
    assert gradient[1].abs().max() > 0
    assert gradient[[0, 2]].abs().max() == 0


# Shifts.


def test_jitter_rolls_each_picture_by_its_own_shift() -> None:
    streams, x = RandomStreams(0, NAMES), pictures(size=(8, 9))
    rolled, shifts = CircularJitter(224)(x, streams, 5), streams.integers(-8, 8, 2, "jitter", 5)
    for i, (down, right) in enumerate(shifts.tolist()):
        torch.testing.assert_close(rolled[i], x[i].roll((down, right), (1, 2)))
    assert len(set(map(tuple, shifts.tolist()))) > 1


def test_jitter_is_the_published_one_at_224_pixels() -> None:
    ramp = torch.arange(224.0).expand(1, 1, 1, 224).expand(400, 1, 224, 224)
    first = CircularJitter(30)(ramp, RandomStreams(0, MANY), 0)[:, 0, 0, 0]
    shift = torch.where(first < 112, -first, 224 - first)
    assert (shift.min(), shift.max()) == (-30, 30)


def test_crop_jitter_takes_every_window_and_nothing_else() -> None:
    x = pictures(1, size=(224, 230)).expand(400, -1, -1, -1)
    crops = CropJitter(2)(x, RandomStreams(0, MANY), 0)
    windows = [x[0, :, i : i + 222, j : j + 228] for i in range(3) for j in range(3)]
    counts = [sum(bool(torch.equal(crop, window)) for crop in crops[:60]) for window in windows]
    assert sum(counts) == 60
    assert min(counts) >= 1


@pytest.mark.parametrize(("outside", "mode"), [("grey", "constant"), ("reflect", "symmetric"), ("edge", "edge")])
def test_pad_equals_numpys(outside: str, mode: Any) -> None:
    x = pictures(size=(28, 30))
    wanted = np.pad(x.numpy(), ((0, 0), (0, 0), (3, 3), (3, 3)), mode)
    np.testing.assert_array_equal(Pad(24, outside)(x, RandomStreams(0, NAMES), 0).numpy(), wanted)


def test_amounts_in_pixels_are_lucids_at_224() -> None:
    x = torch.zeros(1, 1, 224, 224)
    lucid = transform_of(compose_config(["transforms=lucid"])).transforms
    sides = []
    for name in ("pad", "crop_jitter", "scale", "rotate", "crop_jitter_again"):
        x = lucid[name](x, RandomStreams(0, NAMES[:1]), 0)
        sides.append(x.shape[-1])
    assert sides == [248, 240, 240, 240, 236]


def test_flip_mirrors_about_as_many_as_it_says() -> None:
    x = pictures(1, 1, (2, 3)).expand(400, -1, -1, -1)
    flipped = HorizontalFlip(0.3)(x, RandomStreams(0, MANY), 0)
    mirrored = [torch.equal(one, x[0].flip(-1)) for one in flipped]
    assert all(was or torch.equal(one, x[0]) for was, one in zip(mirrored, flipped, strict=True))
    assert np.mean(mirrored) == pytest.approx(0.3, abs=0.06)


# Geometry.


@pytest.mark.parametrize("degrees", [-37.0, 10.0, 90.0])
@pytest.mark.parametrize("size", [(32, 32), (21, 34)])
def test_rotation_equals_torchvisions(degrees: float, size: tuple[int, int]) -> None:
    x = pictures(size=size).double()
    wanted = twin.rotate(x, degrees, InterpolationMode.BILINEAR)
    torch.testing.assert_close(
        Rotate([degrees])(x, RandomStreams(0, NAMES), 0)[..., 1:-1, 1:-1], wanted[..., 1:-1, 1:-1], rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("factor", [0.75, 1.5])
def test_scaling_equals_torchvisions(factor: float) -> None:
    x = pictures().double()
    wanted = twin.affine(x, 0.0, [0, 0], factor, [0.0, 0.0], InterpolationMode.BILINEAR)
    ours = Scale([factor])(x, RandomStreams(0, NAMES), 0)
    torch.testing.assert_close(ours[..., 5:-5, 6:-6], wanted[..., 5:-5, 6:-6], rtol=0, atol=1e-5)


def test_affine_maps_equal_torchvisions_with_the_same_draws() -> None:
    x, streams = pictures().double(), RandomStreams(3, NAMES)
    ours = RandomAffine(20, 0.1, [0.8, 1.2])(x, streams, 1)
    for i, (turn, size, right, down) in enumerate(streams.uniform((4,), "affine", 1).double().tolist()):
        angle, factor = 20 * (2 * turn - 1), 0.8 + 0.4 * size
        shift = [0.1 * (2 * right - 1) * WIDTH, 0.1 * (2 * down - 1) * HEIGHT]
        # torchvision's affine turns clockwise, its rotate the other way
        wanted = twin.affine(x[i : i + 1], -angle, shift, factor, [0.0, 0.0], InterpolationMode.BILINEAR)[0]
        torch.testing.assert_close(ours[i, :, 10:-10, 10:-10], wanted[:, 10:-10, 10:-10], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("outside", "mode"), [("grey", "zeros"), ("edge", "border"), ("reflect", "reflection")])
def test_what_lies_outside_is_as_in_torch_and_the_same_by_gathering(outside: str, mode: str) -> None:
    x = pictures(size=(9, 12)).double()
    at_x, at_y = (60 * torch.rand(3, 7, 8, generator=torch.Generator().manual_seed(i)).double() - 25 for i in (1, 2))
    grid = torch.stack([(2 * at_x + 1) / 12 - 1, (2 * at_y + 1) / 9 - 1], dim=-1)
    wanted = torch.nn.functional.grid_sample(x, grid, padding_mode=mode, align_corners=False)
    torch.testing.assert_close(sample(x, at_x, at_y, outside), wanted)
    if outside == "grey":
        torch.testing.assert_close(gathered(x, at_x, at_y), wanted)


def test_gathering_has_the_gradient_of_grid_sampling() -> None:
    x, generator = pictures(2, 2, (5, 6)).double().requires_grad_(), torch.Generator().manual_seed(1)
    at_x, at_y = (8 * torch.rand(2, 4, 3, generator=generator).double() - 1 for _ in range(2))
    gradients = [
        torch.autograd.grad(read.square().sum(), x)[0]
        for read in (gathered(x, at_x, at_y), sample(x, at_x, at_y, "grey"))
    ]
    torch.testing.assert_close(*gradients)
    assert torch.autograd.gradcheck(lambda p: gathered(p, at_x, at_y), x)


# Crops.


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("side", [8, 24, 64])
def test_boxes_equal_torchvisions_crops(antialias: bool, side: int) -> None:
    x, box = pictures(size=(64, 48)).double(), (8, 12, 32, 24)
    top, left, height, width = (torch.full((3,), float(v), dtype=x.dtype) for v in box)
    ours = (antialiased_boxes if antialias else boxes)(x, top, left, (height, width), (side, side))
    wanted = twin.resized_crop(x, *box, [side, side], InterpolationMode.BILINEAR, antialias)
    rim = max(1, side // 12)  # torchvision resizes as if nothing were around the box
    torch.testing.assert_close(ours[..., rim:-rim, rim:-rim], wanted[..., rim:-rim, rim:-rim], rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(50, 20), (16, 12), (64, 96)])
def test_resizing_to_the_input_equals_torchvisions(size: tuple[int, int]) -> None:
    x = pictures(size=(32, 48)).double()
    wanted = twin.resize(x, list(size), InterpolationMode.BILINEAR, antialias=True)
    torch.testing.assert_close(ToInputSize(size)(x, RandomStreams(0, NAMES), 0), wanted, rtol=0, atol=1e-6)
    assert ToInputSize((32, 48))(x, RandomStreams(0, NAMES), 0) is x


def drawn_boxes(crop: Any, step: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The (400, 2) upper left corners and the (400,) sizes of boxes, as shares of the side, read off a picture."""
    places = torch.linspace(0, 1, 65, dtype=torch.float64)[:-1] + 1 / 128  # of pixel centres, 64 px
    ramps = torch.stack([places[:, None].expand(64, 64), places[None].expand(64, 64)])
    out = crop(ramps.expand(400, -1, -1, -1), RandomStreams(0, MANY), step)
    down, right = out[:, 0, :, 16], out[:, 1, 16, :]  # linear inside, clipped or grey at the rim
    sizes = (right[:, 20] - right[:, 12]) / 8 * 32
    corners = torch.stack([down[:, 16], right[:, 16]], dim=1) - 16.5 / 32 * sizes[:, None]
    return corners.numpy(), sizes.numpy()


def test_maco_crops_follow_the_papers_distribution() -> None:
    corners, sizes = drawn_boxes(NormalCrop(0.25, 0.1, size=32))
    assert sizes.min() == pytest.approx(0.05, abs=1e-6)
    assert sizes.mean() == pytest.approx(0.25, abs=0.02)
    assert sizes.std() == pytest.approx(0.1, abs=0.015)
    assert corners.min() >= -1e-9
    assert (corners + sizes[:, None]).max() <= 1 + 1e-9
    room = corners / (1 - sizes[:, None])  # uniform in [0, 1]
    np.testing.assert_allclose(np.quantile(room, [0.25, 0.5, 0.75]), [0.25, 0.5, 0.75], atol=0.05)


def test_accentuations_crops_are_uniform() -> None:
    _, sizes = drawn_boxes(UniformCrop([0.05, 0.99], size=32))
    np.testing.assert_allclose(np.quantile(sizes, [0.0, 0.5, 1.0]), [0.05, 0.52, 0.99], atol=0.04)


@pytest.mark.parametrize(("quirk", "low", "high"), [(False, 0.20, 0.25), (True, 0.25, 0.30)])
def test_horamas_quirk_draws_above_what_it_is_asked_for(quirk: bool, low: float, high: float) -> None:
    _, sizes = drawn_boxes(UniformCrop([0.20, 0.25], horama_quirk=quirk, size=32))
    assert sizes.min() == pytest.approx(low, abs=1e-3)
    assert sizes.max() == pytest.approx(high, abs=1e-3)


def test_crops_about_the_middle_are_normal() -> None:
    corners, sizes = drawn_boxes(UniformCrop([0.1, 0.1], position="centre", size=32))
    middles = corners + sizes[:, None] / 2
    inside = np.abs(middles - 0.5).max(axis=1) < 0.4
    assert inside.mean() > 0.95
    assert middles[inside].mean() == pytest.approx(0.5, abs=0.02)
    assert middles[inside].std() == pytest.approx(0.15, abs=0.015)


@pytest.mark.parametrize(("step", "mean"), [(0, 0.5), (5, 0.275), (10, 0.05), (99, 0.05)])
def test_shrinking_crops_shrink(step: int, mean: float) -> None:
    _, sizes = drawn_boxes(ShrinkingCrop(0.5, 0.05, 0.0, 11, position="uniform", size=32), step)
    assert sizes == pytest.approx(mean, abs=1e-9)


def test_beyond_the_border_a_crop_is_grey() -> None:
    ones = torch.ones(400, 1, 16, 16)
    crops = UniformCrop([0.9, 0.9], position="centre", size=8)(ones, RandomStreams(0, MANY), 0)
    assert crops.max().item() == pytest.approx(1, abs=1e-6)
    assert crops.min() == 0


# Noise and blur.


def test_noise_has_the_distribution_it_claims() -> None:
    x = pictures(size=(64, 64))
    uniform = UniformNoise(0.2)(x, RandomStreams(0, NAMES), 0) - x
    normal = NormalNoise(0.2)(x, RandomStreams(0, NAMES), 0) - x
    assert uniform.abs().max().item() == pytest.approx(0.2, abs=1e-3)
    assert uniform.std().item() == pytest.approx(0.2 / 3**0.5, rel=0.02)
    assert normal.std().item() == pytest.approx(0.2, rel=0.02)
    assert abs(normal.mean().item()) < 0.01
    assert UniformNoise(0)(x, RandomStreams(0, NAMES), 0) is NormalNoise(0)(x, RandomStreams(0, NAMES), 0) is x


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.5])
def test_blur_equals_torchvisions(sigma: float) -> None:
    x = pictures(size=(32, 40)).double()
    wanted = twin.gaussian_blur(x, [31, 31], [sigma, sigma])
    torch.testing.assert_close(GaussianBlur([sigma, sigma])(x, RandomStreams(0, NAMES), 0), wanted, rtol=0, atol=1e-6)


def test_no_blur_is_the_identity_and_each_picture_has_its_own() -> None:
    x = pictures(1).expand(3, -1, -1, -1)
    torch.testing.assert_close(GaussianBlur([0, 0])(x, RandomStreams(0, NAMES), 0), x)
    blurred = GaussianBlur([0, 3])(x, RandomStreams(0, NAMES), 0)
    assert len({round(one.std().item(), 4) for one in blurred}) == 3
    assert blur_weights(torch.tensor([1.0, 3.0]), 9).sum(-1) == pytest.approx(np.ones((2, 9)), abs=1e-6)


# Composition.


def test_two_of_a_kind_draw_different_numbers() -> None:
    x = pictures()
    twice = Compose({"a": NormalNoise(1.0), "b": NormalNoise(1.0)})(x, RandomStreams(0, NAMES), 0) - x
    once = Compose({"a": NormalNoise(1.0)})(x, RandomStreams(0, NAMES), 0) - x
    assert not torch.allclose(twice, 2 * once)
    assert twice.std().item() == pytest.approx(2**0.5, rel=0.05)


def test_the_size_that_is_left_open_is_the_networks() -> None:
    x = pictures()
    for crop in (lambda: NormalCrop(0.25, 0.1), ToInputSize):
        assert Compose({"crop": crop()}, (7, 9))(x, RandomStreams(0, NAMES), 0).shape[-2:] == (7, 9)
        assert Compose({"crop": crop()})(x, RandomStreams(0, NAMES), 0).shape == x.shape


@pytest.mark.parametrize("option", options_of("transforms"))
def test_every_preset_gives_the_networks_size_and_a_gradient(option: str) -> None:
    parts = transform_of(compose_config([f"transforms={option}"])).transforms
    x = pictures(size=(64, 64)).requires_grad_()
    out = Compose(parts, (64, 64))(x, RandomStreams(0, NAMES), 1)
    assert out.shape == x.shape
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert gradient.isfinite().all()
    assert (gradient != 0).any(dim=-1).any(dim=-1).all()


def test_parts_are_added_and_taken_away_in_the_configuration() -> None:
    blur = "+transforms.blur={_target_: vital_exp.images.transforms.GaussianBlur, sigma: [0, 1]}"
    parts = transform_of(compose_config(["transforms=maco", "~transforms.uniform_noise", blur])).transforms
    assert list(parts) == ["crop", "blur"]


@pytest.mark.parametrize(
    ("build", "key"),
    [
        (lambda: CircularJitter(-1), "jitter.pixels"),
        (lambda: CircularJitter(1.5), "jitter.pixels"),  # type: ignore[arg-type]
        (lambda: CropJitter(224), "crop_jitter.pixels"),
        (lambda: Pad(True), "pad.pixels"),
        (lambda: Pad(3, "gray"), "pad.outside"),
        (lambda: Scale([]), "scale.factors"),
        (lambda: Scale([0.0, 1.0]), "scale.factors"),
        (lambda: Rotate(10), "rotate.degrees"),  # type: ignore[arg-type]
        (lambda: Rotate([10], "mirror"), "rotate.outside"),
        (lambda: RandomAffine(-1, 0, [1, 1]), "affine.degrees"),
        (lambda: RandomAffine(1, 2, [1, 1]), "affine.translate"),
        (lambda: RandomAffine(1, 0, [2, 1]), "affine.scale"),
        (lambda: HorizontalFlip(1.5), "flip.probability"),
        (lambda: NormalCrop("big", 0.1), "crop.mean"),  # type: ignore[arg-type]
        (lambda: NormalCrop(0.25, -0.1), "crop.std"),
        (lambda: NormalCrop(0.25, 0.1, "center"), "crop.position"),
        (lambda: NormalCrop(0.25, 0.1, size=0), "crop.size"),
        (lambda: NormalCrop(0.25, 0.1, antialias="yes"), "crop.antialias"),  # type: ignore[arg-type]
        (lambda: UniformCrop([0.5, 0.2]), "crop.share"),
        (lambda: UniformCrop([0.5]), "crop.share"),
        (lambda: UniformCrop([0.2, 0.5], horama_quirk=1), "crop.horama_quirk"),  # type: ignore[arg-type]
        (lambda: ShrinkingCrop(0.5, 0.05, 0.05, -1), "crop.steps"),
        (lambda: ToInputSize([3, 4, 5]), "input_size.size"),
        (lambda: UniformNoise(-0.1), "uniform_noise.amplitude"),
        (lambda: NormalNoise(float("nan")), "normal_noise.std"),
        (lambda: GaussianBlur([1, float("inf")]), "blur.sigma"),
    ],
)
def test_a_mistake_names_its_key(build: Callable[[], Any], key: str) -> None:
    with pytest.raises(UsageError, match=rf"^transforms\.{key}=") as caught:
        build()
    assert "\n" not in str(caught.value)


def test_a_misspelled_choice_gets_a_suggestion() -> None:
    with pytest.raises(UsageError, match=r"did you mean grey"):
        Pad(3, "gray")


def test_crops_of_large_pictures_have_a_gradient_in_half_precision() -> None:
    pictures = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    places = torch.linspace(8, 15, 8)
    x, y = places.expand(8, 8)[None], places[:, None].expand(8, 8)[None]
    for given in (pictures.clone(), pictures.bfloat16()):
        given.requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            read = _Windows.apply(given, x, y)
            loss = (read.bfloat16() * 2).sum()
        loss.backward()
        assert given.grad is not None
        torch.testing.assert_close(given.grad[..., 8:16, 8:16].float(), torch.full((1, 3, 8, 8), 2.0))
