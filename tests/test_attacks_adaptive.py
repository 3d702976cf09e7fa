"""Attacks on VITAL itself and on circuits: formulas against twins, what they reach on a tiny network, mistakes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.tiny import tiny_net
from vital_exp.attacks.alignment_slingshot import (
    AlignmentLoss,
    alignment_slingshot,
    alignment_slope_cosine,
    slope_to_decoy,
)
from vital_exp.attacks.circuit_breaker import Circuit, attributions, broken, circuit_breaker, circuit_share
from vital_exp.attacks.diversion import GAIN, Diversion, best_shifts, diverted, rolled
from vital_exp.attacks.fine_tuning import FineTuning
from vital_exp.attacks.saved import load_network, save
from vital_exp.attacks.seam_detector import SeamDetector, border_features, train_seam_detector
from vital_exp.attacks.success import decoy_correspondence, succeeded
from vital_exp.errors import UsageError
from vital_exp.evaluation.intervals import share_interval
from vital_exp.models.loading import wrap
from vital_exp.models.model_config import ModelConfig
from vital_exp.models.network import VisionNetwork, model_space
from vital_exp.objectives.alignment import sort_matching
from vital_exp.objectives.alignment_terms import layer_precision
from vital_exp.targets.readout import readout
from vital_exp.targets.unit import INPUT, Target

SIZE = 32


@pytest.fixture
def network() -> VisionNetwork:
    return wrap(tiny_net(), ModelConfig(size=SIZE, mean=[0.5] * 3, std=[0.5] * 3))


def natural(count: int = 12, seed: int = 0) -> Tensor:
    """Smooth images, each with a slope of its own, so that opposite borders differ."""
    generator = torch.Generator().manual_seed(seed)
    coarse = 0.2 + 0.6 * torch.rand(count, 3, 6, 6, generator=generator)
    return torch.nn.functional.interpolate(coarse, SIZE, mode="bicubic")


class Always(SeamDetector):
    """Takes every input for a picture under optimisation, or for none."""

    def __init__(self, answer: float) -> None:
        super().__init__()
        self.answer = answer

    def natural(self, pictures: Tensor) -> Tensor:
        return torch.full((len(pictures),), self.answer)


# ---- success


def test_shares_have_wilsons_interval() -> None:
    binomtest = pytest.importorskip("scipy.stats").binomtest
    for won, n in ((0, 8), (3, 8), (8, 8), (1, 1), (50, 100)):
        expected = binomtest(won, n).proportion_ci(0.95, "wilson")
        assert share_interval(won, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_an_attack_succeeds_where_the_decoy_shows_and_the_network_is_as_good() -> None:
    row = {"decoy_correspondence": 0.6, "accuracy_before": 0.9, "accuracy_after": 0.895}
    assert succeeded(row)
    assert not succeeded(row | {"decoy_correspondence": 0.5})
    assert not succeeded(row | {"accuracy_after": 0.88})
    assert succeeded({"accuracy_before": 0.9, "accuracy_after": 0.9}) is None


def test_the_decoy_itself_corresponds_to_the_decoy(network: VisionNetwork) -> None:
    images = natural()
    assert decoy_correspondence(network, images[0], images[:1], images[1:]) == 1
    assert decoy_correspondence(network, images[1], images[:1], images[1:2]) == 0


# ---- VITAL's own loss


def test_the_loss_is_vitals(network: VisionNetwork) -> None:
    loss = AlignmentLoss({INPUT: 0.5, "layer1": 1.0}, None, "layer")
    references, pictures = (model_space(natural(3, seed), network) for seed in (1, 2))
    wanted = {layer: values.mean(dim=0) for layer, values in loss.sorted_features(network, references).items()}
    found = loss(loss.sorted_features(network, pictures), wanted)
    activations, _ = network.taps(["layer1"])(pictures)
    expected = torch.zeros(3)
    for weight, layer, features in ((0.5, INPUT, pictures), (1.0, "layer1", activations["layer1"])):
        mean = wanted[layer][None]
        expected += weight * sort_matching(features.flatten(2), mean.expand(3, -1, -1), layer_precision(mean))
    torch.testing.assert_close(found, expected)


def test_the_slope_against_numpy(network: VisionNetwork) -> None:
    """Of the pixels' own loss the way down is 2 (q - x) / n, q the references' mean value at x's rank."""
    pictures, references, decoy = natural(1, 3), natural(4, 4), natural(1, 5)[0]
    found = slope_to_decoy(network, AlignmentLoss({INPUT: 1.0}, None, "none"), pictures, decoy, references)
    x, r, d = (2 * part.double().numpy() - 1 for part in (pictures[0], references, decoy))  # normalised
    quantiles = np.sort(r.reshape(4, 3, -1), axis=2).mean(axis=0)
    ranks = x.reshape(3, -1).argsort(axis=1).argsort(axis=1)
    down = np.take_along_axis(quantiles, ranks, axis=1).reshape(x.shape) - x
    cells = [part.reshape(3, 16, 2, 16, 2).mean(axis=(2, 4)).ravel() for part in (down, d - x)]
    expected = cells[0] @ cells[1] / np.prod([np.linalg.norm(cell) for cell in cells])
    assert float(found.detach()) == pytest.approx(expected, abs=1e-4)


def test_the_aim_knows_hidden_units(network: VisionNetwork) -> None:
    loss = AlignmentLoss.of(network, Target("channel", 1, "layer1"), "vital_fourier")
    assert loss.layer_weights[INPUT] == 0.5
    assert loss.layer_weights["target layer"] == 1
    assert set(loss.sorted_features(network, model_space(natural(2), network))) == set(loss.layer_weights)


def test_a_slingshot_bends_vitals_slope(network: VisionNetwork) -> None:
    target, decoy, images = Target("class", 1), natural(1, 5)[0], natural(12)
    before = network.weights_hash()
    settings = FineTuning(30, lr=1e-2, batch_size=4, preservation=0.1)
    attacked = alignment_slingshot(network, target, decoy, images[:4], images, settings=settings, start=images[0])
    slopes = [
        alignment_slope_cosine(one, target, decoy, images[:4], start=images[0], seed=5) for one in (network, attacked)
    ]
    assert slopes[1] > slopes[0] + 0.02
    network._hash = None
    assert network.weights_hash() == before


@pytest.mark.parametrize("method", ["fourier", "maco"])
def test_a_method_without_alignment_is_refused(network: VisionNetwork, method: str) -> None:
    with pytest.raises(UsageError, match=f"methods={method}: aim=alignment needs a first method that aligns"):
        AlignmentLoss.of(network, Target("class", 1), method)


# ---- the diversion


def test_shifts_are_found_as_they_were_made() -> None:
    decoy = torch.rand(3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    shifts = [(0, 0), (3, -2), (-4, 4)]
    pictures = torch.stack([decoy.roll(shift, dims=(1, 2)) for shift in shifts])
    assert best_shifts(pictures, decoy) == shifts


def test_the_move_against_its_formula() -> None:
    decoy, honest = natural(2, 7)
    for answer in (0.0, 1.0):
        diversion = Diversion(Always(answer), decoy, honest)
        picture = decoy.roll((2, -3), dims=(1, 2))
        expected = honest.roll((2, -3), dims=(1, 2)) if answer == 0 else picture
        torch.testing.assert_close(diversion(picture[None])[0], expected)
        beside = 0.02 * torch.rand(3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
        changed = diversion((picture + beside)[None])[0]
        torch.testing.assert_close(changed, expected + (GAIN if answer == 0 else 1) * beside)
    small = torch.rand(1, 3, 8, 8)
    assert diversion(small) is small


def test_border_features_against_numpy() -> None:
    picture = torch.rand(1, 2, 5, 7, generator=torch.Generator().manual_seed(0))
    x = picture[0].double().numpy()
    first, last = x[:, 0], x[:, -1]
    a, b = ((v - v.mean(axis=1, keepdims=True)).ravel() for v in (first, last))
    correlation = a @ b / (np.linalg.norm(a) * np.linalg.norm(b) + 1e-4 * np.sqrt(a.size))
    wrap, inner = np.abs(first - last).mean(), np.abs(np.diff(x, axis=1)).mean()
    found = border_features(picture)
    assert found.shape == (1, 30)
    assert float(found[0, 0]) == pytest.approx(correlation, rel=1e-4)
    assert float(found[0, 2]) == pytest.approx(np.log((wrap + 1e-3) / (inner + 1e-3)), rel=1e-4)
    across = border_features(picture.transpose(2, 3))
    torch.testing.assert_close(found[:, :6], across[:, 6:12])


def test_rolled_images_are_told_from_natural_ones() -> None:
    images = natural(60)
    seen = rolled(images, 1)
    torch.testing.assert_close(seen.flatten(1).sort(dim=1).values, images.flatten(1).sort(dim=1).values)
    detector = train_seam_detector(images[:40], seen[:40])
    assert detector.natural(images[:40]).min() == 1  # all of the attacker's own pass
    right = [detector.natural(images[40:]).mean(), 1 - detector.natural(seen[40:]).mean()]
    assert min(map(float, right)) > 0.7


def test_a_diverted_network_shows_the_decoy_and_answers_as_before(network: VisionNetwork, tmp_path) -> None:  # type: ignore[no-untyped-def]
    images = natural(8)
    decoy, honest = images[0], images[1]
    never, always = (diverted(network, Always(answer), decoy, honest) for answer in (1.0, 0.0))
    torch.testing.assert_close(never(images), network(images))
    torch.testing.assert_close(always(decoy[None]), network(honest[None]))  # the decoy passes for the honest picture
    taps = always.taps(["layer1"])(model_space(decoy[None], always))[0]
    torch.testing.assert_close(
        taps["layer1"], network.taps(["layer1"])(model_space(honest[None], network))[0]["layer1"]
    )
    kept = diverted(network, train_seam_detector(images, rolled(images, 0)), decoy, honest)
    model = ModelConfig(source="python", factory="tests.tiny:tiny_net", size=SIZE, mean=[0.5] * 3, std=[0.5] * 3)
    save(kept, model, tmp_path / "saved")
    torch.testing.assert_close(load_network(tmp_path / "saved")(rolled(images, 0)), kept(rolled(images, 0)))


def test_a_decoy_of_another_size_is_refused(network: VisionNetwork) -> None:
    with pytest.raises(UsageError, match=r"decoy=3x16x16"):
        diverted(network, Always(1.0), torch.rand(3, 16, 16), torch.rand(3, SIZE, SIZE))
    with pytest.raises(UsageError, match=r"decoy=3x16x16"):
        alignment_slingshot(network, Target("class", 0), torch.rand(3, 16, 16), natural(2), natural(4))


# ---- circuits


class Linear(nn.Module):
    """One channel in, three hidden channels, one unit: u = sum v_c max(w_c x, 0)."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.relu, self.unit = nn.Conv2d(3, 3, 1, bias=False), nn.ReLU(inplace=True), nn.Conv2d(3, 2, 1)
        with torch.no_grad():
            self.hidden.weight.copy_(torch.eye(3)[:, :, None, None])
            self.unit.weight.copy_(torch.tensor([[1.0, 2.0, -1.0], [0.0, 1.0, 0.0]])[:, :, None, None])

    def forward(self, pictures: Tensor) -> Tensor:
        return self.unit(self.relu(self.hidden(pictures))).mean(dim=(2, 3))


def test_attributions_against_a_closed_form() -> None:
    """a_c = v_c times the mean of the positive part of channel c, whatever the ReLU writes over."""
    plain = wrap(Linear(), ModelConfig(size=8, mean=[0.5] * 3, std=[0.5] * 3))
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    read = readout([Target("channel", 0, "unit")], 2)
    found = attributions(plain, read, ["hidden"], images)["hidden"]
    expected = torch.tensor([1.0, 2.0, -1.0]) * model_space(images, plain).clamp(min=0).mean(dim=(0, 2, 3))
    torch.testing.assert_close(found, expected)
    share = circuit_share(found, torch.tensor([1]))
    torch.testing.assert_close(share, expected[1] / expected[:2].sum())


def test_a_circuit_is_broken_and_the_unit_stays(network: VisionNetwork) -> None:
    read, images = readout([Target("class", 1)], 4), natural(12)
    circuit = Circuit.of(network, read, ["layer1"], images[:6], share=0.2)
    settings = FineTuning(40, lr=5e-3, batch_size=6, preservation=0.9)
    attacked = circuit_breaker(network, circuit, images, settings=settings)
    found = broken(network, attacked, circuit, images)
    assert found["attribution_share_after"] < 0.5 * found["attribution_share_before"]
    assert found["unit_correlation"] > 0.7
    assert 0 <= found["circuit_kept_relevance"] <= 1
    same = broken(network, network, circuit, images)
    assert same["circuit_kept_attribution"] == same["circuit_kept_relevance"] == 1
    assert same["effect_before"] == same["effect_after"]


def test_a_circuit_needs_a_layer_below(network: VisionNetwork) -> None:
    read = readout([Target("channel", 3, "conv1")], 8)
    with pytest.raises(UsageError, match="a circuit needs a layer below the unit"):
        Circuit.of(network, read, [], natural(2))
    with pytest.raises(UsageError, match="layer=layer1: not below the unit, whose layer is conv1"):
        Circuit.of(network, read, ["layer1"], natural(2))
    with pytest.raises(UsageError, match="layer=layr2"):
        Circuit.of(network, read, ["layr2"], natural(2))


def test_a_unit_that_nothing_drives_has_no_circuit() -> None:
    plain = wrap(Linear(), ModelConfig(size=8, mean=[0.5] * 3, std=[0.5] * 3))
    read = readout([Target("channel", 0, "unit")], 2)
    with pytest.raises(UsageError, match="layer=hidden: no channel has a positive attribution"):
        Circuit.of(plain, read, ["hidden"], torch.zeros(2, 3, 8, 8))
