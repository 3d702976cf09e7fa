"""The objective and its gradient at given pictures: one step of the optimisation without the step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vital_exp.engine.step import step_objective
from vital_exp.errors import UsageError
from vital_exp.images.ranges import checked_shape
from vital_exp.models.network import VisionNetwork, model_space
from vital_exp.modes import own_modes
from vital_exp.setup.request import Request
from vital_exp.targets.unit import Target


@own_modes()
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
        overrides: as the command takes them; ``trainer.precision`` counts as in a run.

    Returns:
        (N,) losses, and (N, 3, H, W) gradients with respect to the pictures in the network's normalised space.

    Raises:
        UsageError: as the command; or as many pictures as targets are not given.
    """
    request = Request.of(model, targets, method=method, references=references, seed=seed, overrides=overrides)
    pictures = checked_shape(pictures, "pictures", channels=request.network.preprocessing.channels)
    if len(pictures) != len(request.targets):
        wanted = f"one picture (3, H, W) per target, and there are {len(request.targets)}"
        raise UsageError("pictures", tuple(pictures.shape), wanted)
    setup, network, size = request.setup, request.network, (pictures.shape[-2], pictures.shape[-1])
    together = setup.together(size, len(pictures))
    objective = step_objective(setup, request.targets, together, size, pictures)
    with torch.autocast(network.device.type, torch.bfloat16, enabled=setup.bf16):
        found = objective(model_space(pictures, network), step)
    return found.losses, found.gradient
