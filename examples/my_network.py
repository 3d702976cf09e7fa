"""A network that no library has: the ResNet of the CIFAR experiments (He et al. 2016, section 4.2), 32 px, ten classes.

    vital-visualize model=python model.factory=my_network.py:resnet "model.arguments={depth: 20}" ...

The page docs/your-own-model.md goes through it.
"""

from __future__ import annotations

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import pad

WIDTHS = (16, 32, 64)  # channels of the three stages
STAGES = len(WIDTHS)


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride, self.added = stride, width - channels

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, width, H / stride, W / stride)."""
        shortcut = x[:, :, :: self.stride, :: self.stride]
        shortcut = pad(shortcut, (0, 0, 0, 0, self.added // 2, self.added - self.added // 2))  # zeros as new channels
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + shortcut)


class ResNet(nn.Module):
    """Three stages, an average over positions, a linear classifier."""

    def __init__(self, blocks: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.layer1 = _stage(WIDTHS[0], WIDTHS[0], 1, blocks)
        self.layer2 = _stage(WIDTHS[0], WIDTHS[1], 2, blocks)
        self.layer3 = _stage(WIDTHS[1], WIDTHS[2], 2, blocks)
        self.linear = nn.Linear(WIDTHS[2], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, classes) of normalised images (N, 3, H, W)."""
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.layer3(self.layer2(self.layer1(y)))
        return self.linear(y.mean(dim=(2, 3)))


def _stage(channels: int, width: int, stride: int, blocks: int) -> nn.Sequential:
    rest = [Block(width, width, 1) for _ in range(blocks - 1)]
    return nn.Sequential(Block(channels, width, stride), *rest)


def resnet(depth: int = 20, classes: int = 10) -> nn.Module:
    """Return the network with 20, 32, 44, 56 ... layers: two per block, three stages, and two at the ends."""
    if depth < 8 or (depth - 2) % (2 * STAGES):
        raise ValueError(f"depth={depth}: 6n + 2 layers, 20 for example")
    return ResNet((depth - 2) // (2 * STAGES), classes)


def grey_resnet(weights: str, depth: int = 20, classes: int = 10) -> nn.Module:
    """Return the network for grey images (N, 1, H, W): what it sees in them, the original sees in their RGB copies.

    Args:
        weights: a .safetensors file of the original, which takes RGB.
        depth, classes: see :func:`resnet`.
    """
    module = resnet(depth, classes)
    module.load_state_dict(load_file(weights))
    colours = module.conv1.weight.detach()  # (width, 3, 3, 3)
    module.conv1 = nn.Conv2d(1, WIDTHS[0], 3, padding=1, bias=False)
    module.conv1.load_state_dict({"weight": colours.sum(dim=1, keepdim=True)})
    return module
