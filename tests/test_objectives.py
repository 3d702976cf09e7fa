"""The formulas against numpy twins, properties, finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from tests.tiny import ON_CPU
from vital_exp import visualize
from vital_exp.config_tree import options_of
from vital_exp.engine import objective_and_gradient
from vital_exp.errors import UsageError
from vital_exp.objectives import l2_norm, sort_matching, total_variation
from vital_exp.objectives.alignment_terms import channel_precision, layer_precision
from vital_exp.references.quantiles import resample_quantiles


def numpy_sort_matching(features: np.ndarray, quantiles: np.ndarray) -> np.ndarray:
    """The definition in plain loops: mean over channels and positions of squared differences of sorted values."""
    result = []
    for picture, wanted in zip(features, quantiles, strict=True):
        channels = [np.mean((np.sort(have) - want) ** 2) for have, want in zip(picture, wanted, strict=True)]
        result.append(np.mean(channels))
    return np.array(result)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 3), st.integers(1, 4), st.integers(1, 40))
def test_sort_matching_equals_its_numpy_twin(seed: int, count: int, channels: int, positions: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, channels, positions, generator=generator, dtype=torch.float64)
    quantiles = torch.randn(count, channels, positions, generator=generator, dtype=torch.float64).sort(dim=-1).values
    expected = numpy_sort_matching(features.numpy(), quantiles.numpy())
    np.testing.assert_allclose(sort_matching(features, quantiles).numpy(), expected, rtol=1e-12)


def test_sort_matching_ignores_positions_and_vanishes_on_the_reference() -> None:
    generator = torch.Generator().manual_seed(0)
    reference = torch.randn(1, 5, 49, generator=generator)
    quantiles = reference.sort(dim=-1).values
    shuffled = reference[..., torch.randperm(49, generator=generator)]
    assert sort_matching(shuffled, quantiles).item() == 0
    assert sort_matching(reference + 1, quantiles).item() == pytest.approx(1)


def test_sort_matching_gradient_matches_finite_differences() -> None:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(2, 3, 11, generator=generator, dtype=torch.float64, requires_grad=True)
    quantiles = torch.randn(2, 3, 7, generator=generator, dtype=torch.float64).sort(dim=-1).values
    assert gradcheck(lambda x: sort_matching(x, quantiles), features)


def test_sort_matching_equals_sort_argsort_gather() -> None:
    """The published way to the same loss and gradient."""
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(2, 4, 30, generator=generator, requires_grad=True)
    quantiles = torch.randn(4, 30, generator=generator).sort(dim=-1).values
    rank = features.argsort(dim=-1).argsort(dim=-1)
    published = (features - quantiles.expand(2, -1, -1).gather(-1, rank)).square().mean(dim=(1, 2))
    ours = sort_matching(features, quantiles)
    torch.testing.assert_close(ours, published)
    (a,), (b,) = (torch.autograd.grad(value.sum(), features) for value in (ours, published))
    torch.testing.assert_close(a, b)


def test_channel_weights_are_factors_of_the_squared_differences() -> None:
    generator = torch.Generator().manual_seed(6)
    features = torch.randn(2, 3, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    quantiles = torch.randn(2, 3, 8, generator=generator, dtype=torch.float64).sort(dim=-1).values
    weights = torch.rand(2, 3, generator=generator, dtype=torch.float64)
    expected = ((features.detach().sort(dim=-1).values - quantiles).square().mean(dim=-1) * weights).mean(dim=-1)
    torch.testing.assert_close(sort_matching(features.detach(), quantiles, weights), expected)
    assert gradcheck(lambda x: sort_matching(x, quantiles, weights), features)


def test_channel_precision_is_one_over_the_variance_with_a_floor() -> None:
    quantiles = torch.tensor([[[0.0, 2.0], [5.0, 5.0], [0.0, 4.0]]])
    variance = np.array([1.0, 0.0, 4.0])
    expected = 1 / (variance + 0.1 * variance.mean())
    np.testing.assert_allclose(channel_precision(quantiles)[0].numpy(), expected, rtol=1e-6)
    assert channel_precision(torch.zeros(1, 2, 3)).isfinite().all()
    by_layer = 1 / quantiles[0].numpy().var(axis=-1).mean()
    np.testing.assert_allclose(layer_precision(quantiles)[0].numpy(), [by_layer] * quantiles.shape[1], rtol=1e-6)
    assert layer_precision(torch.zeros(1, 2, 3)).isfinite().all()


def test_sort_matching_in_half_precision_returns_float32() -> None:
    features = torch.randn(1, 2, 9, generator=torch.Generator().manual_seed(3)).bfloat16()
    assert sort_matching(features, torch.zeros(2, 9)).dtype == torch.float32


@given(st.integers(1, 60), st.integers(1, 60))
@settings(max_examples=50, deadline=None)
def test_resampled_quantiles_stay_ascending_and_in_range(known: int, positions: int) -> None:
    quantiles = torch.linspace(-1, 2, known, dtype=torch.float64) ** 3
    resampled = resample_quantiles(quantiles, positions)
    assert resampled.shape == (positions,)
    assert (resampled.diff() >= 0).all()
    assert resampled.min() >= quantiles.min()
    assert resampled.max() <= quantiles.max()


def test_resampling_a_linear_quantile_function_is_exact() -> None:
    """Midpoints (i + 0.5) / n of the uniform distribution on [0, 1], inside the range that is known."""
    coarse = (torch.arange(8, dtype=torch.float64) + 0.5) / 8
    fine = (torch.arange(16, dtype=torch.float64) + 0.5) / 16
    torch.testing.assert_close(resample_quantiles(coarse, 16)[1:-1], fine[1:-1])
    torch.testing.assert_close(resample_quantiles(fine, 8), coarse)


def test_total_variation_equals_its_numpy_twin() -> None:
    x = torch.randn(2, 3, 6, 7, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    for order in ("l1", "l2"):
        expected = []
        for picture in x.numpy():
            d = [picture[:, :, 1:] - picture[:, :, :-1], picture[:, 1:] - picture[:, :-1]]
            d += [picture[:, 1:, 1:] - picture[:, :-1, :-1], picture[:, 1:, :-1] - picture[:, :-1, 1:]]
            expected.append(sum(np.abs(e).mean() if order == "l1" else np.sqrt((e**2).sum()) for e in d))
        np.testing.assert_allclose(total_variation(x, order).numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("prior", [total_variation, l2_norm, lambda x: total_variation(x, "l1")])
def test_priors_are_per_picture_and_match_finite_differences(prior) -> None:  # type: ignore[no-untyped-def]
    x = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(5), dtype=torch.float64, requires_grad=True)
    assert gradcheck(prior, x)
    torch.testing.assert_close(prior(x)[1], prior(x[1:])[0])


def test_total_variation_of_a_flat_picture_is_zero_with_a_finite_gradient() -> None:
    flat = torch.full((1, 3, 4, 4), 0.5, requires_grad=True)
    total_variation(flat).sum().backward()
    assert total_variation(flat).item() == 0
    assert flat.grad is not None
    assert flat.grad.isfinite().all()


def test_an_unknown_order_is_refused() -> None:
    with pytest.raises(UsageError, match="l1, l2"):
        total_variation(torch.zeros(1, 3, 4, 4), "l3")


@pytest.mark.parametrize(("model", "expected"), [("embedded_resnet", "layer"), ("embedded_vit", "channel")])
def test_what_is_standardised_automatically_suits_the_architecture(model: str, expected: str) -> None:
    """One channel of massive activations would rule a transformer's layer."""
    pictures = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    losses = {}
    for kind in ("auto", "layer", "channel"):
        given = [f"objective.alignment.standardise={kind}", "transforms=none", "references.count=2"]
        losses[kind] = float(objective_and_gradient(model, "class:3", pictures, overrides=given)[0])
    assert losses["auto"] == losses[expected]
    assert losses["layer"] != losses["channel"]


@pytest.mark.parametrize("distance", options_of("objective/alignment"))
@pytest.mark.parametrize("method", ["vital", "vital_fourier"])
def test_every_distance_takes_what_the_presets_set(method: str, distance: str) -> None:
    given = ["steps=1", "evaluation=none", "references.count=2", *ON_CPU, f"objective/alignment={distance}"]
    made = visualize("embedded_resnet", "class:3", method=method, overrides=given)
    assert made.results[0]["status"] == "done"


def test_trimmed_sort_matching_leaves_out_the_ends_of_each_channel() -> None:
    """Twin in NumPy; the gradient of what is left out is 0, and that of the rest the slope of the loss."""
    generator = torch.Generator().manual_seed(5)
    features = torch.randn(2, 3, 20, generator=generator, dtype=torch.float64, requires_grad=True)
    quantiles, weights = torch.linspace(-2, 2, 20).double().expand(2, 3, 20), torch.tensor([[1.0, 2.0, 0.5]] * 2)
    found = sort_matching(features, quantiles, weights, trim=0.1)
    ordered = np.sort(features.detach().numpy(), axis=-1)[..., 2:-2]
    squares = ((ordered - quantiles.numpy()[..., 2:-2]) ** 2).mean(axis=-1)
    np.testing.assert_allclose(found.detach().numpy(), (squares * weights.numpy()).mean(axis=-1), rtol=1e-6)
    assert torch.autograd.gradcheck(lambda values: sort_matching(values, quantiles, weights.double(), 0.1), (features,))
    found.sum().backward()
    assert features.grad is not None
    assert int((features.grad == 0).sum()) == 2 * 3 * 4
    assert torch.equal(sort_matching(features, quantiles, weights, 0.04), sort_matching(features, quantiles, weights))


@pytest.mark.parametrize(
    ("model", "target", "trimmed"),
    [("embedded_vit", "class:3", True), ("embedded_vit", "blocks.4:3", False), ("embedded_resnet", "class:3", False)],
)
def test_only_classes_of_transformers_are_trimmed_automatically(model: str, target: str, trimmed: bool) -> None:
    pictures = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    references = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(4))
    losses = {}
    for trim in ("auto", "0.03", "0"):
        given = ["transforms=none", f"objective.alignment.trim={trim}", "objective.total_variation.weight=0"]
        keys = {"method": "vital_fourier", "references": references}
        losses[trim] = float(objective_and_gradient(model, target, pictures, overrides=given, **keys)[0])
    assert losses["auto"] == losses["0.03" if trimmed else "0"]
    assert losses["0.03"] != losses["0"]


@pytest.mark.parametrize("trim", ["0.5", "-0.1", "atuo", "true"])
def test_a_share_to_trim_is_checked(trim: str) -> None:
    with pytest.raises(UsageError, match=r"objective.alignment.trim=.*: auto, or a share of at least 0 and below 0.5"):
        objective_and_gradient(
            "embedded_resnet", "class:3", torch.rand(1, 3, 64, 64), overrides=[f"objective.alignment.trim={trim}"]
        )


def test_an_unknown_way_to_standardise_is_a_mistake() -> None:
    with pytest.raises(UsageError, match=r"objective.alignment.standardise=chanel: one of auto.*did you mean channel"):
        objective_and_gradient(
            "embedded_resnet", "class:3", torch.rand(1, 3, 64, 64), overrides=["objective.alignment.standardise=chanel"]
        )
