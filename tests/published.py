"""Networks and numbers of the published implementation, as the fixtures describe them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors import safe_open
from torch import Tensor, nn

from vital_exp import load_model
from vital_exp.models.network import IMAGENET_MEAN, IMAGENET_STD, VisionNetwork


def published_network(arch: str, seed: int = 0, affine: bool = False) -> nn.Module:
    """A seeded random network with batch-norm statistics, and if so asked factors and biases, that are not trivial."""
    torch.manual_seed(seed)
    network: nn.Module = getattr(torchvision.models, arch)(weights=None).eval()
    generator = torch.Generator().manual_seed(seed + 100)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator) * 0.1)
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
            if affine:
                module.weight.data.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
                module.bias.data.copy_(torch.randn(module.num_features, generator=generator) * 0.1)
    return network


def as_rgb(normalised: Tensor) -> Tensor:
    """Normalised pictures as float64 RGB, which may lie outside [0, 1]."""
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return normalised.double() * std + mean


@dataclass
class Published:
    """One class-neuron fixture."""

    network: VisionNetwork
    references: Tensor
    start: Tensor
    numbers: dict[str, Tensor]
    settings: dict[str, str]


def published(folder: Path, arch: str) -> Published:
    """Read a fixture and make its network; skips when this torch draws other random numbers."""
    with safe_open(folder / "fixtures" / f"class_{arch}.safetensors", "pt") as file:
        settings, numbers = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    seed = int(settings["seed"])
    network = published_network(arch, seed)
    first = next(network.parameters()).detach().numpy().tobytes()
    if hashlib.sha256(first).hexdigest()[:16] != settings["first_weight_sha256_16"]:
        pytest.skip("this version of torch draws other random weights")
    count = int(settings["references"])
    references = torch.randn(count, 3, 224, 224, generator=torch.Generator().manual_seed(seed + 1))
    start = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(seed + 2))
    return Published(load_model(network), as_rgb(references), as_rgb(start), numbers, settings)
