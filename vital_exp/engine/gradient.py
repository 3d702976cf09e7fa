"""The objective and its gradient at given pictures: one step of the optimisation without the step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vital_exp.engine import setup
from vital_exp.engine.problem import problem_of
from vital_exp.engine.request import Request
from vital_exp.errors import UsageError
from vital_exp.images.randomness import RandomStreams
from vital_exp.models.network import VisionNetwork, model_space
from vital_exp.targets.unit import Target


def objective_and_gradient(
    model: str | nn.Module | VisionNetwork,
    targets: Sequence[str | Target] | str | Target,
    pictures: Tensor,
    *,
    method: str = "vital",
    references: str | Path | Tensor | Mapping[Any, Tensor] | None = None,
    seed: int = 0,
    step: int = 0,
    overrides: Sequence[str] = (),
) -> tuple[Tensor, Tensor]:
    """Evaluate the objective as the optimisation would at one step.

    Args:
        model: a name, or a network wrapped by :func:`vital_exp.load_model`.
        targets: one target per picture.
        pictures: (N, 3, H, W) RGB, taken as they are; float64 is normalised before it is cast.
        method: an option of the group ``method``.
        references: a folder, a tensor (B, 3, H, W) RGB for all targets, or {target: tensor}.
        seed: of the random transforms.
        step: whose random transforms to apply; ``overrides=["transforms=none"]`` applies none.
        overrides: as the command takes them.

    Returns:
        (N,) losses, and (N, 3, H, W) gradients with respect to the pictures in the network's normalised space.

    Raises:
        UsageError: as the command; or as many pictures as targets are not given.
    """
    request = Request.of(model, targets, method=method, references=references, seed=seed, overrides=overrides)
    if pictures.ndim != 4 or len(pictures) != len(request.targets):
        wanted = f"one picture (3, H, W) per target, and there are {len(request.targets)}"
        raise UsageError("pictures", tuple(pictures.shape), wanted)
    problem = problem_of(request.config, request.network, request.targets, request.references)
    problem = replace(problem, starts=pictures, size=(pictures.shape[-2], pictures.shape[-1]))
    objective = setup.objective_of(request.config, problem)
    transform = setup.transform_of(request.config, request.network)
    streams = RandomStreams(request.config.seed, [target.name for target in request.targets])
    x = model_space(pictures, request.network).detach().requires_grad_()
    with torch.enable_grad():
        given = {name: transform(one, streams, step) for name, one in objective.given.items()}
        losses, _ = objective(transform(x, streams, step), step=step, given=given)
        (gradient,) = torch.autograd.grad(losses.sum(), x)
    return losses.detach(), gradient
