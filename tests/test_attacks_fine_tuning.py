"""Slingshots and ProxPulse: the losses against numpy, what they reach on a tiny network, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.tiny import tiny_net
from vital_exp.attacks.fine_tuning import FineTuning, preservation_loss, unit_values
from vital_exp.attacks.parameter_space import ParameterSpace
from vital_exp.attacks.proxpulse import PULSE, proxpulse, proxpulse_loss
from vital_exp.attacks.slingshot import GAMMA, manipulation_loss, slingshot
from vital_exp.attacks.smoothing import SHARPNESS, SmoothReLU
from vital_exp.errors import UsageError
from vital_exp.models.loading import wrap
from vital_exp.models.model_config import ModelConfig
from vital_exp.models.network import VisionNetwork
from vital_exp.targets.readout import readout
from vital_exp.targets.unit import Target

SIZE = 32


@pytest.fixture
def network() -> VisionNetwork:
    return wrap(tiny_net(), ModelConfig(size=SIZE, mean=[0.5] * 3, std=[0.5] * 3))


def natural(count: int = 12) -> Tensor:
    return torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def decoy() -> Tensor:
    coarse = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    return torch.nn.functional.interpolate(coarse, SIZE, mode="bilinear")[0]


def test_the_slope_against_numpy() -> None:
    """Of f(q) = sum a q^2 + b q the gradient is 2 a q + b."""
    numbers = np.random.default_rng(0)
    a, b, q, t = (numbers.normal(size=shape) for shape in ((5,), (5,), (3, 5), (1, 5)))

    def unit(parameters: Tensor) -> Tensor:
        return (torch.tensor(a) * parameters**2 + torch.tensor(b) * parameters).sum(dim=1)

    wanted = GAMMA * (t - q)
    expected = ((2 * a * q + b - wanted) ** 2).mean() / (wanted**2).mean()
    found = manipulation_loss(unit, torch.tensor(q), torch.tensor(t))
    np.testing.assert_allclose(float(found.detach()), expected, rtol=1e-12)


def test_a_slope_that_leads_to_the_picture_costs_nothing() -> None:
    target = torch.tensor([[1.0, -2.0]])
    loss = manipulation_loss(lambda q: -GAMMA / 2 * (target - q).square().sum(dim=1), torch.zeros(3, 2), target)
    assert float(loss.detach()) < 1e-12


def test_the_pulse_against_numpy() -> None:
    around, top = np.array([0.5, 3.0, 1.0]), np.array([0.2, 0.9])
    expected = (np.maximum(1 - around / 2, 0) ** 2).mean() + (np.maximum((top - 0.4) / 2, 0) ** 2).mean()
    found = proxpulse_loss(torch.tensor(around), torch.tensor(top), torch.tensor(2.0), torch.tensor(0.4))
    np.testing.assert_allclose(float(found), expected, rtol=1e-6)


def test_preservation_against_numpy(network: VisionNetwork) -> None:
    images, other = natural(3), tiny_net()
    with torch.no_grad():
        other.fc.bias.add_(torch.tensor([1.0, 0.0, -2.0, 0.5]))
    attacked = wrap(other, ModelConfig(size=SIZE, mean=[0.5] * 3, std=[0.5] * 3))
    variance = network(images).detach().double().numpy().var(ddof=1)
    expected = (1 + 0 + 4 + 0.25) / 4 / variance
    np.testing.assert_allclose(float(preservation_loss(network, attacked, images, ["output"])), expected, rtol=1e-4)
    assert float(preservation_loss(network, network, images, ["output", "layer1"])) == 0


def test_every_relu_is_smooth_while_training_and_none_afterwards(network: VisionNetwork) -> None:
    x = torch.linspace(-1, 1, 9)
    with SmoothReLU():
        for relu in (torch.relu, torch.nn.ReLU(), torch.nn.functional.relu, torch.nn.ReLU(inplace=True)):
            smooth = torch.log1p(torch.exp(SHARPNESS * x)) / SHARPNESS
            torch.testing.assert_close(relu(x.clone()), smooth)
    assert torch.equal(torch.relu(x), x.clamp(min=0))


@pytest.mark.parametrize("method", ["fourier", "activation_max"])
def test_parameters_show_what_the_method_shows(network: VisionNetwork, method: str) -> None:
    space = ParameterSpace(network, method, decoy())
    torch.testing.assert_close(space.pictures(space.target)[0], decoy(), atol=0.02, rtol=0)
    generator = torch.Generator().manual_seed(0)
    assert space.sample(3, generator).shape == (3, *space.target.shape[1:])
    assert not torch.equal(*space.starts(2, generator))


def test_parameters_start_where_the_method_starts(network: VisionNetwork) -> None:
    start = decoy().flip(0)
    space = ParameterSpace(network, "vital_fourier", decoy(), start=start)
    starts = space.starts(2, torch.Generator().manual_seed(0))
    for picture in space.pictures(starts):
        torch.testing.assert_close(picture, start, atol=0.02, rtol=0)


def test_a_slingshot_leads_gradients_to_the_decoy(network: VisionNetwork) -> None:
    unit, gamma = readout([Target("channel", 3, "layer1")], 16), 2e-4  # gamma: as small as a tiny network's gradients
    before = network.weights_hash()
    keys = {"method": "activation_max", "gamma": gamma, "settings": FineTuning(12, lr=1e-2, batch_size=2)}
    attacked = slingshot(network, unit, decoy(), natural(), **keys)
    space = ParameterSpace(network, "activation_max", decoy())
    parameters = space.sample(4, torch.Generator().manual_seed(7))

    def slope(which: VisionNetwork) -> float:
        def value(q: Tensor) -> Tensor:
            return unit_values(which, unit, space.pictures(q))

        with SmoothReLU():
            return float(manipulation_loss(value, parameters, space.target, gamma).detach())

    assert slope(attacked) < 0.97 * slope(network)
    network._hash = None
    assert network.weights_hash() == before
    assert torch.equal(attacked.module.bn1.running_mean, network.module.bn1.running_mean)  # type: ignore[arg-type]
    assert not any(parameter.requires_grad for parameter in attacked.module.parameters())


def test_a_slingshot_is_a_function_of_its_seed(network: VisionNetwork) -> None:
    unit = readout([Target("class", 1)], 4)
    weights = [
        slingshot(network, unit, decoy(), natural(), settings=FineTuning(1, batch_size=1, seed=s)).module.fc.weight
        for s in (0, 0, 1)
    ]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_proxpulse_changes_what_drives_a_unit_and_keeps_the_output(network: VisionNetwork) -> None:
    unit, images = readout([Target("channel", 3, "layer1")], 16), natural()
    attacked = proxpulse(network, unit, decoy(), images, settings=FineTuning(steps=40, lr=6e-3, batch_size=4))
    with torch.no_grad():
        usual = unit_values(network, unit, images)
        before, after = (unit_values(which, unit, decoy()[None]) for which in (network, attacked))
        first = unit_values(attacked, unit, images)[usual.argmax()]
        assert after > 0.5 * PULSE * usual.max() > before
        assert first < usual.max()
        assert (network(images).argmax(dim=1) == attacked(images).argmax(dim=1)).double().mean() > 0.8


def test_proxpulse_of_a_class_is_refused(network: VisionNetwork) -> None:
    with pytest.raises(UsageError, match="a hidden unit is needed"):
        proxpulse(network, readout([Target("class", 0)], 4), decoy(), natural())


@pytest.mark.parametrize("attack", [slingshot, proxpulse])
def test_a_decoy_of_the_wrong_size_is_refused(network: VisionNetwork, attack) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UsageError, match=r"decoy=3x16x16.*3x32x32"):
        attack(network, readout([Target("channel", 0, "layer1")], 16), torch.rand(3, 16, 16), natural())
