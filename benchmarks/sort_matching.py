"""Sort matching in blocks that fit into a core's cache, against torch's sort, on maps of the size of a ResNet-50's.

    OMP_NUM_THREADS=1 python benchmarks/sort_matching.py --clock cpu

Random maps behind a ReLU, one picture of 224 px, matched with quantiles of other maps; the two alternate.
tests/test_sorting.py compares the gradients, since the two sort equal values in different orders.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from statistics import median

import torch
from step_profile import spread, table
from step_time import CLOCKS
from torch import Tensor
from unit_step_time import seconds

from vital_exp.objectives.sorting import match_by_torch, match_sorted

MAPS = {"conv1": (64, 112), "layer1": (256, 56), "layer2": (512, 28), "layer3": (1024, 14), "layer4": (2048, 7)}
FORMATS = {"(N, C, H, W)": torch.contiguous_format, "channels last": torch.channels_last}
DTYPES = {"32": torch.float32, "bf16": torch.bfloat16}
ROUNDS = 7  # after one that warms up

Matching = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def layers(dtype: torch.dtype, memory_format: torch.memory_format) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return for each layer features (1, C, P), quantiles (C, P) of other images, and factors (1, C)."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for channels, side in MAPS.values():
        maps, others = torch.randn(2, 1, channels, side, side, generator=generator).relu()
        features = maps.to(dtype).contiguous(memory_format=memory_format).flatten(2)
        quantiles = others.flatten(2)[0].sort(dim=-1).values
        found.append((features, quantiles, torch.rand(1, channels, generator=generator)))
    return found


def contest(given: Sequence[tuple[Tensor, Tensor, Tensor]], rounds: int, clock: Callable[[], float]) -> dict[str, str]:
    """Return a row of the table."""

    def taken(match: Matching) -> float:
        return seconds(lambda: [match(*one) for one in given], clock)

    times = [(taken(match_by_torch), taken(match_sorted)) for _ in range(rounds + 1)][1:]
    difference = max(float((match_sorted(*one)[0] / match_by_torch(*one)[0] - 1).abs().max()) for one in given)
    return {
        "torch, ms": f"{median(theirs for theirs, _ in times) * 1e3:.0f}",
        "in blocks, ms": f"{median(ours for _, ours in times) * 1e3:.0f}",
        "times as fast": spread([theirs / ours for theirs, ours in times]),
        "sums differ by": f"{difference:.0e}",
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    reader = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    reader.add_argument("--clock", default="wall", choices=list(CLOCKS), help="cpu: processor time of all threads")
    reader.add_argument("--rounds", type=int, default=ROUNDS)
    options = reader.parse_args(arguments)
    rows = {
        f"{precision}, {name}": contest(layers(dtype, memory_format), options.rounds, CLOCKS[options.clock])
        for precision, dtype in DTYPES.items()
        for name, memory_format in FORMATS.items()
    }
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.clock} clock, ", end="")
    print(f"{options.rounds} rounds\n")
    print(table(rows, "precision, memory"))


if __name__ == "__main__":
    main()
