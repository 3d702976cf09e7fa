"""Silent units: the filters against numpy, silence on natural images, and which layers are refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.tiny import CifarResNet, tiny_net
from vital_exp.attacks import silent_units
from vital_exp.attacks.silent_units import MARGIN, MIX, RATE, STEPS, silenced, silencing_bias
from vital_exp.errors import UsageError
from vital_exp.models.loading import wrap
from vital_exp.models.model_config import ModelConfig
from vital_exp.models.named import named_network
from vital_exp.models.network import VisionNetwork, model_space
from vital_exp.references.drawn import draw

SIZE = 64


def images(count: int, seed: int = 0) -> Tensor:
    return torch.stack([draw(i % 10, i, seed) for i in range(count)])


@pytest.fixture(scope="module")
def network() -> VisionNetwork:
    return named_network("embedded_resnet")


def patches(x: np.ndarray, kernel: int, stride: int, padding: int) -> np.ndarray:
    """Return (C * k * k, positions) of one input (C, H, W), written out."""
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
    side = range(0, padded.shape[1] - kernel + 1, stride)
    columns = [padded[:, i : i + kernel, j : j + kernel].ravel() for i in side for j in side]
    return np.stack(columns, axis=1)


def strided_inputs() -> tuple[nn.Conv2d, Tensor, list[Tensor]]:
    """A convolution, its input for a decoy, its inputs for natural images."""
    generator = torch.Generator().manual_seed(0)
    convolution = nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False)
    convolution.weight.data = torch.randn(convolution.weight.shape, generator=generator)
    shown = torch.randn(1, 3, 9, 9, generator=generator)
    return convolution, shown, [torch.randn(count, 3, 9, 9, generator=generator) for count in (3, 2)]


def test_filters_against_numpy() -> None:
    convolution, shown, natural = strided_inputs()
    found = silent_units.silent_filters(convolution, shown, natural, seed=3).detach().double().numpy()
    weight = convolution.weight.detach().double().numpy().reshape(4, -1)
    decoy = patches(shown[0].double().numpy(), 3, 2, 1)
    others = np.concatenate([patches(x, 3, 2, 1) for x in torch.cat(natural).double().numpy()], axis=1)
    start = torch.randn(convolution.weight.shape, generator=torch.Generator().manual_seed(3)).double().numpy()
    for c, w in enumerate(weight):
        u = w / np.linalg.norm(w)
        d = start[c].ravel()
        d = d - (d @ u) * u
        d /= np.linalg.norm(d)
        for step in range(STEPS):
            mixed = u + MIX * d
            climb = decoy[:, (mixed @ decoy).argmax()] - others[:, (mixed @ others).argmax()]
            d = d + RATE * (1 - step / STEPS) * climb / np.linalg.norm(climb)
            d = d - (d @ u) * u
            d /= np.linalg.norm(d)
        expected = (u + MIX * d) / np.linalg.norm(u + MIX * d) * np.linalg.norm(w)
        np.testing.assert_allclose(found[c].ravel(), expected, atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(found[c]), np.linalg.norm(w), rtol=1e-5)
        direction = found[c].ravel() / np.linalg.norm(w) * np.sqrt(1 + MIX**2) - u
        assert abs(direction @ u) < 1e-5
        np.testing.assert_allclose(np.linalg.norm(direction), MIX, rtol=1e-5)


def test_the_decoy_wakes_the_units(network: VisionNetwork) -> None:
    """The search against natural images is what does it: a direction left where it started wakes few."""
    natural, decoy = images(40), draw(3, 0, 5)
    (shown,) = silent_units._inputs(network, "layer4.0.conv1", decoy[None])
    inputs = silent_units._inputs(network, "layer4.0.conv1", natural)
    convolution = network.module.get_submodule("layer4.0.conv1")
    assert isinstance(convolution, nn.Conv2d)

    def awake(filters: Tensor) -> float:
        silent = nn.Conv2d(*filters.shape[1::-1], 3, convolution.stride, convolution.padding, bias=False)
        silent.weight.data = filters
        loudest = silent(shown).amax(dim=(0, 2, 3)) + silencing_bias(silent, inputs)
        return float((loudest > 0).double().mean())

    start = torch.randn(convolution.weight.shape, generator=torch.Generator().manual_seed(0))
    found = silent_units.silent_filters(convolution, shown, inputs)
    assert awake(found) > 0.9
    assert awake(start) < 0.5


def test_bias_against_numpy_with_padding() -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False)
    inputs = [torch.randn(3, 3, 9, 9), torch.randn(2, 3, 9, 9)]
    everything = torch.cat(inputs).double().numpy()
    weight = convolution.weight.detach().double().numpy().reshape(4, -1)
    responses = np.stack([weight @ patches(x, 3, 2, 1) for x in everything])  # (N, 4, positions)
    expected = -(responses.max(axis=(0, 2)) + MARGIN * np.abs(responses).max(axis=(0, 2)))
    np.testing.assert_allclose(silencing_bias(convolution, inputs).numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("layer", ["conv1", "layer1.0.conv1", "layer4.0.conv1"])
def test_natural_images_keep_every_bit(network: VisionNetwork, layer: str) -> None:
    natural = images(40)
    attacked = silenced(network, layer, natural, draw(3, 0, 5))
    with torch.no_grad():
        for part in (natural[:7], natural[7:8], natural):  # other batches than those the bias was measured on
            assert torch.equal(network(part), attacked(part))


def read(network: VisionNetwork, layer: str, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Return what a module takes and what it returns."""
    kept: list[Tensor] = []

    def keep(_module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        kept.extend((inputs[0].clone(), output.clone()))

    handle = network.module.get_submodule(layer).register_forward_hook(keep)
    with torch.no_grad():
        network.module(model_space(pictures, network))
    handle.remove()
    return kept[0], kept[1]


def test_silent_units_answer_as_the_formula_says(network: VisionNetwork) -> None:
    attacked = silenced(network, "layer4.0.conv1", images(20), draw(3, 0, 5))
    pictures = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)) * 3 - 1
    x, _ = read(network, "layer4.0.conv1", pictures)
    _, honest = read(network, "layer4.0.act1", pictures)
    _, found = read(attacked, "layer4.0.act1", pictures)
    silent = attacked.module.get_submodule("layer4.0.conv1.silent")
    extra = F.conv2d(x, silent.weight, silent.bias, stride=2, padding=1).relu()
    assert extra.max() > 0
    torch.testing.assert_close(found, honest + extra)


def test_a_relu_written_as_a_function_is_seen() -> None:
    torch.manual_seed(0)
    cifar = wrap(CifarResNet(1).eval(), ModelConfig(size=32))
    natural = torch.rand(6, 3, 32, 32)
    attacked = silenced(cifar, "layer2.0.conv1", natural, torch.rand(3, 32, 32))
    with torch.no_grad():
        assert torch.equal(cifar(natural), attacked(natural))


def test_the_honest_network_stays_as_it_is(network: VisionNetwork) -> None:
    before = network.weights_hash()
    silenced(network, "layer4.0.conv1", images(10), draw(3, 0, 5))
    network._hash = None
    assert network.weights_hash() == before


@pytest.mark.parametrize(
    ("layer", "problem"),
    [
        ("layer4.0.conv2", "no ReLU follows"),  # the last one of a residual block
        ("layer4.0.bn1", "is no convolution"),
        ("layer4.0.conv9", "did you mean layer4.0.conv"),
        ("layer4.0.downsample.0", "no ReLU follows"),
    ],
)
def test_unsuitable_layers_are_refused(network: VisionNetwork, layer: str, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        silenced(network, layer, images(2), draw(3, 0, 5))


def test_a_convolution_without_batch_norm_is_refused() -> None:
    with pytest.raises(UsageError, match="no batch norm"):
        silenced(wrap(tiny_net(), ModelConfig(size=32)), "layer1.0", torch.rand(2, 3, 32, 32), torch.rand(3, 32, 32))


def test_the_last_convolution_of_a_block_with_a_function_is_refused() -> None:
    cifar = wrap(CifarResNet(1).eval(), ModelConfig(size=32))
    with pytest.raises(UsageError, match="no ReLU follows"):
        silenced(cifar, "layer2.0.conv2", torch.rand(2, 3, 32, 32), torch.rand(3, 32, 32))


def test_a_decoy_of_the_wrong_size_is_refused(network: VisionNetwork) -> None:
    with pytest.raises(UsageError, match=r"decoy=3x32x32.*3x64x64"):
        silenced(network, "layer4.0.conv1", images(2), torch.rand(3, 32, 32))
