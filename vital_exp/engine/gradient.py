"""The objective and its gradient at given pictures, computed as in a step of the optimisation."""

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
    """Evaluate the objective at given pictures, as a step of the optimisation does.

    Args:
        model: a name, or a network wrapped by :func:`vital_exp.load_model`.
        targets: one target per picture.
        pictures: (N, C, H, W) RGB or grey, not clamped to [0, 1]. float64 is normalised before it is cast to the
            network's dtype.
        method: an option of the group ``method``.
        references: a folder, a tensor (B, C, H, W) in [0, 1] for all targets, or {target: tensor}.
        seed: of the random transforms.
        step: number of the step, from 0, whose random transforms are applied; ``overrides=["transforms=none"]``
            applies none.
        overrides: as on the command line; ``trainer.precision`` has the same effect as in a run.

    Returns:
        The losses (N,), and their gradients (N, C, H, W) with respect to the normalised pictures.

    Raises:
        UsageError: a configuration that the command refuses, or another number of pictures than of targets.
    """
    request = Request.of(model, targets, method=method, references=references, seed=seed, overrides=overrides)
    pictures = checked_shape(pictures, "pictures", channels=request.network.preprocessing.channels)
    if len(pictures) != len(request.targets):
        wanted = f"one picture ({pictures.shape[1]}, H, W) per target, and there are {len(request.targets)}"
        raise UsageError("pictures", tuple(pictures.shape), wanted)
    setup, network, size = request.setup, request.network, (pictures.shape[-2], pictures.shape[-1])
    together = setup.together(size, len(pictures))
    objective = step_objective(setup, request.targets, together, size, pictures)
    with torch.autocast(network.device.type, torch.bfloat16, enabled=setup.bf16):
        found = objective(model_space(pictures, network), step)
    return found.losses, found.gradient
