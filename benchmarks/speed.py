"""The page on speed that ``make bench`` writes: against the published loop, Horama and Lucent; scaling; memory.

    python benchmarks/speed.py                                           # five minutes on two idle cores
    python benchmarks/speed.py --clock cpu --out benchmarks/results/speed.md

Compared cases alternate within one run, on the same network (ResNet-50 with random weights, unless a line says
otherwise), at 224 px. Horama and Lucent are compared where they are installed (the extra ``peers``). When --seconds are
over, no further part begins, and the page names the parts that are left out.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import baselines_speed
import psutil
import step_profile
import step_time
import torch
import unit_step_time
from published_loop import PublishedLoop, reference_activations

from vital_exp import load_model
from vital_exp.engine import memory
from vital_exp.models.network import model_space
from vital_exp.setup.request import Request
from vital_exp.targets.unit import Target
from vital_exp.visualization.run import Visualization

Rows = dict[str, dict[str, str]]
NETWORK, SIZE, STEPS = "resnet50", 224, 2000  # of a picture, as published
REFERENCES = 50
BATCHES, SIZES, COUNTS, TARGETS = (1, 2, 4, 8), (112, 224, 320), (10, 50), (1, 8, 32)
SCALING_ROUNDS = 3
MEMORY_STEPS = 2
LUCENT_STEPS = 24  # of a picture; beginning one (folding, packing, two second gradients) would rule fewer
BUDGET = 270.0  # seconds


def per_minute(seconds: float) -> str:
    """Return the number of pictures of STEPS steps per minute, from the seconds of a step of one picture."""
    return f"{60 / seconds / STEPS:.3g}"


def against_published(options: argparse.Namespace) -> Rows:
    """The library's step of a class against both transcriptions, in float32 and, on processors with it, bfloat16."""
    asked = [f"--clock={options.clock}", f"--rounds={options.rounds}", f"--network={options.network}"]
    asked += [f"--size={options.size}", f"--references={options.references}"]
    precisions = ["32", "bf16"] if step_time.bfloat16_support() != "none" else ["32"]
    result = step_time.measure(step_time.parse([*asked, "--precision", *precisions]))
    seconds = {name: row["seconds"] for steps in result["steps"].values() for name, row in steps.items()}
    differences = {step_time.LIBRARY[one]: f"{value:.0e}" for one, value in result["loss_difference"].items()}
    return {
        name: {"seconds a step": f"{spent:.3f}", "pictures per minute": per_minute(spent)}
        | {
            f"times that of {step_time.LIBRARY[precision]} (least to largest)": _ratio(steps.get(name))
            for precision, steps in result["steps"].items()
        }
        | {"first losses differ by": differences.get(name, "")}
        for name, spent in seconds.items()
    }


def _ratio(found: Mapping[str, float] | None) -> str:
    return f"{found['ratio']:.2f} ({found['least_ratio']:.2f} to {found['largest_ratio']:.2f})" if found else ""


def hidden_against_published(options: argparse.Namespace) -> Rows:
    """A hidden unit's step (LRP) against its transcription, which keeps all references' graphs: fewer references."""
    asked = [
        f"--clock={options.clock}",
        "--rounds=1",
        f"--references={options.unit_references}",
        f"--size={options.size}",
    ]
    found, difference = unit_step_time.published(unit_step_time.parse(asked))
    name = f"published loop for hidden units, {options.unit_references} references"
    return {name: {"times the library's": f"{median(found):.1f}", "first losses differ by": f"{difference:.0e}"}}


def against_horama(options: argparse.Namespace) -> Rows:
    """MACO and Fourier against Horama: MobileNetV2, pictures of 1280 px, six crops per step."""
    if importlib.util.find_spec("horama") is None:
        return {"Horama": {"": "not installed: pip install 'vital-exp[peers]'"}}
    clock = "processor" if options.clock == "cpu" else "wall"
    asked = baselines_speed.parse(["--rounds=2", "--steps=2", f"--clock={clock}"])
    with baselines_speed.in_a_folder_with_a_spectrum():
        found = [one for m in ("maco", "fourier") for one in baselines_speed.contest("mobilenetv2_100", m, asked)]
    return {
        f"{one['method']}, {one['pictures together']} together": {
            key: f"{one[key]:.3g}" for key in ("Horama, s", "ours, s", "times as fast", "least", "most")
        }
        for one in found
    }


def against_lucent(options: argparse.Namespace) -> Rows:
    """Fourier against Lucent's render_vis: pictures of the network's input size, one at a time."""
    if importlib.util.find_spec("lucent") is None:
        return {"Lucent": {"": "not installed: pip install 'vital-exp[peers]'"}}
    from lucent.optvis import objectives, param, render

    module, clock = step_time.random_network(options.network), step_time.CLOCKS[options.clock]
    request = Request.of(
        load_model(copy.deepcopy(module), size=options.size),
        "class:0",
        method="fourier",
        steps=LUCENT_STEPS,
        overrides=["evaluation=none", "batch_size=1", "progress=false", *step_time.SWITCHES],
    )

    def theirs() -> None:
        render.render_vis(
            module, objectives.channel("fc", 0), lambda: param.image(options.size), thresholds=(LUCENT_STEPS,),
            progress=False, show_image=False,
        )  # fmt: skip

    def ours() -> None:
        Visualization(request).make()

    times = [[unit_step_time.seconds(one, clock) / LUCENT_STEPS for one in (theirs, ours)] for _ in range(3)][1:]
    ratio = [lucent / own for lucent, own in times]
    return {
        "fourier, 1": {
            "Lucent, s": f"{median(one[0] for one in times):.3g}",
            "ours, s": f"{median(one[1] for one in times):.3g}",
            "times as fast": f"{median(ratio):.2f}",
        }
    }


def _case(options: argparse.Namespace, batch: int, size: int) -> step_profile.Case:
    asked = step_profile.parser(None).parse_args([f"--clock={options.clock}"])
    network = load_model(step_time.random_network(options.network), size=size)
    return step_profile.Case(network, None, batch, asked, step_time.SWITCHES)


def _relative(cases: Mapping[str, tuple[step_profile.Case, int]]) -> Rows:
    """Return the seconds of a step per picture of each case, and the ratio to the first, alternating."""
    steps = {name: (case, case.step(), pictures) for name, (case, pictures) in cases.items()}
    rounds = []
    for _ in range(SCALING_ROUNDS):
        rounds.append({name: unit_step_time.seconds(take, case.clock) / n for name, (case, take, n) in steps.items()})
    first = next(iter(cases))
    return {
        name: {
            "seconds a step and picture": f"{median(one[name] for one in rounds):.3f}",
            f"times that of {first}": f"{median(one[name] / one[first] for one in rounds):.2f}",
        }
        for name in cases
    }


def by_batch(options: argparse.Namespace) -> Rows:
    """Time by batch size."""
    return _relative({f"batch {batch}": (_case(options, batch, options.size), batch) for batch in options.batches})


def by_size(options: argparse.Namespace) -> Rows:
    """Time by the side of the pictures."""
    return _relative({f"{size} px": (_case(options, 1, size), 1) for size in options.sizes})


def by_references(options: argparse.Namespace) -> Rows:
    """Time by number of references: their statistics are computed once per target; steps do not depend on it."""
    rows = {}
    for count in options.counts:
        network = load_model(step_time.random_network(options.network), size=options.size)
        request = Request.of(
            network, "class:0", references=torch.rand(count, 3, options.size, options.size),
            overrides=["references.cache=false", "evaluation=none"],
        )  # fmt: skip
        problem = request.setup.problem(request.targets)
        layers, clock = list(problem.alignment.layers), step_time.CLOCKS[options.clock]
        spent = unit_step_time.seconds(lambda p=problem, n=layers, r=request: p.statistics.of(r.targets, n), clock)
        rows[f"{count} references"] = {"seconds once per target": f"{spent:.2f}"}
    return rows


def by_targets(options: argparse.Namespace) -> Rows:
    """Time by number of targets in a run: the embedded ResNet, 20 steps each, all but the start-up included."""
    rows, clock = {}, step_time.CLOCKS[options.clock]
    for count in options.targets:
        with TemporaryDirectory() as folder:
            spent = unit_step_time.seconds(lambda n=count, f=folder: _run_embedded(n, f), clock)
        rows[f"{count} targets"] = {"seconds per target": f"{spent / count:.3f}"}
    return rows


def _run_embedded(count: int, folder: str) -> None:
    targets = [Target("class", i % 10, variation=1 + i // 10) for i in range(count)]
    overrides = [f"cache_dir={folder}", "evaluation=none", "progress=false"]
    request = Request.of("embedded_resnet", targets, steps=20, overrides=overrides)
    Visualization(request).make()


def by_memory(options: argparse.Namespace) -> Rows:
    """Peak memory beyond the network itself, each case in a process of its own."""
    asked = [f"--network={options.network}", f"--size={options.size}", f"--references={options.references}"]
    found = {}
    for name in ("library", "published"):
        command = [sys.executable, str(Path(__file__).resolve()), f"--memory={name}", *asked]
        found[name] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {
        name: {"MiB": f"{value:.0f}", "share of the published loop's": f"{value / found['published']:.2f}"}
        for name, value in found.items()
    }


def memory_of(options: argparse.Namespace) -> float:
    """Return the peak memory of a few steps in MiB, beyond that of a process with the network."""
    module = step_time.random_network(options.network)
    before = psutil.Process().memory_info().rss / memory.MEBIBYTE
    references = torch.rand(options.references, 3, options.size, options.size)
    network = load_model(module, size=options.size)
    overrides = ["references.cache=false", "evaluation=none", "batch_size=1", "progress=false", *step_time.SWITCHES]
    request = Request.of(network, "class:0", references=references, steps=MEMORY_STEPS, overrides=overrides)
    if options.memory == "library":
        Visualization(request).make()
    else:
        problem = request.setup.problem(request.targets)
        weights, start = problem.alignment.layers, torch.zeros(1, 3, options.size, options.size)
        activations = reference_activations(module, list(weights), model_space(references, network))
        loop = PublishedLoop(module, weights, activations, start, network.preprocessing.valid_range(start))
        for _ in range(MEMORY_STEPS):
            loop.step()
    return memory.peak(torch.device("cpu")) - before


PARTS: Mapping[str, Callable[[argparse.Namespace], Rows]] = {
    "A class, against the published loop": against_published,
    "Peak memory": by_memory,
    "Pictures made together": by_batch,
    "A hidden unit, against the published loop": hidden_against_published,
    "MACO and Fourier, against Horama": against_horama,
    "Fourier, against Lucent": against_lucent,
    "Size of the picture": by_size,
    "Number of references": by_references,
    "Number of targets": by_targets,
}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS), metavar="TITLE")
    parser.add_argument("--network", default=NETWORK, choices=step_time.NETWORKS)
    parser.add_argument("--size", type=int, default=SIZE)
    parser.add_argument("--references", type=int, default=REFERENCES)
    parser.add_argument("--unit-references", type=int, default=10, help="of the published loop for hidden units")
    parser.add_argument("--batches", type=int, nargs="+", default=list(BATCHES))
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--counts", type=int, nargs="+", default=list(COUNTS))
    parser.add_argument("--targets", type=int, nargs="+", default=list(TARGETS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clock", default="wall", choices=list(step_time.CLOCKS), help="cpu: processor time")
    parser.add_argument("--seconds", type=float, default=BUDGET, help="after which no further part begins")
    parser.add_argument("--memory", choices=["library", "published"], help="print the MiB of one of them, and end")
    parser.add_argument("--out", type=Path, help="also write the page to this file")
    return parser.parse_args(arguments)


def page(options: argparse.Namespace) -> str:
    """Return the page; each part is printed when it is finished."""
    started, left_out = time.perf_counter(), []
    head = (
        f"# Speed\n\n`python benchmarks/speed.py`: torch {torch.__version__}, {torch.get_num_threads()} threads, "
        f"{options.clock} clock; bfloat16 in the processor: {step_time.bfloat16_support()}. Times are of this "
        "machine and its other work; ratios are within one run. Pictures per minute are for 2,000 steps."
    )
    print(head, flush=True)
    text = [head]
    for title in options.parts:
        if time.perf_counter() - started > options.seconds:
            left_out.append(title)
            continue
        began = time.perf_counter()
        rows = step_profile.table(PARTS[title](options), "what")
        spent = time.perf_counter() - began
        text.append(f"## {title}\n\n{PARTS[title].__doc__} Measured in {spent:.0f} s.\n\n{rows}")
        print(f"\n{text[-1]}", flush=True)
    if left_out:
        text.append(f"Left out, time was over: {'; '.join(left_out)}.")
        print(f"\n{text[-1]}")
    return "\n\n".join(text) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the page."""
    options = parse(arguments)
    if options.memory:
        print(memory_of(options))
        return
    text = page(options)
    if options.out:
        options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
