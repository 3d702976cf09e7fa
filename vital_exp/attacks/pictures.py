"""Pictures made in memory, by any method, and the inputs of the network while they are made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from vital_exp.images.output import resized
from vital_exp.models.network import VisionNetwork
from vital_exp.setup.request import Request
from vital_exp.targets.unit import Target
from vital_exp.visualization.outcome import Pictures
from vital_exp.visualization.run import Visualization

# Geirhos et al. 2024: snapshots spaced logarithmically over steps 4 to 512. Two per doubling is ours.
FIRST_SNAPSHOT, LAST_SNAPSHOT, PER_DOUBLING = 4, 512, 2
QUIET = ("logger=none", "evaluation=none", "progress=false", "references.cache=false")
GivenReferences = str | Path | Tensor | Mapping[Target, Tensor] | None


def make_pictures(
    network: VisionNetwork,
    targets: Sequence[Target],
    method: str,
    references: GivenReferences = None,
    *,
    seed: int = 0,
    steps: int | None = None,
    overrides: Sequence[str] = (),
) -> Pictures:
    """Return the pictures of targets by a method, in memory.

    Args:
        network: honest or attacked.
        targets: all classes, or all hidden units.
        method: an option of the group ``method``.
        references: {target: tensor (R, C, H, W)}, one tensor for all targets, or a folder; None: none.
        seed, steps, overrides: see :func:`vital_exp.visualize`.
    """
    quiet = [*QUIET, *overrides]
    request = Request.of(
        network, targets, method=method, references=references, seed=seed, steps=steps, overrides=quiet
    )
    return Visualization(request).run()


def snapshot_steps(steps: int, every: int | None = None) -> list[int]:
    """Return the steps of the snapshots, counted from 1: 4, 6, 8, 11, 16 ... 512 or each ``every`` steps, and the last.

    Args:
        steps: the run's number of steps.
        every: steps between snapshots; None: logarithmically spaced.
    """
    if every is not None:
        found = list(range(every, steps + 1, every))
    else:
        doublings = range(PER_DOUBLING * (LAST_SNAPSHOT // FIRST_SNAPSHOT).bit_length())
        spaced = [round(FIRST_SNAPSHOT * 2 ** (number / PER_DOUBLING)) for number in doublings]
        found = [step for step in spaced if step <= min(steps, LAST_SNAPSHOT)]
    return sorted({*found, steps})


def snapshots(
    network: VisionNetwork,
    targets: Sequence[Target],
    methods: Mapping[str, Sequence[str]],
    references: GivenReferences = None,
    *,
    seeds: Sequence[int] = (0,),
    steps: int = LAST_SNAPSHOT,
    every: int | None = None,
) -> Tensor:
    """Return the network's inputs at the snapshots of runs, (M, C, H, W) normalised: the pictures after the transforms.

    Inputs that a transform has resized are resized to the network's input size.

    Args:
        network: the network that the pictures are made for.
        targets: all classes, or all hidden units.
        methods: options of the group ``method``, with further overrides of each.
        references: see :func:`make_pictures`.
        seeds: one run for each.
        steps: the steps of each run.
        every: see :func:`snapshot_steps`.
    """
    found: list[Tensor] = []
    for method, overrides in methods.items():
        for seed in seeds:
            with watched(network.module, snapshot_steps(steps, every), steps) as seen:
                make_pictures(network, targets, method, references, seed=seed, steps=steps, overrides=overrides)
            found += [resized(_distinct(inputs), network.preprocessing.size) for inputs in seen]
    return torch.cat(found)


def _distinct(inputs: Tensor) -> Tensor:
    """Leave out the copies of the last picture that pad a batch."""
    other = (inputs[1:] != inputs[:-1]).flatten(1).any(dim=1)
    return inputs[torch.cat([other.new_ones(1), other])]


@contextmanager
def watched(module: nn.Module, at: Sequence[int], steps: int) -> Iterator[list[Tensor]]:
    """Record a network's inputs at given steps of the optimisations that run in this context.

    Args:
        module: the network.
        at: the steps, counted from 1.
        steps: the number of steps of each batch of pictures.
    """
    seen: list[Tensor] = []
    wanted, calls = frozenset(at), 0

    def keep(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal calls
        pictures = inputs[0]
        if torch.is_grad_enabled() and pictures.requires_grad:  # references and evaluations have no gradient
            calls += 1
            if (calls - 1) % steps + 1 in wanted:
                seen.append(pictures.detach().clone().cpu())

    handle = module.register_forward_pre_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()
