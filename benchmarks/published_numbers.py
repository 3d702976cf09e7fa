"""How far the fast switches lead from the published implementation's numbers: losses, and the first gradient.

    VITAL_TEST_DATA=... python benchmarks/published_numbers.py

The networks, references and start are those of tests/test_published_numbers.py. A loss is compared by its relative
difference, the gradient at the recorded pixels by the norm of the difference over the norm. The last row is float64,
whose distance is the rounding of the published float32.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from step_profile import table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.published import Published, published
from vital_exp.engine import objective_and_gradient

NETWORKS = ("resnet18", "vit_b_32")
SWITCHES = {
    "method=vital as it is": [],
    "fold_batch_norms=true": ["fold_batch_norms=true"],
    "channels_last=true": ["channels_last=true"],
    "both": ["fold_batch_norms=true", "channels_last=true"],
    "float64": ["trainer.precision=64-true"],
}


def distances(case: Published, overrides: list[str]) -> dict[str, str]:
    """Return the distances of the first loss and gradient from the published ones."""
    plain = ["transforms=none", "references.cache=false", *overrides]
    losses, gradient = objective_and_gradient(
        case.network, "class:0", case.start, references=case.references, overrides=plain
    )
    expected = case.numbers["first_gradient"]
    off = gradient.flatten()[case.numbers["pixel_index"]] - expected
    return {
        "first loss": f"{abs(losses.item() / case.numbers['losses'][0].item() - 1):.1e}",
        "first gradient": f"{float(off.norm() / expected.norm()):.1e}",
    }


def main() -> None:
    """Print a table for each network."""
    data = Path(os.environ["VITAL_TEST_DATA"])
    for arch in NETWORKS:
        case = published(data, arch)
        rows = {name: distances(case, overrides) for name, overrides in SWITCHES.items()}
        print(f"{table(rows, arch)}\n")


if __name__ == "__main__":
    main()
