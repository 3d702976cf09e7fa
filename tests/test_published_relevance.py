"""Relevance against the numbers of the published implementation."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from tests.published import published_network
from vital_exp.relevance.maps import activations_and_relevance
from vital_exp.targets.readout import readout
from vital_exp.targets.unit import Target

TOLERANCE = 1e-3  # of the map's maximum


def fixture(folder: Path) -> tuple[nn.Module, Tensor, dict[str, Tensor], dict[str, str]]:
    with safe_open(folder / "fixtures" / "relevance_resnet50.safetensors", "pt") as file:
        settings, numbers = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    seed = int(settings["seed"])
    network = published_network(settings["arch"], seed, affine=True).requires_grad_(False)
    first = next(network.parameters()).detach().numpy().tobytes()
    if hashlib.sha256(first).hexdigest()[:16] != settings["first_weight_sha256_16"]:
        pytest.skip("this version of torch draws other random weights")
    images = torch.randn(int(settings["images"]), 3, 224, 224, generator=torch.Generator().manual_seed(seed + 1))
    return network, images, numbers, settings


@pytest.mark.parametrize("method", ["lrp", "lrp_restricted", "guided_backprop"])
def test_relevance_equals_the_published_numbers(method: str, data: Path) -> None:
    network, images, numbers, settings = fixture(data)
    target = Target("channel", int(settings["channel"]), settings["layer"].replace("_", "."))
    layers = sorted({key.split(".")[1] for key in numbers if key.startswith(f"{method}.")})
    _, maps, _ = activations_and_relevance(network, images, layers, readout([target] * len(images), 2048), method)
    for layer in layers:
        ours = maps[layer]
        largest = ours.abs().amax()
        values = ours.flatten(1)[:, numbers[f"index.{layer}"]]
        assert (values - numbers[f"{method}.{layer}.values"]).abs().amax() <= TOLERANCE * largest, layer
        if f"{method}.{layer}.sum" in numbers:
            torch.testing.assert_close(ours.sum((1, 2, 3)), numbers[f"{method}.{layer}.sum"], rtol=TOLERANCE, atol=0)
            channels = ours.amax(dim=(2, 3))
            assert (channels - numbers[f"{method}.{layer}.channel_max"]).abs().amax() <= TOLERANCE * largest, layer
