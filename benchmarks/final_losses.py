"""Whether the switches that speed up a step change the outcome: the losses of the last steps with and without each.

    python benchmarks/final_losses.py

Ten classes of the embedded ResNet by ``vital_fourier``. Each line has the ratio of the mean loss over the last steps to
that of a run with all switches off: mean over classes, and range. Sorting amplifies rounding, so single pictures
differ; the last line, of another seed, shows how much pictures differ anyway. Exit code 1 if a mean differs by more
than 1 %.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vital_exp import visualize

OFF = ("channels_last=false", "fold_batch_norms=false", "pack_weights=false")
SWITCHES: Mapping[str, tuple[str, ...]] = {
    "channels last": ("channels_last=true",),
    "norms folded": ("fold_batch_norms=true",),
    "channels last, weights packed": ("channels_last=true", "pack_weights=true"),
    "all three": ("channels_last=true", "fold_batch_norms=true", "pack_weights=true"),
    "all three, bfloat16": (
        *("channels_last=true", "fold_batch_norms=true", "pack_weights=true"),
        "trainer.precision=bf16-mixed",
    ),
}
ANOTHER_SEED = "another seed"
LAST = 10  # steps
TOLERANCE = 0.01


def last_losses(options: argparse.Namespace, overrides: Sequence[str]) -> Tensor:
    """Return the mean loss of each class's picture over the last steps, (classes,)."""
    targets = [f"class:{number}" for number in range(options.classes)]
    asked = ["evaluation=none", "progress=false", *OFF, *overrides]
    made = visualize("embedded_resnet", targets, method="vital_fourier", steps=options.steps, overrides=asked)
    return torch.tensor([made.history[name]["total"][-LAST:] for name in made.history]).mean(dim=1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return 1 if a switch moves the mean by more than the tolerance."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--classes", type=int, default=10)
    options = parser.parse_args(arguments)
    plain, moved = last_losses(options, ()), 0.0
    print("| | mean ratio of the last losses | least | largest |\n|---|---|---|---|")
    for name, overrides in {**SWITCHES, ANOTHER_SEED: ("seed=1",)}.items():
        ratio = last_losses(options, overrides) / plain
        print(f"| {name} | {ratio.mean():.3f} | {ratio.min():.2f} | {ratio.max():.2f} |", flush=True)
        if name != ANOTHER_SEED:
            moved = max(moved, abs(float(ratio.mean()) - 1))
    return int(moved > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
