"""Hidden units as targets: what they read, the relevance-weighted objective, their pictures, users' mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.tiny import tiny_net
from vital_exp import load_model, visualize
from vital_exp.config import compose_config
from vital_exp.engine import objective_and_gradient
from vital_exp.errors import UsageError
from vital_exp.models.layers import Alignment
from vital_exp.models.network import VisionNetwork, model_space
from vital_exp.models.taps import Taps
from vital_exp.objectives.alignment_terms import SortMatching
from vital_exp.objectives.distance_terms import GramMatching
from vital_exp.objectives.terms import Objective, Problem
from vital_exp.references.statistics import READOUT, TARGET_LAYER, ReferenceStatistics, reference_statistics
from vital_exp.references.tensors import TensorReferences
from vital_exp.relevance.maps import METHODS, activations_and_relevance
from vital_exp.relevance.weights import Relevance, channel_correlation, channel_importance, spatial_masks
from vital_exp.setup.batching import batches, padded
from vital_exp.targets.class_names import ClassNames
from vital_exp.targets.readout import STRONGEST, Readout, readout
from vital_exp.targets.selection import unit_targets
from vital_exp.targets.unit import Target

SIZE = 32
UNIT = Target("channel", 3, "layer1")
SHORT = ["evaluation=none", "references.cache=false", "relevance=gradient_x_activation", "batch_size=2"]


def tiny(dead: int | None = None) -> VisionNetwork:
    """The tiny network; channel ``dead`` of layer1 never leaves zero."""
    module = tiny_net()
    if dead is not None:
        with torch.no_grad():
            module.layer1[0].bias[dead] = -1e3
    return load_model(module, size=SIZE)


def images(count: int = 3, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def test_readout_reads_a_channel_a_position_and_a_direction() -> None:
    activation = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    targets = [Target("channel", 2, "l"), Target("neuron", 1, "l", (3, 4)), Target("direction", 0, "l")]
    read = readout(targets, 4, torch.tensor([[1.0, -2.0, 0.0, 3.0]]))
    values = activation.numpy()
    np.testing.assert_allclose(read.map(activation)[0], values[0, 2].ravel(), rtol=1e-6)
    projected = values[2, 0] - 2 * values[2, 1] + 3 * values[2, 3]
    expected = [values[0, 2].max(), values[1, 1, 3, 4], projected.max()]
    np.testing.assert_allclose(read.value(activation), expected, rtol=1e-5)
    np.testing.assert_allclose(read.mean(activation), [values[0, 2].mean(), expected[1], projected.mean()], rtol=1e-4)


def test_a_neuron_is_read_from_references_where_its_channel_is_strongest() -> None:
    activation = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    read = readout([Target("neuron", 1, "l", (0, 0))], 3).of(0, 2, strongest=True)
    assert read.positions == (STRONGEST, STRONGEST)
    np.testing.assert_allclose(read.value(activation), activation[:, 1].flatten(1).amax(dim=1))
    assert read.mask(activation).sum(dim=1).tolist() == [1, 1]


def test_masks_importance_and_correlation_equal_numpy() -> None:
    relevance = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    flat = relevance.numpy().reshape(2, 3, 16)
    low, high = flat.min(-1, keepdims=True), flat.max(-1, keepdims=True)
    np.testing.assert_allclose(spatial_masks(relevance), (flat - low) / (high - low + 1e-6), rtol=1e-12)
    most = flat.max(-1)
    spread = most.max(-1, keepdims=True) - most.min(-1, keepdims=True) + 1e-6
    np.testing.assert_allclose(channel_importance(relevance), (most - most.min(-1, keepdims=True)) / spread, rtol=1e-12)
    means, values = torch.randn(20, 5, generator=torch.Generator().manual_seed(3)).double(), torch.arange(20.0).double()
    expected = [max(np.corrcoef(means[:, c], values)[0, 1], 0) for c in range(5)]
    np.testing.assert_allclose(channel_correlation(means, values), expected, rtol=1e-9)


def test_correlation_of_a_constant_channel_is_zero() -> None:
    assert channel_correlation(torch.ones(4, 2), torch.arange(4.0)).tolist() == [0, 0]


def plain_loss(network: VisionNetwork, target: Target, picture: Tensor, references: Tensor) -> float:
    """The hidden-unit loss in plain numpy, from relevance and activations: one layer of weight 0.1, priors 3e-7."""
    read = readout([target], 16)
    x, refs = network.preprocessing.normalise(picture), network.preprocessing.normalise(references)
    method = "gradient_x_activation"
    activation, relevance, _ = activations_and_relevance(network.module, x, ["conv1"], read, method)
    of_refs, relevance_of_refs, _ = activations_and_relevance(
        network.module, refs, ["conv1"], read.of(0, len(refs)), method
    )

    def masked(activations: Tensor, scores: Tensor) -> np.ndarray:
        flat = scores.flatten(2).double().numpy()
        low, high = flat.min(-1, keepdims=True), flat.max(-1, keepdims=True)
        sorted_values: np.ndarray = np.sort((flat - low) / (high - low + 1e-6) * activations.flatten(2).numpy(), -1)
        return sorted_values

    most = relevance_of_refs["conv1"].flatten(2).numpy().max(-1)
    low, high = most.min(-1, keepdims=True), most.max(-1, keepdims=True)
    weight = ((most - low) / (high - low + 1e-6)).mean(0)
    difference = masked(activation["conv1"], relevance["conv1"])[0] - masked(
        of_refs["conv1"], relevance_of_refs["conv1"]
    ).mean(0)
    pixels = x[0].numpy()
    shifts = (pixels[:, :, 1:] - pixels[:, :, :-1], pixels[:, 1:] - pixels[:, :-1])
    diagonals = (pixels[:, 1:, 1:] - pixels[:, :-1, :-1], pixels[:, 1:, :-1] - pixels[:, :-1, 1:])
    priors = sum(np.linalg.norm(d) for d in (*shifts, *diagonals)) + np.linalg.norm(pixels)
    return float(0.1 * (weight[:, None] * difference**2).mean() + 3e-7 * priors)


def test_the_objective_is_relevance_weighted_sort_matching_below_the_target() -> None:
    network, picture, references = tiny(), images(1, 5), images(4, 6)
    losses, gradient = objective_and_gradient(
        network, "layer1:3", picture, references=references, overrides=[*SHORT, "transforms=none"]
    )
    expected = plain_loss(network, Target("channel", 3, "layer1"), picture, references)
    assert float(losses[0]) == pytest.approx(expected, rel=1e-5)
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("method", ["lrp", "guided_backprop", "gradient_x_activation", "correlation", "none"])
def test_pictures_of_hidden_units_by_every_relevance(method: str, tmp_path: Path) -> None:
    made = visualize(
        tiny(), ["layer1:3", "layer1:5@2,1"], references=images(), steps=3, out=tmp_path / "run",
        overrides=["evaluation=none", "references.cache=false", f"relevance={method}", "logger=none"],
    )  # fmt: skip
    assert [result["target"] for result in made.results] == ["channel-layer1-3", "neuron-layer1-5-2-1"]
    assert all(result["status"] == "done" and result["activation"] is not None for result in made.results)
    assert made.results[1]["position"] == [2, 1]
    assert made.masks.amax() == 1
    assert (tmp_path / "run" / "images" / "neuron-layer1-5-2-1_masked.png").is_file()
    assert set(made.history["layer1:3"]) == {"alignment", "total_variation", "l2", "total"}


def test_a_picture_of_a_unit_does_not_depend_on_company_or_order() -> None:
    def pictures(targets: list[str]) -> dict[str, Tensor]:
        made = visualize(tiny(), targets, references=images(), steps=4, overrides=SHORT)
        return dict(zip(targets, made.images, strict=True))

    together = pictures(["layer1:3", "relu:2", "layer1:1", "layer1:7"])
    other = pictures(["layer1:7", "layer1:3"])
    for target, picture in other.items():
        torch.testing.assert_close(picture, together[target], rtol=0, atol=0)


def test_the_readout_itself_can_be_matched() -> None:
    network, picture, reference = tiny(), images(1, 7), images(1, 8)

    def loss(weight: float) -> float:
        given = [*SHORT, "transforms=none", f"objective.alignment.readout_weight={weight}"]
        losses, _ = objective_and_gradient(network, "layer1:3", picture, references=reference, overrides=given)
        return float(losses[0])

    read = readout([UNIT], 16)
    inputs = (network.preprocessing.normalise(x) for x in (picture, reference))
    maps = [activations_and_relevance(network.module, x, [], read, "lrp")[2] for x in inputs]
    ours, theirs = (np.sort(values[0].double().numpy()) for values in maps)
    assert loss(2.0) - loss(0.0) == pytest.approx(2 * np.mean((ours - theirs) ** 2), rel=1e-3)


@pytest.mark.parametrize("relevance", ["none", "gradient_x_activation", "correlation", "lrp"])
def test_the_target_s_own_layer_can_be_matched(relevance: str) -> None:
    network, picture, reference = tiny(), images(1, 7), images(1, 8)
    still = ["evaluation=none", "references.cache=false", "transforms=none", f"relevance={relevance}"]

    def loss(weight: float) -> float:
        given = [*still, f"objective.alignment.target_weight={weight}"]
        losses, _ = objective_and_gradient(network, "layer1:3", picture, references=reference, overrides=given)
        return float(losses[0])

    inputs = (network.preprocessing.normalise(x) for x in (picture, reference))
    taps = Taps(network.module, ["layer1"])
    ours, theirs = (np.sort(taps(x)[0]["layer1"][0].flatten(1).double().numpy(), axis=1) for x in inputs)  # (C, P)
    assert loss(2.0) - loss(0.0) == pytest.approx(2 * np.mean((ours - theirs) ** 2), rel=1e-3)


def test_the_first_layer_has_its_own_weight_unless_weights_are_given() -> None:
    network, picture, reference = tiny(), images(1, 7), images(1, 8)
    still = [
        "evaluation=none",
        "references.cache=false",
        "transforms=none",
        "relevance=none",
        "model.layers=[conv1,relu]",
    ]

    def loss(*overrides: str) -> float:
        losses, _ = objective_and_gradient(
            network, "layer1:3", picture, references=reference, overrides=[*still, *overrides]
        )
        return float(losses[0])

    stem = "objective.alignment.stem_weight="
    published, without = loss(), loss(f"{stem}0")
    assert published > without
    assert loss(f"{stem}1") - without == pytest.approx(10 * (published - without), rel=1e-3)
    assert loss("model.layer_weights=[0.5,1]", f"{stem}1") == pytest.approx(loss("model.layer_weights=[0.5,1]"))


RECIPES = [
    ("vital", [], ("lrp", 50, 1, "patch", 50)),
    ("vital_fourier", [], ("none", 12, "auto", "window", "auto")),
    ("vital_fourier", ["relevance=lrp", "references.facets=1"], ("lrp", 12, 1, "window", "auto")),
    ("vital", ["references.region=image", "references.count=20"], ("lrp", 20, 1, "image", 50)),
    ("maco", [], ("none", 50, 1, "window", 50)),
]


@pytest.mark.parametrize("kind", ["channel", "neuron", "direction", "concept", "sae", "text"])
@pytest.mark.parametrize(("method", "overrides", "expected"), RECIPES)
def test_a_method_says_what_hidden_units_take(
    kind: str, method: str, overrides: list[str], expected: tuple[Any, ...]
) -> None:
    config = compose_config([f"target={kind}", f"method={method}", *overrides])
    keys = config.references
    assert (config.relevance.method, keys.count, keys.facets, keys.region, keys.candidates) == expected


def test_classes_take_none_of_it() -> None:
    config = compose_config(["method=vital_fourier"])
    assert (config.relevance.method, config.references.facets, config.references.count) == ("none", 1, 50)


def test_batches_hold_one_layer_and_whole_units() -> None:
    units = [Target("channel", i, "a", variation=v) for i in range(2) for v in (1, 2, 3)]
    mixed = [*units[:4], Target("channel", 0, "b"), *units[4:]]
    made = list(batches(mixed, 4))
    assert [[t.name for t in batch] for batch in made] == [
        ["channel-a-0", "channel-a-0_v2", "channel-a-0_v3"],
        ["channel-a-1", "channel-a-1_v2", "channel-a-1_v3"],
        ["channel-b-0"],
    ]
    assert {len(padded(batch, 4)) for batch in made} == {4}


def test_unit_selections() -> None:
    assert [t.index for t in unit_targets("channel", "l", "0-2,5", 8)] == [0, 1, 2, 5]
    assert len(unit_targets("channel", "l", "all", 8)) == 8
    assert unit_targets("neuron", "l", 3, 8, (1, 2)) == [Target("neuron", 3, "l", (1, 2))]
    assert [t.name for t in unit_targets("channel", "l", 1, 8, variations=2)] == ["channel-l-1", "channel-l-1_v2"]


def test_directions_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "concepts.safetensors"
    save_file({"concepts": torch.eye(16)[:3]}, path)
    made = visualize(
        tiny(), ["direction-layer1-2"], references=images(), steps=2, overrides=[*SHORT, f"target.vectors={path}"]
    )
    channel = visualize(tiny(), ["layer1:2"], references=images(), steps=2, overrides=SHORT)
    first = made.history["direction-layer1-2"]["alignment"][0]
    assert made.results[0]["kind"] == "direction"
    assert first != channel.history["layer1:2"]["alignment"][0]  # another start: a stream of its own
    assert made.results[0]["status"] == "done"


@pytest.mark.parametrize("relevance", ["lrp", "gradient_x_activation"])
def test_a_unit_that_nothing_reaches_says_so(relevance: str) -> None:
    asked = [*(one for one in SHORT if not one.startswith("relevance")), f"relevance={relevance}"]
    made = visualize(tiny(dead=3), ["layer1:3", "layer1:5"], references=images(), steps=3, overrides=asked)
    assert [result["status"] for result in made.results] == ["failed", "done"]
    assert "gradient is exactly zero" in made.results[0]["error"]
    assert made.images[0].isnan().all()


def test_pictures_can_start_from_a_reference() -> None:
    made = visualize(
        tiny(), "layer1:3", references=images(), steps=1,
        overrides=[*SHORT, "image.init=reference", "optimizer.lr=1e-9", "transforms=none"],
    )  # fmt: skip
    torch.testing.assert_close(made.images[0], images()[0], rtol=0, atol=1e-5)


def test_a_unit_that_noise_does_not_reach_is_started_from_a_reference() -> None:
    network, still = tiny(), [*SHORT, "transforms=none"]
    noise = visualize(network, "layer1:3", references=images(), steps=1, overrides=[*still, "optimizer.lr=1e-9"])
    convolution = network.module.layer1[0]  # type: ignore[index]
    with torch.no_grad():
        before = Taps(network.module, ["bn1"])
        largest = [
            convolution(before(model_space(pictures, network))[0]["bn1"].relu()).amax((0, 2, 3))
            for pictures in (noise.images, images()[:1])
        ]
        unit = int((largest[1] - largest[0]).argmax())
        convolution.bias[unit] -= (largest[0] + largest[1])[unit] / 2  # silent on noise, not on the reference
    assert largest[0][unit] < largest[1][unit]
    silent = visualize(network, f"layer1:{unit}", references=images(), steps=3, overrides=still)
    assert "gradient is exactly zero" in silent.results[0]["error"]
    alive = visualize(
        network, f"layer1:{unit}", references=images(), steps=3, overrides=[*still, "image.init=reference"]
    )
    assert alive.results[0]["status"] == "done"
    assert alive.results[0]["activation"] > 0


MISTAKES = [
    ("layer1:99", [], r"targets=99: layer1 has 16 channels, 0 to 15"),
    ("layer1:3@9,9", [], r"target.position=\[9, 9\]: must be a \[row, column\] of the 8x8 map of layer1"),
    ("layer9:3", [], r"target.layer=layer9: no such layer in the network.*did you mean layer1"),
    ("layer1:3", ["model.layers=[layer1]"], r"model.layers=layer1: not below the target's layer layer1"),
    ("layer1:3", ["model.layers=[fc]"], r"model.layers=fc: not below the target's layer layer1"),
    ("conv1:3", [], r"no layer below conv1 to align; objective.alignment.readout_weight=1 aligns .* read-out"),
    ("direction-layer1-0", [], r"target.vectors=None: a .safetensors or .npy file of directions is needed"),
    ("direction-layer1-0", ["target.vectors=nowhere.npy"], r"target.vectors=nowhere.npy: no such file"),
    ("class:1", ["relevance=lrp"], r"relevance=lrp: hidden units only"),
    ("layer1:3", ["relevance.method=lpr"], r"relevance.method=lpr: one of .*did you mean lrp"),
]


@pytest.mark.parametrize(("target", "overrides", "message"), MISTAKES)
def test_mistakes_are_told_in_one_line(target: str, overrides: list[str], message: str) -> None:
    given = [o for o in SHORT if not (o.startswith("relevance") and any("relevance" in x for x in overrides))]
    with pytest.raises(UsageError, match=message):
        visualize(tiny(), target, references=images(), steps=1, overrides=[*given, *overrides])


def test_classes_and_hidden_units_are_two_calls() -> None:
    with pytest.raises(UsageError, match="two calls"):
        visualize(tiny(), ["class:1", "layer1:3"], references=images(), steps=1)


def test_a_readout_holds_one_row_per_picture() -> None:
    read = Readout("l", torch.eye(3), (None, (0, 1), None))
    assert read.of(1, 2).vectors.tolist() == [[0, 1, 0], [0, 1, 0]]
    assert read.of(1, 2).positions == ((0, 1), (0, 1))


UNPENALISED = ["objective.total_variation.weight=0", "objective.l2.weight=0"]


def differentiable_loss(
    network: VisionNetwork, picture: Tensor, references: Tensor, method: str, *, constant: bool
) -> Tensor:
    """That loss for layer1:3 by autograd; relevance is computed outside, or, not constant, moves with activations."""
    read, refs = readout([UNIT], 16), network.preprocessing.normalise(references)
    _, maps, _ = activations_and_relevance(network.module, picture.detach(), ["conv1"], read, method)
    of_refs, maps_of_refs, _ = activations_and_relevance(network.module, refs, ["conv1"], read.of(0, len(refs)), method)
    activation = network.module.get_submodule("conv1")(picture)
    relevance = maps["conv1"] if constant else maps["conv1"] * activation / activation.detach()
    masked = (spatial_masks(relevance) * activation.flatten(2)).sort(dim=-1).values
    wanted = (spatial_masks(maps_of_refs["conv1"]) * of_refs["conv1"].flatten(2)).sort(dim=-1).values.mean(dim=0)
    weight = channel_importance(maps_of_refs["conv1"]).mean(dim=0)
    return 0.1 * (weight[:, None] * (masked[0] - wanted).square()).mean()


@pytest.mark.parametrize("method", ["lrp", "lrp_restricted", "attn_lrp", "guided_backprop", "gradient_x_activation"])
def test_relevance_is_constant_in_the_backward_pass(method: str) -> None:
    network, picture, references = tiny(), images(1, 5), images(4, 6)
    losses, gradient = objective_and_gradient(
        network, "layer1:3", picture, references=references,
        overrides=[*SHORT[:2], f"relevance={method}", "transforms=none", *UNPENALISED],
    )  # fmt: skip
    expected = {}
    for constant in (True, False):
        x = network.preprocessing.normalise(picture).requires_grad_()
        loss = differentiable_loss(network, x, references, method, constant=constant)
        (expected[constant],) = torch.autograd.grad(loss, x)
        assert float(losses[0]) == pytest.approx(float(loss.detach()), rel=1e-4)
    scale = float(expected[True].abs().amax())
    torch.testing.assert_close(gradient, expected[True], rtol=1e-3, atol=1e-4 * scale)
    assert (gradient - expected[False]).abs().amax() > 0.1 * scale


class Counted:
    """Relevance, and how many images it was asked of at each call."""

    def __init__(self) -> None:
        self.images: list[int] = []

    def __call__(self, module: nn.Module, pictures: Tensor, *rest: Any) -> Any:
        self.images.append(len(pictures))
        return activations_and_relevance(module, pictures, *rest)


def test_relevance_is_computed_at_each_step_for_pictures_and_once_for_references(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of_pictures, of_references = Counted(), Counted()
    monkeypatch.setattr("vital_exp.relevance.weights.activations_and_relevance", of_pictures)
    monkeypatch.setattr("vital_exp.references.statistics.activations_and_relevance", of_references)
    visualize(
        tiny(), ["layer1:3", "layer1:5"], references=images(3), steps=5,
        overrides=[*SHORT[:2], "relevance=lrp", "batch_size=2"],
    )  # fmt: skip
    assert of_pictures.images == [2] * 5
    assert of_references.images == [3, 3]  # once for each target


@pytest.mark.parametrize("method", ["attn_lrp", "lrp_restricted"])
def test_pictures_by_attn_lrp_and_from_one_position(method: str) -> None:
    def loss(chosen: str) -> list[float]:
        made = visualize(
            tiny(), "layer1:3", references=images(), steps=3, overrides=[*SHORT[:2], f"relevance={chosen}"]
        )
        assert [result["status"] for result in made.results] == ["done"]
        history: list[float] = made.history["layer1:3"]["alignment"]
        return history

    assert loss(method)[0] != loss("lrp")[0]


@pytest.fixture
def counted() -> tuple[VisionNetwork, list[int]]:
    """The tiny network, and how many pictures each of its forward passes from now on has."""
    network, passes = tiny(), []
    network.taps(["layer1"]).trace(images(2))
    network.module.register_forward_pre_hook(lambda _module, given: passes.append(len(given[0])))
    return network, passes


def statistics_of(network: VisionNetwork, method: str) -> dict[str, Tensor]:
    relevance = Relevance(network, readout([UNIT], 16), method)
    return reference_statistics(network, ["conv1", READOUT, TARGET_LAYER], iter(images(10)), relevance)


@pytest.mark.parametrize("method", METHODS)
def test_references_pass_the_network_once(counted: tuple[VisionNetwork, list[int]], method: str) -> None:
    network, passes = counted
    found = statistics_of(network, method)
    assert passes == [8, 2]
    activation = network.taps(["layer1"])(model_space(images(10), network))[0]["layer1"].flatten(2)
    expected = {READOUT: activation[:, 3:4], TARGET_LAYER: activation}
    for name, values in expected.items():
        torch.testing.assert_close(found[f"quantiles/{name}"], values.sort(dim=-1).values.mean(dim=0))


def test_terms_of_a_step_share_one_relevance_pass(counted: tuple[VisionNetwork, list[int]]) -> None:
    network, passes = counted
    relevance = Relevance(network, readout([UNIT], 16), "lrp")
    references = TensorReferences(images(), ClassNames.numbered(4))
    statistics = ReferenceStatistics(network, references, None, relevance)
    there = Problem(
        network, (UNIT,), relevance.readout, Alignment({"conv1": 1.0, "bn1": 1.0}, 0, 0), statistics, relevance
    )
    terms = {"both": SortMatching(there), "one": SortMatching(there, layers=["bn1"]), "gram": GramMatching(there)}
    objective = Objective(network, terms, relevance=relevance)
    passes.clear()
    x = model_space(images(1, 5), network)
    _, shares = objective(x)
    assert passes == [1, 1]  # the step's own and relevance
    singles = {name: Objective(network, {name: term}, relevance=relevance)(x)[0] for name, term in terms.items()}
    for name, share in shares.items():
        torch.testing.assert_close(share, singles[name])
