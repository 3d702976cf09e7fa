"""Time of a ResNet-50's features and their gradient with torch.compile, against folded norms and packed weights.

    OMP_NUM_THREADS=1 python benchmarks/compiled.py --clock cpu

One picture of 224 px in float32, channels last; the three ways alternate. torch.compile needs a C++ compiler.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from statistics import median

import torch
from step_profile import spread, table
from step_time import CLOCKS, random_network
from torch import Tensor, nn
from unit_step_time import seconds

from vital_exp import load_model
from vital_exp.models.folding import FoldedNorms
from vital_exp.models.packing import PackedConvolutions
from vital_exp.models.taps import Taps

LAYERS = ("maxpool", "layer1", "layer2", "layer3", "layer4")
SIZE = 224
ROUNDS, STEPS = 7, 3  # gradients in each round
PLAIN, FOLDED, COMPILED = "plain", "norms folded, weights packed", "torch.compile"

Features = Callable[[Tensor], Sequence[Tensor]]


def features_of(resnet: nn.Module) -> Features:
    """Return torchvision's forward pass up to the last block, written out because hooks break a compiled graph."""
    stem = nn.Sequential(*(resnet.get_submodule(name) for name in ("conv1", "bn1", "relu", "maxpool")))
    parts = [stem, *(resnet.get_submodule(name) for name in LAYERS[1:])]

    def features(pictures: Tensor) -> list[Tensor]:
        maps = [parts[0](pictures)]
        for part in parts[1:]:
            maps.append(part(maps[-1]))
        return maps

    return features


class Contest:
    """The three ways, on one network and picture.

    Args:
        size: side of the picture in px.
        clock: one of :data:`step_time.CLOCKS`.
    """

    def __init__(self, size: int, clock: Callable[[], float]) -> None:
        network = load_model(random_network("resnet50").to(memory_format=torch.channels_last), size=size)
        taps, plain = Taps(network.module, LAYERS), features_of(network.module)
        self.clock = clock
        self.switches = FoldedNorms(network, taps), PackedConvolutions(network)
        self.ways = {PLAIN: plain, FOLDED: lambda x: list(taps(x)[0].values()), COMPILED: torch.compile(plain)}
        pictures = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
        self.pictures = pictures.contiguous(memory_format=torch.channels_last).requires_grad_()

    def gradient(self, name: str) -> Tensor:
        """Return the gradient of the features' mean squares by the picture."""
        with ExitStack() as stack:
            for switch in self.switches if name == FOLDED else ():
                stack.enter_context(switch.active())
            loss = torch.stack([maps.square().mean() for maps in self.ways[name](self.pictures)]).sum()
            return torch.autograd.grad(loss, self.pictures)[0]

    def seconds(self, name: str) -> float:
        """Return the seconds of one forward pass and gradient."""
        return seconds(lambda: [self.gradient(name) for _ in range(STEPS)], self.clock) / STEPS


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    reader = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    reader.add_argument("--clock", default="wall", choices=list(CLOCKS), help="cpu: processor time")
    reader.add_argument("--size", type=int, default=SIZE)
    reader.add_argument("--rounds", type=int, default=ROUNDS)
    options = reader.parse_args(arguments)
    contest = Contest(options.size, CLOCKS[options.clock])
    began = time.perf_counter()
    compiled = contest.gradient(COMPILED)
    spent = time.perf_counter() - began
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.clock} clock, {options.rounds} rounds"
    )
    print(f"compiled in {spent:.0f} s\n")
    gradients = {name: compiled if name == COMPILED else contest.gradient(name) for name in contest.ways}
    rounds = [{name: contest.seconds(name) for name in contest.ways} for _ in range(options.rounds)]
    rows = {}
    for name, found in gradients.items():
        rows[name] = {
            "ms": f"{median(one[name] for one in rounds) * 1e3:.0f}",
            "times as fast": spread([one[PLAIN] / one[name] for one in rounds]),
            "gradient differs by": f"{float((found - gradients[PLAIN]).norm() / gradients[PLAIN].norm()):.0e}",
        }
    print(table(rows, "forward pass and gradient"))


if __name__ == "__main__":
    main()
