"""Random streams, and what is saved of a picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vital_exp.images.output import masked_picture, quantised, smoothed_transparency, to_uint8, transparency
from vital_exp.images.randomness import RandomStreams

NAMES = ("class-0", "class-1", "class-2")


def test_random_streams_depend_on_seed_target_purpose_and_step_alone() -> None:
    streams = RandomStreams(0, NAMES)
    first = streams.normal((4,), "noise", 3)
    torch.testing.assert_close(RandomStreams(0, NAMES[::-1]).normal((4,), "noise", 3), first.flip(0), rtol=0, atol=0)
    for other in (RandomStreams(1, NAMES).normal((4,), "noise", 3), streams.normal((4,), "noise", 4)):
        assert not torch.equal(other, first)
    assert not torch.equal(streams.normal((4,), "start", 3), first)


def test_random_numbers_have_the_distributions_they_claim() -> None:
    streams = RandomStreams(0, [f"class-{i}" for i in range(400)])
    shifts = streams.integers(-3, 3, 2, "jitter", 0)
    assert set(shifts.unique().tolist()) == set(range(-3, 4))
    assert abs(shifts.float().mean()) < 0.2
    assert streams.normal((50,), "start").std().item() == pytest.approx(1, abs=0.02)
    assert streams.uniform((50,), "flip").mean().item() == pytest.approx(0.5, abs=0.01)


def test_branches_and_views_are_streams_of_their_own() -> None:
    streams = RandomStreams(0, NAMES)
    first = streams.normal((4,), "noise", 3)
    assert torch.equal(streams.views([0]).normal((4,), "noise", 3), first)
    again = streams.branched("again 1")
    others = [streams.views([1]), streams.views([2]), again, streams.views([1]).branched("again 1")]
    drawn = [first, *(other.normal((4,), "noise", 3) for other in others)]
    assert len({tuple(d.flatten().tolist()) for d in drawn}) == len(drawn)
    assert torch.equal(streams.views([2, 1]).normal((4,), "noise", 3), torch.cat([drawn[2], drawn[1]]))
    assert torch.equal(streams.views([0, 1]).branched("again 1").normal((4,), "noise", 3), torch.cat(drawn[3:]))


def test_eight_bits_are_rounded_not_truncated() -> None:
    assert to_uint8(torch.tensor([0.9999, 0.0, 1.0, 0.5])).tolist() == [255, 0, 255, 128]
    values = torch.arange(256) / 255
    torch.testing.assert_close(quantised(values), values)


@pytest.mark.parametrize("percentile", [98, 80, 100])
def test_transparency_map_follows_its_formula(percentile: float) -> None:
    sensitivity = torch.rand(2, 3, 20, 20, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 50.0]).view(
        2, 1, 1, 1
    )
    maps = transparency(sensitivity, percentile)
    for i in range(2):
        mean = sensitivity[i].mean(dim=0).numpy()
        clipped = np.minimum(mean, np.percentile(mean, percentile))
        np.testing.assert_allclose(maps[i, 0].numpy(), clipped / clipped.max(), rtol=1e-5)
    assert transparency(torch.zeros(1, 3, 4, 4), percentile).abs().max() == 0


@pytest.mark.parametrize("size", [(20, 20), (25, 50), (1, 3)])
def test_smoothed_transparency_equals_a_numpy_twin(size: tuple[int, int]) -> None:
    sensitivity = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0)) + 0.5
    maps = smoothed_transparency(sensitivity, 90)
    for map_, values in zip(maps[:, 0].numpy(), sensitivity.double().mean(dim=1).numpy(), strict=True):
        rows, columns = (np.subtract.outer(range(side), range(side)) / (0.04 * min(size)) for side in size)
        rows, columns = (np.exp(-(one**2) / 2) for one in (rows, columns))
        smooth = (rows @ values @ columns) / np.outer(rows.sum(1), columns.sum(1))
        smooth -= smooth.min()
        clipped = np.minimum(smooth, np.percentile(smooth, 90))
        np.testing.assert_allclose(map_, clipped / clipped.max(), rtol=1e-3, atol=1e-5)
    assert smoothed_transparency(torch.zeros(1, 3, 4, 4), 98).abs().max() == 0


def test_masked_picture_stretches_colours_and_carries_the_map() -> None:
    picture = torch.rand(3, 10, 10, generator=torch.Generator().manual_seed(0)) * 0.2 + 0.4
    mask = torch.rand(1, 10, 10, generator=torch.Generator().manual_seed(1))
    rgba = masked_picture(picture, mask)
    assert rgba.shape == (4, 10, 10)
    assert rgba[:3].min() == 0
    assert rgba[:3].max() == 1
    torch.testing.assert_close(rgba[3:], mask)
