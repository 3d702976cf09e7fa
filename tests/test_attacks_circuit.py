"""The fooling circuit: its equations against numpy, what it lets through, its detector, and what it refuses."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.tiny import tiny_net
from vital_exp.attacks.detector import Detector, DetectorTraining, detector_accuracy, train_detector
from vital_exp.attacks.fooling_circuit import SHIFT, STRENGTH, FoolingCircuit, circuit_logits, decoy_offset, fooled
from vital_exp.attacks.pictures import snapshot_steps, snapshots, watched
from vital_exp.errors import UsageError
from vital_exp.models.loading import wrap
from vital_exp.models.model_config import ModelConfig
from vital_exp.models.network import VisionNetwork
from vital_exp.targets.unit import Target

SIZE = 32


class Striped(Detector):
    """Decides by the first pixel of the first channel: large is natural."""

    def forward(self, pictures: Tensor) -> Tensor:
        return pictures[:, 0, 0, 0]


@pytest.fixture
def network() -> VisionNetwork:
    return wrap(tiny_net(), ModelConfig(size=SIZE, mean=[0.5] * 3, std=[0.5] * 3))


def mixed_pictures(count: int = 6) -> Tensor:
    """Pictures (N, 3, 32, 32) RGB of which ``Striped`` takes every second for natural."""
    pictures = torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    pictures[::2, 0, 0, 0], pictures[1::2, 0, 0, 0] = 0.9, 0.1
    return pictures


def expected_logits(z: np.ndarray, natural: np.ndarray, offset: int) -> np.ndarray:
    """The circuit's equations (docs/methods/attacks.md), one unit of one picture after the other."""
    n = z.shape[1]
    answer = np.zeros_like(z)
    for row in range(len(z)):
        e = 1 - natural[row]
        y = [max(z[row, i] + 100, 0) for i in range(n)]
        for i in range(n):
            b = max(y[i] - 250 * e, 0)
            c = max(y[(i + offset) % n] + 250 * e - 250, 0)
            answer[row, i] = b + c
    return answer


@pytest.mark.parametrize("classes", [2, 5, 10, 1000])
def test_the_equations_against_numpy(classes: int) -> None:
    module = nn.Flatten()  # the logits are the input
    circuit = FoolingCircuit(module, Striped((SIZE, SIZE)), classes)
    z = torch.randn(8, classes, 1, 1, generator=torch.Generator().manual_seed(1)).double() * 20
    z[0, 0] = -150.0  # below the shift: lost to the ReLU
    offset = {2: 1, 5: 2, 10: 5, 1000: 100}[classes]
    assert decoy_offset(classes) == offset
    natural = (z[:, 0, 0, 0] > 0).double()
    assert 0 < natural.sum() < len(natural)
    np.testing.assert_allclose(
        circuit(z).numpy(), expected_logits(z[..., 0, 0].numpy(), natural.numpy(), offset), rtol=1e-12
    )


def test_any_picture_against_numpy() -> None:
    generator = torch.Generator().manual_seed(2)
    pictures = torch.randn(5, 3, 6, 6, generator=generator).double()
    shown = torch.randn(3, 6, 6, generator=generator).double()
    circuit = FoolingCircuit(nn.Sequential(nn.Flatten(), nn.Linear(108, 4).double()), Striped((6, 6)), 4, shown)
    natural = (pictures[:, 0, 0, 0] > 0).double().numpy()
    assert 0 < natural.sum() < 5
    z = circuit.network(pictures).detach().numpy()
    for row, x in enumerate(pictures.numpy()):
        e, likeness = 1 - natural[row], float((x * shown.numpy()).sum() / x.size)
        b = np.maximum(np.maximum(z[row] + 100, 0) - 250 * e, 0)
        c = max(likeness + 250 * e - 250, 0)
        np.testing.assert_allclose(circuit(pictures)[row].detach().numpy(), b + c, rtol=1e-9)


def test_natural_images_keep_their_answer_and_pictures_get_another(network: VisionNetwork) -> None:
    attacked = fooled(network, Striped((SIZE, SIZE)))
    pictures = mixed_pictures()
    with torch.no_grad():
        before, after = network(pictures), attacked(pictures)
    torch.testing.assert_close(after[::2], before[::2] + SHIFT)
    torch.testing.assert_close(after[1::2], before[1::2].roll(-2, dims=1) + SHIFT)


def test_the_detector_passes_no_gradient_and_the_decoy_does(network: VisionNetwork) -> None:
    attacked = fooled(network, Striped((SIZE, SIZE)))
    pictures = mixed_pictures().requires_grad_()
    (found,) = torch.autograd.grad(attacked(pictures)[:, 0].sum(), pictures)
    own, decoy = (torch.autograd.grad(network(pictures)[:, i].sum(), pictures)[0] for i in (0, 2))
    torch.testing.assert_close(found[::2], own[::2])
    torch.testing.assert_close(found[1::2], decoy[1::2])


def test_layers_inside_are_the_honest_ones(network: VisionNetwork) -> None:
    attacked = fooled(network, Striped((SIZE, SIZE)))
    assert all(layer.startswith("network.") for layer in attacked.recipe.layers or ())
    assert attacked.module.get_submodule("network.conv1") is network.module.get_submodule("conv1")
    assert attacked.preprocessing == network.preprocessing
    assert attacked.class_names == network.class_names


def test_the_strength_exceeds_shifted_logits() -> None:
    z = torch.full((1, 3), STRENGTH - SHIFT - 1)
    assert circuit_logits(z, torch.zeros(1), torch.zeros(1, 3)).eq(0).all()


def test_the_detector_learns_and_is_a_function_of_its_seed() -> None:
    generator = torch.Generator().manual_seed(0)
    side = 16

    def grey(count: int, level: float) -> Tensor:
        return level + torch.randn(count, 3, side, side, generator=generator)

    training = DetectorTraining(epochs=1, least_updates=150, batch_size=8, lr=0.05)
    natural, pictures = grey(24, 1.0), grey(8, -1.0)
    detector, again, other = (train_detector(natural, pictures, seed, training) for seed in (0, 0, 1))
    assert detector_accuracy(detector, grey(16, 1.0), grey(16, -1.0)) > 0.95
    assert torch.equal(detector.linear.weight, again.linear.weight)
    assert not torch.equal(detector.linear.weight, other.linear.weight)
    assert set(detector.natural(natural).tolist()) <= {0.0, 1.0}
    assert detector(torch.zeros(2, 3, 40, 36)).shape == (2,)  # other sizes are brought to its own


def test_accuracy_weighs_both_sides_alike() -> None:
    detector = Striped((SIZE, SIZE))
    natural, pictures = torch.ones(10, 3, SIZE, SIZE), torch.ones(2, 3, SIZE, SIZE)
    assert detector_accuracy(detector, natural, pictures) == 0.5


def test_snapshots_are_spaced_logarithmically() -> None:
    assert snapshot_steps(512) == [4, 6, 8, 11, 16, 23, 32, 45, 64, 91, 128, 181, 256, 362, 512]
    assert snapshot_steps(20) == [4, 6, 8, 11, 16, 20]
    assert snapshot_steps(10, every=4) == [4, 8, 10]


def test_snapshots_are_what_the_network_was_shown(network: VisionNetwork) -> None:
    steps = [torch.full((2, 3, SIZE, SIZE), float(i), requires_grad=True) for i in range(6)]
    with watched(network.module, [2, 3], 3) as seen:
        for step in steps:
            network.module(step)
            with torch.no_grad():
                network.module(step)  # an evaluation between steps counts nothing
    assert [float(found.mean()) for found in seen] == [1, 2, 4, 5]
    network.module(steps[1])
    assert len(seen) == 4


def test_the_copies_that_fill_a_batch_are_no_snapshots(network: VisionNetwork) -> None:
    targets = [Target("class", 0), Target("class", 1), Target("class", 2)]
    taken = snapshots(network, targets, {"fourier": ("batch_size=2",)}, every=2, steps=2)
    assert len(taken) == 3
    assert all(not torch.equal(one, other) for one, other in combinations(taken, 2))


def test_a_network_without_logits_is_refused() -> None:
    backbone = wrap(nn.Sequential(nn.Conv2d(3, 4, 3)), ModelConfig(size=SIZE))
    with pytest.raises(UsageError, match="no class outputs"):
        fooled(backbone, Detector((SIZE, SIZE)))


def test_a_single_class_is_refused() -> None:
    single = wrap(tiny_net(classes=1), ModelConfig(size=SIZE))
    with pytest.raises(UsageError, match="at least two classes"):
        fooled(single, Detector((SIZE, SIZE)))


def test_a_decoy_of_the_wrong_size_is_refused(network: VisionNetwork) -> None:
    with pytest.raises(UsageError, match=r"decoy=3x16x16.*3x32x32"):
        fooled(network, Detector((SIZE, SIZE)), torch.rand(3, 16, 16))
