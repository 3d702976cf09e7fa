"""Tiny networks, image folders and readers for tests, and the command run in this process."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from vital_exp.commands import visualize

# The shortest run there is: nothing downloaded, one picture, two steps.
SHORT = ("model=embedded_resnet", "steps=2", "target.index=0", "references.count=2", "progress=false", "batch_size=1")
ON_CPU = ("trainer.accelerator=cpu", "evaluation=none", "logger=none")
WANDB_BLOCK = 32768  # bytes, of LevelDB's log format, in which wandb writes its runs
WANDB_HEADER = 7  # bytes, of the file and of each record


class TinyNet(nn.Module):
    """Two stages with batch norm and in-place ReLUs, any input size, four classes."""

    def __init__(self, classes: int = 4, width: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = nn.Sequential(nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.ReLU(inplace=True))
        self.fc = nn.Linear(2 * width, classes)

    def forward(self, pictures: Tensor) -> Tensor:
        """Return (N, classes) logits."""
        features = self.layer1(self.relu(self.bn1(self.conv1(pictures))))
        logits: Tensor = self.fc(features.mean((2, 3)))
        return logits


def tiny_net(classes: int = 4, width: int = 8) -> TinyNet:
    """A TinyNet with seeded weights and running statistics that are not trivial."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = TinyNet(classes, width)
        network.bn1.running_mean.normal_()  # type: ignore[union-attr]
        network.bn1.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    return network.eval()


class CifarBlock(nn.Module):
    """Two convolutions and a shortcut without parameters (He et al. 2016, option A)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.added = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, outputs, H / stride, W / stride)."""
        main = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        side = self.added // 2
        out: Tensor = (main + nn.functional.pad(shortcut, (0, 0, 0, 0, side, side))).relu()
        return out


class CifarResNet(nn.Module):
    """The CIFAR-10 ResNet of 6 n + 2 layers."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, blocks, 1)
        self.layer2 = self._stage(16, 32, blocks, 2)
        self.layer3 = self._stage(32, 64, blocks, 2)
        self.linear = nn.Linear(64, 10)

    @staticmethod
    def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
        first = CifarBlock(inputs, outputs, stride)
        return nn.Sequential(first, *(CifarBlock(outputs, outputs, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, 10) logits for (N, 3, 32, 32)."""
        x = self.layer3(self.layer2(self.layer1(self.bn1(self.conv1(x)).relu())))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


def cifar_resnet20() -> nn.Module:
    """The factory of model=python: the same random weights in every process."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return CifarResNet(3)


def image_folder(root: Path, classes: Sequence[str], count: int = 2, corrupt: int = 0, side: int = 40) -> Path:
    """Write an ImageFolder tree of random pictures, some of its files corrupt, and return its root."""
    numbers = np.random.default_rng(0)
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = numbers.integers(0, 256, (side, side, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
        for i in range(corrupt):
            (root / name / f"broken{i}.png").write_text("no picture")
    return root


def exit_code(main: Callable[[list[str]], object], *arguments: str) -> int:
    """Run a command in this process and return its exit code."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def command(*arguments: str) -> int:
    """Run vital-visualize in this process and return its exit code."""
    return exit_code(visualize.main, *arguments)


def wandb_records(path: Path) -> Iterator[Any]:
    """Yield the records of a run of Weights & Biases that was written offline."""
    from wandb.proto import wandb_internal_pb2

    raw, place, parts = path.read_bytes(), WANDB_HEADER, b""
    while place < len(raw):
        left = WANDB_BLOCK - place % WANDB_BLOCK
        if left < WANDB_HEADER:  # too short for a record: padding
            place += left
            continue
        _checksum, length, kind = struct.unpack("<IHB", raw[place : place + WANDB_HEADER])
        parts += raw[place + WANDB_HEADER : place + WANDB_HEADER + length]
        place += WANDB_HEADER + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
            record.ParseFromString(parts)
            parts = b""
            yield record
