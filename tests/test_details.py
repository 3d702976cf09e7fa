"""Details of pictures: the Haar transform against an independent twin, its energy, and the distributions of details."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d

from tests.tiny import command, tiny_net
from vital_exp.images.details import DETAILS, bands_of, details
from vital_exp.models.layers import Alignment
from vital_exp.models.named import load_model
from vital_exp.objectives.alignment_terms import SortMatching, channel_precision
from vital_exp.objectives.terms import Objective, Problem
from vital_exp.references.statistics import ReferenceStatistics, reference_statistics
from vital_exp.references.tensors import TensorReferences
from vital_exp.targets.class_names import ClassNames
from vital_exp.targets.readout import readout
from vital_exp.targets.unit import INPUT, Target

FILTERS = torch.tensor([[[1, -1], [1, -1]], [[1, 1], [-1, -1]], [[1, -1], [-1, 1]]], dtype=torch.float64) / 4


def pictures(height: int, width: int, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(height * width)
    return torch.randn(2, channels, height, width, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_each_band_is_a_convolution_with_the_haar_filters(channels: int) -> None:
    given = pictures(19, 26, channels)
    mean = given.mean(dim=1, keepdim=True)
    rest = given if channels == 1 else torch.cat([mean, given - mean], dim=1)
    for band in details(given, DETAILS[:2]).values():
        twin = torch.cat(
            [
                conv2d(rest, one[None, None].expand(rest.shape[1], 1, 2, 2), stride=2, groups=rest.shape[1])
                for one in FILTERS
            ],
            dim=1,
        )
        torch.testing.assert_close(band, twin.flatten(2))
        rest = torch.nn.functional.avg_pool2d(rest, 2)


def test_details_and_the_last_means_keep_the_energy() -> None:
    grey = pictures(16, 16, channels=1)
    bands = details(grey, DETAILS).values()
    means = torch.nn.functional.avg_pool2d(grey, 8)
    energy = sum(4**size * band.square().sum() for size, band in enumerate(bands, 1)) + 64 * means.square().sum()
    torch.testing.assert_close(energy, grey.square().sum())


def test_a_plain_picture_has_no_details_and_grain_has_only_small_ones() -> None:
    plain = torch.full((1, 3, 16, 16), 0.5)
    assert all(not band.any() for band in details(plain, DETAILS).values())
    board = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).repeat(8, 8).expand(1, 3, 16, 16)
    finest, *coarser = details(board, DETAILS).values()
    assert finest.abs().amax() == 0.5
    assert all(not band.any() for band in coarser)


def test_half_precision_loses_nothing_but_the_rounding_of_the_picture() -> None:
    half = pictures(16, 16).bfloat16()
    (found,) = details(half, DETAILS[:1]).values()
    (wanted,) = details(half.float(), DETAILS[:1]).values()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_small_pictures_have_fewer_bands() -> None:
    assert [len(bands_of(side)) for side in (448, 224, 112, 64, 55, 1)] == [3, 3, 2, 1, 0, 0]


def test_references_of_details_are_their_mean_sorted_coefficients() -> None:
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    network = load_model(tiny_net(), size=16)
    layers = (INPUT, *DETAILS[:2])
    found = reference_statistics(network, layers, iter(images))
    seen = network.preprocessing.normalise(images)
    for name, band in details(seen, DETAILS[:2]).items():
        torch.testing.assert_close(found[f"quantiles/{name}"], band.sort(dim=-1).values.mean(dim=0))


def term(side: int, share: float = 1.0, size: tuple[int, int] | None = None, weight: float = 1.0) -> SortMatching:
    network = load_model(tiny_net(), size=side)
    images = torch.rand(4, 3, side, side, generator=torch.Generator().manual_seed(0))
    references = TensorReferences(images, ClassNames.numbered(4))
    statistics = ReferenceStatistics(network, references, None, None, share)
    target = Target("class", 1)
    problem = Problem(network, (target,), readout((target,), 4), Alignment({"conv1": 1.0}, 0, 0), statistics, size=size)
    return SortMatching(problem, detail_weight=weight, standardise="layer")


@pytest.mark.parametrize(
    ("side", "share", "size", "bands"),
    [(224, 1.0, None, 3), (113, 1.0, None, 2), (32, 1.0, None, 0), (224, 0.5, (112, 112), 2), (128, 1.0, (56, 140), 1)],
)
def test_the_network_sees_as_many_bands_as_fit(
    side: int, share: float, size: tuple[int, int] | None, bands: int
) -> None:
    """Also of pictures that grow, or that are smaller than the network's input."""
    made = term(side, share, size)
    assert list(made.layer_weights) == [*DETAILS[:bands], "conv1"]
    height, width = size or (side, side)
    pictures = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    value, _ = Objective(load_model(tiny_net(), size=side), {"alignment": made})(pictures)
    assert value.isfinite().all()


def test_a_weight_of_zero_leaves_details_out() -> None:
    made = term(64, weight=0.0)
    assert made.layers == ("conv1",)
    assert set(made.quantiles) == {"conv1"}


def test_every_channel_of_details_counts_by_its_own_variance() -> None:
    made = term(112)
    for name in DETAILS[:2]:
        torch.testing.assert_close(made.channel_weights[name], channel_precision(made.quantiles[name]))


@pytest.mark.parametrize("key", ["pixel_weight", "detail_weight", "readout_weight", "target_weight"])
def test_a_weight_that_is_no_number_is_refused_by_its_own_key(key: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(f"objective.alignment.{key}=much", "evaluation=none", "logger=none", "hydra.run.dir=run") == 2
    assert f"objective.alignment.{key}=much: a number" in capsys.readouterr().err
