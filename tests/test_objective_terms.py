"""Every term of the group objective: properties from one table, formulas against numpy, users' mistakes."""

from __future__ import annotations

import atexit
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.nn import functional

from tests.tiny import tiny_net
from vital_exp import load_model
from vital_exp.config import build, compose_config
from vital_exp.config_tree import options_of
from vital_exp.engine import objective_and_gradient
from vital_exp.errors import UsageError
from vital_exp.models.layers import Alignment
from vital_exp.models.network import VisionNetwork
from vital_exp.models.taps import Taps
from vital_exp.objectives import distances, total_variation
from vital_exp.objectives.activation import (
    dot_cosine,
    gram_cosines,
    mean_square,
    position_distance,
    read_activation,
    relative_distance,
)
from vital_exp.objectives.algebra import term
from vital_exp.objectives.batch_norm_terms import real_batch_norms, statistics_distance
from vital_exp.objectives.gradient_rules import CorrelationGuidance, RedirectedReLU
from vital_exp.objectives.priors import boundary_complexity, high_frequency, l1_norm, l2_norm
from vital_exp.objectives.terms import Objective, Problem, Term
from vital_exp.references.statistics import ReferenceStatistics
from vital_exp.references.tensors import TensorReferences
from vital_exp.relevance.weights import Relevance
from vital_exp.targets.class_names import ClassNames
from vital_exp.targets.readout import Readout, readout
from vital_exp.targets.unit import OUTPUT, Target

SIZE = 16
PROBE = Path(tempfile.gettempdir()) / f"probe-of-{os.getpid()}.npy"  # of the eight channels of conv1
UNIT = 1  # class and channel of most tests: one that no ReLU closes


@dataclass(frozen=True)
class Capability:
    """What a term promises.

    Attributes:
        term: option of the group objective; ``alignment`` with how, ``alignment.sort``.
        kinds: of target it is for.
        options: overrides of its configuration.
        alone: whether a picture's value is its own, whatever the others of its batch.
    """

    term: str
    kinds: tuple[str, ...] = ("class", "channel")
    options: tuple[str, ...] = ()
    alone: bool = True


TABLE = (
    *(Capability(f"alignment.{how}") for how in options_of("objective/alignment")),
    Capability("alignment.moments", options=("highest=2", "standardise=channel")),
    Capability("alignment.gram", options=("standardise=channel", "pixel_weight=1.0")),
    *(Capability(f"alignment.{how}", options=("detail_weight=1.0",)) for how in options_of("objective/alignment")),
    Capability("alignment.sort", options=("standardise=channel", "detail_weight=1.0")),
    Capability("activation"),
    Capability("activation", options=("cosine_power=2.0",)),
    Capability("activation", kinds=("channel",), options=("position=centre",)),
    Capability("interpolation", options=("other=3", "variations=2")),
    Capability("deepdream"),
    Capability("diversity", alone=False),
    Capability("feature_inversion"),
    Capability("caricature"),
    Capability("accentuation", options=("alpha=0.1",)),
    Capability("cross_entropy", kinds=("class",)),
    Capability("facet", options=(f"probe={PROBE}", "layer=conv1")),
    Capability("facet", options=(f"probe={PROBE}", "layer=conv1", "rectified=false")),
    Capability("batch_norm"),
    Capability("total_variation", options=("weight=1.0",)),
    Capability("total_variation", options=("weight=1.0", "order=l1")),
    Capability("l1"),
    Capability("l2", options=("weight=1.0",)),
    Capability("high_frequency"),
    Capability("boundary", options=("width=3",)),
)
RULES = ("redirected_relu", "correlation_guidance")
CASES = [
    pytest.param(
        capability, kind, id=" ".join((capability.term, *capability.options, kind)).replace(str(PROBE), "file")
    )
    for capability in TABLE
    for kind in capability.kinds
]


np.save(PROBE, np.linspace(-1, 2, 8, dtype=np.float32))
atexit.register(PROBE.unlink, missing_ok=True)


@pytest.fixture(autouse=True)
def small_pictures_have_details(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of ``SIZE`` px are too small for details; with this they have two bands."""
    monkeypatch.setattr("vital_exp.images.details.FEWEST_SQUARES", SIZE // 4)


@cache
def network(double: bool = True) -> VisionNetwork:
    module = tiny_net()
    return load_model(module.double() if double else module, size=SIZE)


def pictures(count: int = 2, seed: int = 0) -> Tensor:
    """Normalised ones."""
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def targets_of(kind: str) -> tuple[Target, ...]:
    """Two variations of a unit, which diversity and interpolation need."""
    layer = None if kind == "class" else "layer1"
    return tuple(Target(kind, UNIT, layer, variation=variation) for variation in (1, 2))


def start_of(target: Target) -> Tensor:
    """A picture (3, H, W) RGB of the target's own."""
    generator = torch.Generator().manual_seed(10 * target.index + target.variation)
    return torch.rand(3, SIZE, SIZE, generator=generator, dtype=torch.float64)


def problem(targets: Sequence[Target], model: VisionNetwork | None = None) -> Problem:
    model = model or network()
    layer = targets[0].layer
    read = readout(targets, 4 if layer is None else 16)
    relevance = None if layer is None else Relevance(model, read, "none")
    images = torch.rand(5, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    statistics = ReferenceStatistics(model, TensorReferences(images, ClassNames.numbered(4)), None, relevance)
    layers = {"conv1": 1.0, "layer1": 0.5} if layer is None else {"conv1": 1.0}
    starts = torch.stack([start_of(target) for target in targets])
    return Problem(model, tuple(targets), read, Alignment(layers, 0.0, 0.0), statistics, relevance, starts)


@cache
def node(option: str, options: tuple[str, ...] = ()) -> Any:
    """The configuration of an option, as the command composes it."""
    name, _, how = option.partition(".")
    choice = [f"objective=[{name}]", *([f"objective/alignment={how}"] if how else [])]
    return compose_config([*choice, *(f"objective.{name}.{o}" for o in options)]).objective[name]


def objective(capability: Capability, targets: Sequence[Target]) -> Objective:
    term = build("objective", node(capability.term, capability.options), problem=problem(targets))
    return Objective(network(), {capability.term: term})


def test_the_table_holds_every_option_of_the_group() -> None:
    terms = {capability.term.partition(".")[0] for capability in TABLE}
    assert terms | set(RULES) == set(options_of("objective"))


@pytest.mark.parametrize(("capability", "kind"), CASES)
def test_a_term_gives_one_value_per_picture_with_the_gradient_of_finite_differences(
    capability: Capability, kind: str
) -> None:
    built = objective(capability, targets_of(kind))
    x = pictures().requires_grad_()
    value, shares = built(x)
    assert value.shape == (2,)
    assert list(shares) == [capability.term]
    assert value.isfinite().all()
    assert gradcheck(lambda pixels: built(pixels)[0], x, fast_mode=True)


@pytest.mark.parametrize(("capability", "kind"), CASES)
def test_a_term_falls_within_five_steps(capability: Capability, kind: str) -> None:
    built = objective(capability, targets_of(kind))
    x = pictures().requires_grad_()
    optimizer = torch.optim.Adam([x], lr=0.05)
    first = built(x)[0].detach()
    for _ in range(5):
        optimizer.zero_grad()
        built(x)[0].sum().backward()
        optimizer.step()
    assert (built(x)[0] < first).all()


@pytest.mark.parametrize(("capability", "kind"), [c for c in CASES if c.values[0].alone])  # type: ignore[attr-defined]
def test_the_value_of_a_picture_does_not_depend_on_its_neighbours(capability: Capability, kind: str) -> None:
    if capability.term == "interpolation":
        kind = "channel"
    targets, x = targets_of(kind), pictures()
    together = objective(capability, targets)(x)[0]
    neighbours = objective(capability, [targets[1], replace(targets[1], index=3)])(x[[1, 0]])[0]
    torch.testing.assert_close(together[1], neighbours[0])


@pytest.mark.parametrize("term", ["alignment.gram", "activation", "batch_norm", "accentuation"])
def test_a_weight_of_zero_leaves_a_term_out(term: str) -> None:
    there = problem(targets_of("class"))
    zero = build("objective", node(term, ("weight=0.0",)), problem=there)
    built = Objective(network(), {"zero": zero, "l2": build("objective", node("l2", ("weight=1.0",)), problem=there)})
    assert list(built.terms) == ["l2"]
    assert not built.taps.layers
    torch.testing.assert_close(built(pictures())[0], l2_norm(pictures()))


@pytest.mark.parametrize("kind", ["class", "channel"])
def test_terms_compose_with_weights_and_a_caption(kind: str) -> None:
    names = ("alignment.kl_gaussian", "activation", "diversity", "boundary")
    there = problem(targets_of(kind))
    parts = {name: build("objective", node(name), problem=there) for name in (*names, "redirected_relu")}
    parts["diversity"].weight, parts["boundary"].weight = 0.5, -2.0
    total, shares = Objective(network(), parts)(pictures())
    singles = {name: Objective(network(), {name: parts[name]})(pictures())[0] for name in names}
    torch.testing.assert_close(total, sum(singles.values()))
    assert set(shares) == set(names)
    renamed = {name.partition(".")[0]: part for name, part in parts.items()}
    assert Objective(network(), renamed).caption == "alignment/kl_gaussian + activation + 0.5 diversity - 2 boundary"


def test_the_options_of_the_group_run_through_the_engine() -> None:
    overrides = ["objective=[activation,total_variation,redirected_relu]", "objective.total_variation.weight=0.1"]
    picture = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3))
    references = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(4))
    losses, gradient = objective_and_gradient(
        network(False), "class:1", picture, references=references, overrides=[*overrides, "transforms=none"]
    )
    x = network(False).preprocessing.normalise(picture)
    expected = -network(False)(picture)[:, 1] + 0.1 * total_variation(x)
    torch.testing.assert_close(losses, expected)
    assert gradient.abs().sum() > 0


def test_operators_give_the_overrides_of_a_sum() -> None:
    total = term("alignment/kl_gaussian") + 0.5 * term("diversity", layer="layer1") - 2 * term("boundary", width=3)
    assert str(total) == "alignment/kl_gaussian + 0.5 diversity - 2 boundary"
    config = compose_config(total.overrides)
    weights = {name: part.weight for name, part in config.objective.items()}
    assert weights == {"alignment": 1, "diversity": 0.5, "boundary": -2}
    assert config.objective.alignment._target_.endswith("GaussianKL")
    assert (config.objective.diversity.layer, config.objective.boundary.width) == ("layer1", 3)
    assert str(total + term("redirected_relu", steps=4)) == str(total)
    assert compose_config((total + term("redirected_relu", steps=4)).overrides).objective.redirected_relu.steps == 4
    doubled = -(2 * total)
    assert [one.weight for one in doubled.terms] == [-2, -1, 4]
    assert [one.weight for one in total.terms] == [1, 0.5, -2]


def test_every_kind_of_value_survives_as_an_override() -> None:
    values = {"image": "a 'b' \\ c=d, e.png", "layer": None}
    config = compose_config(
        (term("caricature", **values) + term("alignment", layers=["a.1", "b"], standardise="layer")).overrides
    )
    assert {key: config.objective.caricature[key] for key in values} == values
    assert list(config.objective.alignment.layers) == ["a.1", "b"]
    assert config.objective.alignment.standardise == "layer"


@pytest.mark.parametrize(
    ("mistake", "hint"),
    [
        (lambda: term("activatoin"), "activation"),
        (lambda: term("alignment/gran"), "gram"),
        (lambda: term("l1") + term("l1"), "each option once"),
        (lambda: term("l1") * "2", "numbers"),
    ],
)
def test_mistakes_in_sums(mistake: Any, hint: str) -> None:
    with pytest.raises(UsageError, match=hint):
        mistake()


# The formulas, against numpy.


def activation(channels: int = 4, side: tuple[int, ...] = (3, 5), seed: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, channels, *side, generator=generator, dtype=torch.float64)


def test_a_class_a_channel_a_neuron_and_a_direction_are_read() -> None:
    a = activation()
    targets = [Target("channel", 1, "l"), Target("neuron", 2, "l", (1, 4))]
    np.testing.assert_allclose(read_activation(a, readout(targets, 4)), [a[0, 1].mean(), a[1, 2, 1, 4]], rtol=1e-7)
    logits = activation(4, (1,))
    assert read_activation(logits, readout(targets_of("class"), 4)).tolist() == logits[:, UNIT, 0].tolist()


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("position", [None, (2, 3)])
def test_directions_are_lucids_dot_times_cosine(power: float, position: tuple[int, int] | None) -> None:
    a, vector = activation(), np.array([0.5, -1.0, 0.0, 2.0])
    read = Readout("l", torch.tensor(vector).expand(2, 4), (position, position))
    expected = []
    for one in a.numpy():
        values = []
        for row, column in np.ndindex(3, 5):
            here = one[:, row, column]
            dot = here @ vector
            cosine = dot / (1e-4 + np.sqrt(here @ here)) / (1e-4 + np.sqrt(vector @ vector))
            if position in (None, (row, column)):
                values.append(dot * max(0.1, cosine) ** power)
        expected.append(np.mean(values))
    np.testing.assert_allclose(read_activation(a, read, power), expected, rtol=1e-6)


def test_a_position_replaces_the_targets_own() -> None:
    there = problem(targets_of("channel"))
    a = Taps(network().module, ["layer1"])(pictures())[0]["layer1"]  # (2, 16, 4, 4)
    for position, place in (("centre", (2, 2)), ("[0,3]", (0, 3))):
        term = build("objective", node("activation", (f"position={position}",)), problem=there)
        torch.testing.assert_close(term(pictures(), {"layer1": a}), -a[:, UNIT, place[0], place[1]])


def test_interpolation_goes_from_one_unit_to_another() -> None:
    targets = [Target("channel", 2, "layer1", variation=v) for v in (1, 2, 3)]
    term = build("objective", node("interpolation", ("other=5", "variations=3")), problem=problem(targets))
    a = activation(16, (4, 4)).repeat(2, 1, 1, 1)[:3]
    means = a.numpy().mean((2, 3))
    shares = np.array([0, 0.5, 1])
    expected = -((1 - shares) * means[:, 2] + shares * means[:, 5])
    np.testing.assert_allclose(term(pictures(3), {"layer1": a}), expected, rtol=1e-7)


def test_squares_distances_and_caricature_equal_numpy() -> None:
    a, b = activation(), activation(seed=6)
    x, y = a.numpy(), b.numpy()
    np.testing.assert_allclose(mean_square(a), (x**2).mean((1, 2, 3)))
    relative = ((x - y) ** 2).sum((1, 2, 3)) / (y**2).sum((1, 2, 3))
    np.testing.assert_allclose(relative_distance(a, b), relative)
    np.testing.assert_allclose(position_distance(a, b), np.sqrt(((x - y) ** 2).sum(1)).mean((1, 2)))
    dot = (x * y).sum((1, 2, 3))
    norms = [(1e-4 + np.sqrt((one**2).sum((1, 2, 3)))) for one in (x, y)]
    np.testing.assert_allclose(dot_cosine(a, b), dot)
    np.testing.assert_allclose(dot_cosine(a, b, 2), dot * np.maximum(0.1, dot / norms[0] / norms[1]) ** 2)


def test_diversity_sums_to_lucids_over_the_variations_of_a_unit() -> None:
    a = activation(seed=7)
    features = a.numpy().reshape(2, 4, 15)
    grams = [f @ f.T / np.linalg.norm(f @ f.T) for f in features]
    lucid = sum((grams[i] * grams[j]).sum() for i in range(2) for j in range(2) if i != j) / 2
    np.testing.assert_allclose(gram_cosines(a)[0, 1], (grams[0] * grams[1]).sum())
    targets = [Target("channel", 2, "layer1", variation=v) for v in (1, 2)]
    term = build("objective", node("diversity"), problem=problem(targets))
    np.testing.assert_allclose(term(pictures(), {"layer1": a}).sum(), lucid)


def test_diversity_is_within_a_unit_and_padding_changes_nobody() -> None:
    first, second = targets_of("channel")
    other = [replace(target, index=3) for target in (first, second)]
    x = pictures(4, 8)
    values, gradients = [], []
    for targets, rows in (
        ([first, second], [0, 1]),
        ([*other, first, second, second, second], [2, 3, 0, 1, 1, 1]),
    ):
        batch = x[rows].requires_grad_()
        value = objective(Capability("diversity"), targets)(batch)[0]
        place = targets.index(first)
        values.append(value[place : place + 2].detach())
        gradients.append(torch.autograd.grad(value.sum(), batch)[0][place : place + 2])
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*gradients)


def numpy_reference(seed: int = 9) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(2, 3, 40, generator=generator, dtype=torch.float64)
    quantiles = (torch.randn(2, 3, 30, generator=generator, dtype=torch.float64) * 2 + 1).sort(dim=-1).values
    return features, quantiles


def floor_of(quantiles: np.ndarray) -> np.ndarray:
    floor: np.ndarray = 1e-3 * (quantiles**2).mean((1, 2))[:, None]
    return floor


def test_gaussian_kl_equals_torchs_divergence_of_normals() -> None:
    features, quantiles = numpy_reference()
    floor = torch.tensor(floor_of(quantiles.numpy()))
    have, wanted = (
        torch.distributions.Normal(v.mean(-1), (v.var(-1, correction=0) + floor).sqrt()) for v in (features, quantiles)
    )
    expected = torch.distributions.kl_divergence(have, wanted)  # (2, 3)
    torch.testing.assert_close(distances.gaussian_kl(features, quantiles), expected.mean(1))
    weights = torch.tensor([[1.0, 0.0, 2.0], [0.5, 0.5, 0.5]])
    torch.testing.assert_close(distances.gaussian_kl(features, quantiles, weights), (expected * weights).mean(1))


def numpy_histogram(values: np.ndarray, bins: int) -> np.ndarray:
    counts = np.zeros(bins)
    for value in values:
        place = (value + 1) / 2 * (bins - 1)
        lower = int(np.floor(place))
        counts[lower] += lower + 1 - place
        counts[lower + 1] += place - lower
    blurred = np.zeros(bins)
    for i in range(bins):
        kernel = np.exp(-np.abs(np.arange(bins) - i))
        blurred += counts[i] * kernel / kernel.sum()
    return blurred / len(values)


def test_histogram_kl_equals_its_numpy_twin() -> None:
    features, quantiles = numpy_reference()
    expected = []
    for have, wanted in zip(features.numpy(), quantiles.numpy(), strict=True):
        channels = []
        for x, y in zip(have, wanted, strict=True):
            z = [(v - (y.min() + y.max()) / 2) / ((y.max() - y.min()) / 2) for v in (x, y)]
            p, q = (numpy_histogram(v / (1 + np.abs(v)), 16) for v in z)
            channels.append((p * np.log(p / q)).sum())
        expected.append(np.mean(channels))
    np.testing.assert_allclose(distances.histogram_kl(features, quantiles, bins=16), expected)


@pytest.mark.parametrize("highest", [1, 2, 3])
def test_moments_equal_numpy(highest: int) -> None:
    features, quantiles = numpy_reference()
    x, y = features.numpy(), quantiles.numpy()
    floor = floor_of(y)
    deviation = [np.sqrt(v.var(-1) + floor) for v in (x, y)]
    skew = [((v - v.mean(-1, keepdims=True)) ** 3).mean(-1) / d**3 for v, d in zip((x, y), deviation, strict=True)]
    terms = [x.mean(-1) - y.mean(-1), deviation[0] - deviation[1], deviation[1] * (skew[0] - skew[1])]
    expected = sum(t**2 for t in terms[:highest]).mean(-1)  # type: ignore[union-attr]
    np.testing.assert_allclose(distances.moment_matching(features, quantiles, highest=highest), expected)


def test_gram_matching_equals_numpy() -> None:
    features, references = numpy_reference()[0], numpy_reference(10)[0]
    x, y = features.numpy(), references.numpy()
    grams = [v @ v.transpose(0, 2, 1) / v.shape[-1] for v in (x, y)]
    weights = np.array([[1.0, 0.5, 2.0], [0.0, 1.0, 1.0]])
    expected = (weights[:, :, None] * weights[:, None] * (grams[0] - grams[1]) ** 2).mean((1, 2))
    ours = distances.gram_matching(features, torch.tensor(grams[1]), torch.tensor(weights))
    np.testing.assert_allclose(ours, expected)


@pytest.mark.parametrize("distance", [distances.gaussian_kl, distances.histogram_kl, distances.moment_matching])
def test_distances_vanish_at_the_reference_in_any_order_and_stay_finite(distance: Any) -> None:
    quantiles = numpy_reference()[1].float()
    shuffled = quantiles[..., torch.randperm(30, generator=torch.Generator().manual_seed(0))]
    torch.testing.assert_close(distance(shuffled, quantiles), torch.zeros(2), atol=1e-6, rtol=0)
    for features, wanted in ((torch.zeros(2, 3, 40), quantiles), (quantiles * 100, torch.zeros(2, 3, 9))):
        x = features.clone().requires_grad_()
        value = distance(x, wanted)
        assert value.isfinite().all()
        assert (value > 0).all()
        assert torch.autograd.grad(value.sum(), x)[0].isfinite().all()


@pytest.mark.parametrize("distance", [distances.gaussian_kl, distances.histogram_kl])
def test_divergences_have_no_unit(distance: Any) -> None:
    features, quantiles = numpy_reference()
    torch.testing.assert_close(distance(features * 7, quantiles * 7), distance(features, quantiles))


@pytest.mark.parametrize("distance", [distances.gaussian_kl, distances.histogram_kl, distances.moment_matching])
def test_a_gradient_step_brings_a_far_value_back(distance: Any) -> None:
    """Also one far outside the range of the references."""
    quantiles = torch.linspace(-1, 1, 50)[None, None]
    features = torch.cat([quantiles[..., :-1], torch.tensor([[[8.0]]])], dim=-1).requires_grad_()
    (gradient,) = torch.autograd.grad(distance(features, quantiles).sum(), features)
    assert gradient[0, 0, -1] > 0


def test_mean_grams_are_those_of_the_references() -> None:
    there = problem(targets_of("channel"))
    term = build("objective", node("alignment.gram"), problem=there)
    images = torch.stack(list(there.statistics.references.images(there.targets[0])))
    a = Taps(network().module, ["conv1"])(network().preprocessing.normalise(images).double())[0]["conv1"].flatten(2)
    expected = np.mean([f @ f.T / f.shape[1] for f in a.numpy()], axis=0)
    np.testing.assert_allclose(term.grams["conv1"][0], expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(term.grams["conv1"][0], term.grams["conv1"][1])


def test_cross_entropy_is_torchs() -> None:
    term = build("objective", node("cross_entropy"), problem=problem(targets_of("class")))
    logits = activation(4, (1,))
    expected = functional.cross_entropy(logits[..., 0], torch.tensor([UNIT, UNIT]), reduction="none")
    torch.testing.assert_close(term(pictures(), {OUTPUT: logits}), expected)


def test_batch_norm_statistics_are_those_of_each_picture() -> None:
    module = network().module
    x = pictures()
    term = build("objective", node("batch_norm", ("weight=1.0",)), problem=problem(targets_of("class")))
    inputs = module.conv1(x).detach().numpy()  # type: ignore[operator]
    mean, variance = module.bn1.running_mean.numpy(), module.bn1.running_var.numpy()  # type: ignore[union-attr]
    expected = [np.linalg.norm(one.mean((1, 2)) - mean) + np.linalg.norm(one.var((1, 2)) - variance) for one in inputs]
    np.testing.assert_allclose(Objective(network(), {"b": term})(x)[0].detach(), 10 * np.array(expected))
    assert not any(m._forward_pre_hooks for m in module.modules())


def test_batch_norm_matches_statistics_of_the_references_themselves() -> None:
    a = activation()
    flat = a[:1].flatten(2)[0]
    assert statistics_distance(a[:1], flat.mean(1), flat.var(1, correction=0)).item() == pytest.approx(0, abs=1e-12)


def test_folded_batch_norms_are_not_real() -> None:
    module = tiny_net()
    assert real_batch_norms(module) == [module.bn1]
    module.bn1.reset_running_stats()
    assert real_batch_norms(module) == []
    with pytest.raises(UsageError, match="not applicable"):
        build("objective", node("batch_norm"), problem=problem(targets_of("class"), load_model(module, size=SIZE)))


def test_priors_equal_numpy() -> None:
    x = torch.rand(2, 3, 12, 9, generator=torch.Generator().manual_seed(11), dtype=torch.float64)
    pixels = x.numpy()
    np.testing.assert_allclose(l1_norm(x), np.abs(pixels).sum((1, 2, 3)))
    spectrum = np.abs(np.fft.fft2(pixels)) ** 2
    fine = np.hypot(np.fft.fftfreq(12)[:, None], np.fft.fftfreq(9)[None]) > 0.2
    np.testing.assert_allclose(high_frequency(x, 0.2), (spectrum * fine).sum((1, 2, 3)) / (3 * (12 * 9) ** 2))


def test_the_boundary_penalty_is_lucids() -> None:
    x = torch.rand(2, 3, 9, 8, generator=torch.Generator().manual_seed(12), dtype=torch.float64)
    pixels = x.numpy()
    blurred = np.zeros_like(pixels)
    for i, j in np.ndindex(9, 8):
        total, weights = 0.0, 0.0
        for di, dj in np.ndindex(5, 5):
            row, column = i + di - 2, j + dj - 2
            if 0 <= row < 9 and 0 <= column < 8:
                weight = 1.0 if 1 <= di <= 3 and 1 <= dj <= 3 else 0.5
                total, weights = total + weight * pixels[:, :, row, column], weights + weight
        blurred[:, :, i, j] = total / weights
    values = (blurred - pixels) ** 2 + 0.8 * (pixels - 0.5) ** 2
    values[:, :, 2:-2, 2:-2] = 0
    np.testing.assert_allclose(boundary_complexity(x, 2, 0.5), values.sum((1, 2, 3)))
    torch.testing.assert_close(boundary_complexity(x, 99, 0.5), boundary_complexity(x, 5, 0.5))


# Pictures that terms compare with.


def test_given_pictures_take_the_transforms_of_the_step() -> None:
    built = objective(Capability("feature_inversion", options=("image=start",)), targets_of("class"))
    start = problem(targets_of("class")).starts
    assert start is not None
    x = network().preprocessing.normalise(start)
    torch.testing.assert_close(built.given["feature_inversion"], x)
    rolled = {"feature_inversion": x.roll(3, -1)}
    torch.testing.assert_close(built(x.roll(3, -1), given=rolled)[0], torch.zeros(2, dtype=torch.float64))
    assert (built(x.roll(3, -1))[0] > 0).all()


def test_an_image_file_is_given_to_all_targets(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    built = objective(Capability("caricature", options=(f"image={tmp_path}/photo.png",)), targets_of("class"))
    rgb = network().preprocessing.denormalise(built.given["caricature"])
    np.testing.assert_allclose(rgb[1], pixels.transpose(2, 0, 1) / 255, atol=1e-6)


def test_accentuation_balances_the_gradients_at_the_start() -> None:
    there = problem(targets_of("class"))
    term = build("objective", node("accentuation", ("alpha=2.0",)), problem=there)
    assert there.starts is not None
    x = network().preprocessing.normalise(there.starts)
    at_start = Objective(network(), {"a": term})(x.requires_grad_())[0]
    torch.testing.assert_close(at_start, -network().module(x)[:, UNIT])
    assert torch.autograd.grad(at_start.sum(), x)[0].isfinite().all()
    # a step away, both parts pull alike when alpha is 1
    x = (x.detach() + 0.02 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))).requires_grad_()
    taps = Taps(network().module, ["layer1"])
    distance = position_distance(
        taps(x)[0]["layer1"], taps(network().preprocessing.normalise(there.starts))[0]["layer1"]
    )
    parts = (network().module(x)[:, UNIT], term.balance * distance)
    sizes = [torch.autograd.grad(part.sum(), x)[0].abs().sum((1, 2, 3)) for part in parts]
    torch.testing.assert_close(sizes[0], sizes[1], rtol=0.2, atol=0)
    value = Objective(network(), {"a": term})(x)[0]
    torch.testing.assert_close(value, -parts[0] + 2 * parts[1])


# Rules for the gradient.


def lucid_gradient(x: np.ndarray, gradient: np.ndarray, top: float) -> np.ndarray:
    result = []
    for values, g in zip(x, gradient, strict=True):
        usual = np.where((values < 0) | (values > top), 0, g)
        pushing = ((values < 0) & (g > 0)) | ((values > top) & (g < 0))
        result.append(usual if np.linalg.norm(usual) > 0 else np.where(pushing, 0, g))
    return np.array(result)


class Functional(nn.Module):
    """ReLUs that are no modules."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.function(x * 1)
        return y


def relu_in_place(x: Tensor) -> Tensor:
    """The result of the call is not used."""
    x.relu_()
    return x


@pytest.mark.parametrize(
    ("relu", "top"),
    [
        (nn.ReLU(), np.inf),
        (nn.ReLU(inplace=True), np.inf),
        (nn.ReLU6(), 6.0),
        (nn.ReLU6(inplace=True), 6.0),
        (torch.relu, np.inf),
        (functional.relu6, 6.0),
        (relu_in_place, np.inf),
    ],
)
def test_redirected_relus_have_lucids_gradient(relu: Any, top: float) -> None:
    rule = RedirectedReLU(problem(targets_of("class")), steps=3)
    generator = torch.Generator().manual_seed(13)
    x = torch.randn(4, 5, 2, generator=generator, dtype=torch.float64) * 4
    x[1], x[2] = -x[1].abs(), 6.5 + x[2].abs()  # closed below, and above for a ReLU6
    gradient = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    results = {}
    for step in (0, 3):
        leaf = x.clone().requires_grad_()
        with rule.during(step):
            output = Functional(relu)(leaf)
        results[step] = torch.autograd.grad(output, leaf, gradient)[0]
        np.testing.assert_allclose(output.detach(), np.clip(x.numpy(), 0, top))
    np.testing.assert_allclose(results[0], lucid_gradient(x.numpy(), gradient.numpy(), top))
    usual = np.where((x.numpy() <= 0) | (x.numpy() >= top), 0, gradient.numpy())
    np.testing.assert_allclose(results[3], usual)


def test_a_dead_unit_has_a_gradient_for_the_first_steps() -> None:
    module = tiny_net()
    with torch.no_grad():
        module.layer1[0].bias[UNIT] = -20
    there = problem(targets_of("channel"), load_model(module.double(), size=SIZE))
    parts = {name: build("objective", node(name), problem=there) for name in ("activation", "redirected_relu")}
    built = Objective(there.network, parts)
    sizes = []
    for step in (0, 15, 16):
        x = pictures().requires_grad_()
        (gradient,) = torch.autograd.grad(built(x, step=step)[0].sum(), x)
        sizes.append(float(gradient.abs().sum()))
    assert built.settled == 16
    assert min(sizes[:2]) > 0
    assert sizes[2] == 0


def test_correlation_guidance_scales_the_gradient_by_the_correlation_with_the_target() -> None:
    there = problem(targets_of("channel"))
    parts = {name: build("objective", node(name), problem=there) for name in ("activation", "correlation_guidance")}
    rule = parts["correlation_guidance"]
    assert isinstance(rule, CorrelationGuidance)
    x = pictures().requires_grad_()
    value, _ = Objective(network(), parts)(x)
    (ours,) = torch.autograd.grad(value.sum(), x)

    module: Any = network().module
    images = torch.stack(list(there.statistics.references.images(there.targets[0])))
    conv, out = (
        Taps(module, [n])(network().preprocessing.normalise(images).double())[0][n] for n in ("conv1", "layer1")
    )
    largest, means = out[:, UNIT].amax((1, 2)).numpy(), conv.mean((2, 3)).numpy()
    correlation = [max(np.corrcoef(means[:, c], largest)[0, 1], 0) for c in range(8)]
    np.testing.assert_allclose(rule.weights["conv1"][0], correlation, rtol=1e-4, atol=1e-6)

    mapped = module.conv1(x)
    loss = -module.layer1(module.relu(module.bn1(mapped.clone())))[:, UNIT].mean((1, 2)).sum()
    (signal,) = torch.autograd.grad(loss, mapped)
    weights = rule.weights["conv1"].double()[:, :, None, None]
    (expected,) = torch.autograd.grad(module.conv1(x), x, signal * weights)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(value.sum(), loss)
    assert not any(m._forward_hooks for m in module.modules())


# Mistakes.


@pytest.mark.parametrize(
    ("term", "kind", "options", "key"),
    [
        ("activation", "class", ("cosine_power=-1",), "cosine_power"),
        ("activation", "channel", ("position=[9,0]",), "4x4"),
        ("activation", "channel", ("position=middle",), "centre"),
        ("deepdream", "class", ("layer=layer2",), "layer1"),
        ("diversity", "class", ("layer=7",), "objective.diversity.layer"),
        ("caricature", "class", ("image=nowhere.png",), "reference"),
        ("feature_inversion", "class", ("layer=conv2",), "conv1"),
        ("accentuation", "class", ("alpha=many",), "objective.accentuation.alpha"),
        ("interpolation", "class", (), "target.variations"),
        ("interpolation", "class", ("variations=2",), "objective.interpolation.other"),
        ("interpolation", "class", ("variations=2", "other=4"), "0 to 3"),
        ("cross_entropy", "channel", (), "target=class"),
        ("batch_norm", "class", ("first_factor=-1",), "first_factor"),
        ("high_frequency", "class", ("cutoff=0.5",), "cutoff"),
        ("boundary", "class", ("width=0",), "width"),
        ("boundary", "class", ("colour=2",), "between 0 and 1"),
        ("alignment.kl_histogram", "class", ("bins=1",), "bins"),
        ("alignment.moments", "class", ("highest=4",), "at most 3"),
        ("alignment.kl_gaussian", "class", ("standardise=chanel",), "channel"),
        ("redirected_relu", "class", ("steps=-1",), "steps"),
        ("correlation_guidance", "channel", ("layers=[conv9]",), "conv1"),
    ],
)
def test_mistakes_name_the_key_and_what_is_allowed(term: str, kind: str, options: tuple[str, ...], key: str) -> None:
    there = problem(targets_of(kind))

    def run() -> None:
        part = build("objective", node(term, options), problem=there)
        assert isinstance(part, Term)
        Objective(network(), {term: part})(pictures())

    with pytest.raises(UsageError) as caught:
        run()
    assert key in str(caught.value)


def test_diversity_without_variations_and_accentuation_without_an_image_are_mistakes() -> None:
    alone = problem(targets_of("class")[:1])
    with pytest.raises(UsageError, match=r"target\.variations=1"):
        build("objective", node("diversity"), problem=alone)
    with pytest.raises(UsageError, match=r"image\.init=noise.*accentuation"):
        build("objective", node("accentuation"), problem=replace(alone, starts=None))
