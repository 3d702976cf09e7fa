"""Sort matching in blocks: the values of torch's sort, in every order in memory, precision and number of threads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vital_exp.objectives.alignment import sort_matching
from vital_exp.objectives.sorting import LONG_ROW, match_by_torch, match_sorted


def rows(positions: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Features (2, C, P) with zeros, equal and infinite values, quantiles and factors."""
    channels = 512 if positions < LONG_ROW else 64
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, channels, positions, generator=generator)
    features[0] = features[0].relu()
    features[1, :8] = features[1, :8].round(decimals=1)  # many equal values
    features[1, 8, :2] = torch.tensor([-1e30, 1e30])
    quantiles = torch.randn(2, channels, positions, generator=generator).sort(dim=-1).values
    return features.to(dtype), quantiles, torch.rand(2, channels, generator=generator)


def in_memory(features: Tensor) -> list[Tensor]:
    """The same as rows, as tokens come, and as every second channel."""
    tokens = features.transpose(1, 2).contiguous().transpose(1, 2)
    return [features, tokens, features.repeat_interleave(2, dim=1)[:, ::2]]


@pytest.mark.parametrize("positions", [49, 784, 9000])
def test_rows_are_matched_as_torch_sorts_them(positions: int) -> None:
    features, quantiles, factors = rows(positions, torch.float32)
    squares, slopes = match_by_torch(features, quantiles, factors)
    for given in in_memory(features):
        ours, own = match_sorted(given, quantiles, factors)
        torch.testing.assert_close(ours, squares, rtol=1e-5, atol=0)
        assert own.stride() == torch.empty_like(given).stride()
        # Zeros have no order; equal values of long rows have their own.
        assert torch.equal(own.sort(dim=-1).values, slopes.sort(dim=-1).values)
        different = (own != slopes) & (features != 0)
        different[1, :8] &= positions < LONG_ROW
        assert different.float().mean() <= (0 if positions < LONG_ROW else 1e-4)
    shared, _ = match_sorted(features, quantiles[0], factors)
    torch.testing.assert_close(shared, match_by_torch(features, quantiles[0], factors)[0], rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_precisions_are_torch_s(dtype: torch.dtype) -> None:
    features, quantiles, factors = rows(49, dtype)
    kind = torch.promote_types(dtype, torch.float32)
    found = match_sorted(features, quantiles.to(kind), factors.to(kind))
    for ours, own in zip(found, match_by_torch(features, quantiles.to(kind), factors.to(kind)), strict=True):
        assert ours.dtype == kind
        assert torch.equal(ours, own)


def test_a_value_that_is_no_number_reaches_the_loss() -> None:
    features = torch.randn(2, 64, 500, generator=torch.Generator().manual_seed(0))
    for nan in (torch.nan, -torch.nan):
        features[1, 3, 7] = nan
        losses = sort_matching(features, torch.zeros(64, 500))
        assert losses.isnan().tolist() == [False, True]


@pytest.mark.parametrize("positions", [49, 784, 9000])
def test_bfloat16_is_sorted_as_it_is(positions: int) -> None:
    features, quantiles, factors = rows(positions, torch.bfloat16)
    ordered, order = features.float().sort(dim=-1, stable=True)
    difference = ordered - quantiles
    slopes = torch.empty_like(difference).scatter_(-1, order, difference * factors[..., None])
    for given in in_memory(features):
        ours, own = match_sorted(given, quantiles, factors)
        torch.testing.assert_close(ours, difference.square().sum(dim=-1), rtol=1e-5, atol=0)
        assert not ((own != slopes.bfloat16()) & (features != 0)).any()  # -0 comes before 0
    exact, half = features.float().requires_grad_(), features.clone().requires_grad_()
    losses = [sort_matching(one, quantiles) for one in (exact, half)]
    assert torch.equal(losses[0], losses[1])
    gradients = [torch.autograd.grad(loss.sum(), one)[0] for loss, one in zip(losses, (exact, half), strict=True)]
    assert gradients[1].dtype == torch.bfloat16
    torch.testing.assert_close(gradients[1].float().norm(), gradients[0].norm(), rtol=1e-2, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_matching_depends_neither_on_threads_nor_on_company(dtype: torch.dtype) -> None:
    features, quantiles, factors = rows(3000, dtype)
    found = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 9):
            torch.set_num_threads(count)
            found.append(match_sorted(features, quantiles, factors))
    finally:
        torch.set_num_threads(threads)
    alone = [match_sorted(features[n : n + 1], quantiles[n], factors[n : n + 1]) for n in range(2)]
    found.append(tuple(torch.cat(parts) for parts in zip(*alone, strict=True)))
    for other in found[1:]:
        assert all(torch.equal(ours, first) for ours, first in zip(other, found[0], strict=True))
