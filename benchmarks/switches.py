"""The effect of a configuration switch on the time of a step and on its loss: with and without it, in one run.

    python benchmarks/switches.py channels_last=false
    python benchmarks/switches.py fold_batch_norms=false --precision bf16 --cases "resnet50 class" --batches 1 8
    python benchmarks/switches.py pack_weights=false --both channels_last=true

The two alternate; the ratio is the median over rounds, with the smallest and the largest. The losses are those of the
first step, from the same start.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import torch
from step_profile import Case, cases, parser, table

ROUNDS = 7  # after one that warms up


def seconds(case: Case, step: object) -> float:
    """Return the time of one step."""
    case.wait()
    started = case.clock()
    step()  # type: ignore[operator]
    case.wait()
    return case.clock() - started


def contest(plain: Case, switched: Case, rounds: int) -> dict[str, str]:
    """Return a row of the table: times, their ratio and the largest relative difference of the first losses."""
    steps = [(plain, plain.step()), (switched, switched.step())]
    losses = [step().losses for _, step in steps]
    times = [[seconds(case, step) for case, step in steps] for _ in range(rounds)]
    ratios = [after / before for before, after in times]
    return {
        "ms without": f"{median(before for before, _ in times) * 1e3:.4g}",
        "ms with": f"{median(after for _, after in times) * 1e3:.4g}",
        "with / without": f"{median(ratios):.2f}",
        "least": f"{min(ratios):.2f}",
        "largest": f"{max(ratios):.2f}",
        "losses differ by": f"{float((losses[1] / losses[0] - 1).abs().max()):.0e}",
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    reader = parser(__doc__)
    reader.add_argument("overrides", nargs="+", help="of the configuration: the switch")
    reader.add_argument("--rounds", type=int, default=ROUNDS)
    reader.add_argument("--both", nargs="+", default=[], help="overrides with and without the switch")
    options = reader.parse_args(arguments)
    pairs = zip(cases(options, options.both), cases(options, [*options.both, *options.overrides]), strict=True)
    rows = {name: contest(plain, switched, options.rounds) for (name, plain), (_, switched) in pairs}
    switched = " ".join([*options.overrides, *options.both])
    print(f"{switched}: torch {torch.__version__}, {torch.get_num_threads()} threads, ", end="")
    print(f"{options.clock} clock, {options.rounds} rounds\n\n{table(rows, 'network, target, pictures')}")


if __name__ == "__main__":
    main()
