"""What pictures decide, class by class: each member is one of its class, and the bounds have their closed forms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.tiny import ON_CPU, SHORT, command, exit_code, tiny_net
from vital_exp import audit, load_model
from vital_exp.attacks import function_classes as classes
from vital_exp.attacks.function_classes import Bounds, Known
from vital_exp.attacks.theory import FACTS, UnitFunction, measured, summary
from vital_exp.attacks.theory_figure import figure
from vital_exp.commands.audit import main
from vital_exp.models.unit_readout import unit_readout
from vital_exp.targets.unit import Target

HIGH, LOW = 3.0, -1.0


def f_of(points: Tensor) -> Tensor:
    """A function of points that has its ends at the pictures of :func:`known`."""
    return (HIGH + LOW) / 2 + (HIGH - LOW) / 2 * torch.tanh(8 * (points - 0.5).mean(dim=1)) / np.tanh(4)


def known(dimensions: int = 40, images: int = 12) -> Known:
    numbers = torch.Generator().manual_seed(0)
    points = torch.rand(images, dimensions, generator=numbers, dtype=torch.float64)
    pictures = torch.stack([torch.ones(dimensions), torch.zeros(dimensions)]).double()
    return Known(pictures, f_of(pictures), points, LOW, HIGH)


CLASSES = {
    "black box": classes.black_box,
    "neural network": lambda one: classes.neural_network(one, f_of),
    "piecewise affine": classes.piecewise_affine,
    "Lipschitz": lambda one: classes.lipschitz(one, 1.5 * one.slope),
    "monotonic": classes.monotonic,
    "convex": classes.convex,
    "affine": classes.affine_function,
}


def bounds_of(name: str, one: Known) -> Bounds:
    found: Bounds | None = CLASSES[name](one)  # type: ignore[operator]
    assert found is not None
    return found


@pytest.mark.parametrize("name", CLASSES)
def test_members_agree_at_the_pictures_and_have_the_bounds(name: str) -> None:
    one = known()
    found = bounds_of(name, one)
    assert found.members is not None
    for member, bound in zip(found.members, (found.low, found.high), strict=True):
        torch.testing.assert_close(member(one.pictures), one.values, atol=1e-8, rtol=0)
        torch.testing.assert_close(member(one.images), bound, atol=1e-8, rtol=0)
        assert bound.min() >= LOW - 1e-8
        assert bound.max() <= HIGH + 1e-8


@pytest.mark.parametrize("name", ["black box", "neural network", "piecewise affine", "monotonic", "convex", "affine"])
def test_classes_of_which_pictures_say_nothing(name: str) -> None:
    one = known()
    row = measured(one, f_of(one.images), bounds_of(name, one))
    assert row["undecided"] == pytest.approx(1)
    assert row["undecided_mean"] == pytest.approx(1)
    assert row["difference"] > 0.5


def test_lipschitz_members_have_their_constant_and_closed_form() -> None:
    one = known()
    constant = 1.5 * one.slope
    found = classes.lipschitz(one, constant)
    points = torch.rand(60, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for member in found.members or ():
        values = member(points)
        slopes = (values[:, None] - values[None]).abs() - constant * torch.cdist(points, points)
        assert slopes.max() <= 1e-9
    to_high, to_low = (np.linalg.norm(one.images.numpy() - p.numpy(), axis=1) for p in one.pictures)
    np.testing.assert_allclose(found.low, np.maximum(LOW, HIGH - constant * to_high))
    np.testing.assert_allclose(found.high, np.minimum(HIGH, LOW + constant * to_low))


def test_the_least_constant_decides_the_line_between_the_pictures() -> None:
    one = known()
    assert one.slope == pytest.approx((HIGH - LOW) / np.sqrt(40))
    shares = torch.linspace(0, 1, 5, dtype=torch.float64)[:, None]
    between = Known(one.pictures, one.values, shares.expand(5, 40).clone(), LOW, HIGH)
    found = classes.lipschitz(between, one.slope)
    torch.testing.assert_close(found.low, found.high, atol=1e-9, rtol=0)
    torch.testing.assert_close(found.low, LOW + (HIGH - LOW) * shares[:, 0])


def test_convex_members_are_convex() -> None:
    one = known()
    left, right = torch.rand(2, 50, 40, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for member in classes.convex(one).members:  # type: ignore[union-attr]
        assert ((member(left) + member(right)) / 2 - member((left + right) / 2)).min() >= -1e-9


def test_monotonic_members_never_fall_along_the_signs() -> None:
    one = known(dimensions=2)
    points = torch.rand(200, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    more = points + torch.rand(200, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    inside = Known(torch.tensor([[0.7, 0.6], [0.3, 0.4]]).double(), one.values, points, LOW, HIGH)
    found = classes.monotonic(inside)
    for member in found.members or ():
        assert (member(more) >= member(points)).all()
    above, below = (points >= inside.pictures[0]).all(dim=1), (points <= inside.pictures[1]).all(dim=1)
    decided = found.low == found.high
    assert above.any()
    assert below.any()
    assert torch.equal(decided, above | below)


def test_the_network_is_f_with_bumps_of_relus() -> None:
    one = known()
    kept = one.images[:3]
    others = Known(one.pictures, one.values, one.images[3:], LOW, HIGH)
    found = classes.neural_network(others, f_of, kept)
    for member in found.members or ():
        torch.testing.assert_close(member(kept), f_of(kept), atol=1e-9, rtol=0)
    bumps = classes.Bumps(one.pictures, 4.0, torch.tensor([1.0, 2.0]).double())
    near = np.concatenate([one.images.numpy(), one.pictures.numpy() + 0.03])
    twin = [
        sum(
            height * max(0, 1 - np.abs(x - a).sum() / 4) for a, height in zip(one.pictures.numpy(), (1, 2), strict=True)
        )
        for x in near
    ]
    np.testing.assert_allclose(bumps(torch.from_numpy(near)), twin, atol=1e-12)
    assert max(twin) > 0.5


def test_affine_in_two_dimensions_has_its_closed_form() -> None:
    """One coefficient is free: the two images farthest out bound it."""
    across = torch.tensor([-1.0, 0.5, 2.0]).double()
    points = torch.stack([torch.full((3,), 0.5).double(), across], dim=1)
    one = Known(torch.tensor([[1.0, 0], [0, 0]]).double(), torch.tensor([1.0, 0.0]).double(), points, 0.0, 1.0)
    found = classes.affine_in(one, 2)  # value 1/2 + c y, so |c| <= 1/4
    torch.testing.assert_close(found.high, 0.5 + across.abs() / 4)
    torch.testing.assert_close(found.low, 0.5 - across.abs() / 4)


def test_the_predictable_classes_are_predicted() -> None:
    one = known()
    on_the_line = classes.line(one)
    twin = LOW + (HIGH - LOW) * one.images.numpy().mean(axis=1)
    np.testing.assert_allclose(on_the_line.low, twin)
    for bounds in (on_the_line, classes.constant(one), classes.affine_in(one, 1)):
        usable = torch.isfinite(bounds.low)
        assert usable.any()
        torch.testing.assert_close(bounds.low[usable], bounds.high[usable], atol=1e-7, rtol=0)


def test_more_images_than_pixels_have_no_affine_function_through_any_values() -> None:
    assert classes.affine_function(known(dimensions=4)) is None
    assert classes.convex(known(dimensions=4)) is None
    line = summary([{"class": "convex", "construction": "", **measured(known(4), f_of(known(4).images), None)}])
    assert line[0]["pictures_decide"] == "–"
    assert "no such function found" in figure(line)


def test_the_binding_radius_is_where_the_bounds_reach_the_range() -> None:
    one = known()
    constant = 3 * one.slope
    radius = classes.binding_radius(one, constant)
    away = torch.nn.functional.normalize(torch.randn(1, 40).double(), dim=1)
    for share, free in ((0.99, False), (1.01, True)):
        there = Known(one.pictures, one.values, one.pictures[:1] + share * radius * away, LOW, HIGH)
        low = classes.lipschitz(there, constant).low
        assert bool(low <= LOW + 1e-9) is free


def test_a_unit_is_the_networks_and_its_gradient_that_of_differences() -> None:
    network = load_model(tiny_net(), size=16)
    unit = UnitFunction(network, unit_readout(network, [Target("class", 1)]), (3, 16, 16))
    points = torch.rand(3, 768, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(unit(points), network(points.view(3, 3, 16, 16).float())[:, 1].double())
    assert classes.pair_slope(points, unit(points)) <= float(unit.steepness(torch.cat([points] * 2)).max()) * 50
    linear = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 2))
    own = load_model(linear, size=16, mean=(0.0,) * 3, std=(0.5,) * 3)
    unit = UnitFunction(own, unit_readout(own, [Target("class", 1)]), (3, 16, 16))
    expected = linear[1].weight[1].norm() / 0.5
    np.testing.assert_allclose(unit.steepness(points), [float(expected)] * 3, rtol=1e-5)


GREY_FACTORY = "tests.test_attacks_theory:grey"


def grey() -> torch.nn.Module:
    """One logit for grey pictures."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torch.nn.Sequential(
            torch.nn.Conv2d(1, 4, 3), torch.nn.GELU(), torch.nn.Flatten(), torch.nn.Linear(784, 1)
        )


BRIEF = ("count=3", "steps=1", "hydra.run.dir=out")


@pytest.mark.slow
@pytest.mark.usefixtures("workplace")
def test_the_command_has_one_page_and_one_figure(capsys: pytest.CaptureFixture[str]) -> None:
    assert command(*SHORT, *ON_CPU, "target.index=[0,3]", "hydra.run.dir=run") == 0
    assert exit_code(main, "check=theory", "run=run", *BRIEF) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "determine the unit in these classes of functions: affine in one dimension, constant" in said
    assert "star: L is at least" in said
    page = Path("out/report.html").read_text()
    assert page.count("<svg") == 1
    assert page.count("data:image/png") == 4
    assert "What the pictures leave open" in page
    assert "maximising" in page


@pytest.mark.slow
@pytest.mark.usefixtures("workplace")
def test_hidden_units_and_grey_networks_of_one_logit() -> None:
    hidden = ("target=channel", "target.layer=layer3", "target.index=1", "relevance=none", "method=fourier")
    assert command(*SHORT, *ON_CPU, *hidden, "hydra.run.dir=hidden") == 0
    found = audit("theory", "hidden", count=3, steps=1)
    assert set(FACTS) <= set(found.rows[0])
    model = ("model=python", f"model.factory={GREY_FACTORY}", "model.size=16", "model.mean=[0.5]", "model.std=[0.5]")
    folder = Path("photos/one")
    folder.mkdir(parents=True)
    from PIL import Image

    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    asked = (*model, "steps=2", "progress=false", "references.root=photos", "method=fourier", "target.index=0")
    assert command(*asked, *ON_CPU, "hydra.run.dir=grey") == 0
    found = audit("theory", "grey", count=6, steps=1, images="photos")
    assert found.rows[0]["n"] == 6
    assert {row["class"]: row["undecided"] for row in found.rows}["constant"] == 0


@pytest.mark.slow
@pytest.mark.usefixtures("workplace")
def test_a_mistake_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(main, "check=theorie", "run=run", *BRIEF) == 2
    assert exit_code(main, "check=theory", "run=nowhere", *BRIEF) == 2
    lines = capsys.readouterr().err.splitlines()
    assert "theory" in lines[0]
    assert "no such folder" in lines[-1]
