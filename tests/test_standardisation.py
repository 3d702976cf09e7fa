"""The parts of MACO whose backward passes are written out, against the same formulas left to autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vital_exp.images.maco import spectrum_of
from vital_exp.images.standardisation import EPSILON, moments_of, standardised


def composed(values: Tensor, mean: float | Tensor = 0.0, spread: float | Tensor = 1.0) -> Tensor:
    own, std = moments_of(values)
    return mean + spread * (values - own) / std


def values(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(3, 3, 7, 6, dtype=torch.float64, generator=generator)
    return (4 * drawn + 2).requires_grad_()


@pytest.mark.parametrize(
    "constants", [(), (torch.tensor([1.0, -2.0, 0.5]).view(3, 1, 1, 1), torch.full((3, 1, 1, 1), 0.7))]
)
def test_values_and_gradients_of_standardised_are_those_of_the_composed_formula(constants: tuple[Tensor, ...]) -> None:
    given, upstream = values(), values(1).detach()
    ours, theirs = standardised(given, *constants), composed(given, *constants)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(result, given, upstream)[0] for result in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


def test_the_gradient_of_standardised_is_the_slope_of_its_values() -> None:
    assert torch.autograd.gradcheck(standardised, (values()[:1, :, :3, :3],))


def test_standardised_values_have_mean_zero_and_a_spread_just_below_one() -> None:
    own, std = moments_of(standardised(values()))
    std = std - EPSILON
    assert own.abs().max() < 1e-12
    assert 1 - 1e-4 < std.min() <= std.max() < 1


def test_equal_values_give_finite_values_and_gradients() -> None:
    flat = torch.full((1, 3, 4, 4), 0.3).requires_grad_()
    result = standardised(flat)
    result.sum().backward()
    assert result.isfinite().all()
    assert flat.grad is not None
    assert flat.grad.isfinite().all()


def test_values_and_gradients_of_the_spectrum_are_those_of_torch_polar() -> None:
    phase, magnitude = values(), values(2).detach().abs()[:1]
    ours, theirs = spectrum_of(magnitude, phase), torch.polar(magnitude.expand_as(phase), phase)
    torch.testing.assert_close(ours, theirs, rtol=1e-14, atol=1e-14)
    upstream = torch.view_as_complex(torch.randn(*phase.shape, 2, dtype=torch.float64))
    gradients = [torch.autograd.grad(result, phase, upstream)[0] for result in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)
