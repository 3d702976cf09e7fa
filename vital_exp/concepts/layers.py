"""Layers for NMF, whose activations must not be negative."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from vital_exp.models.network import VisionNetwork, model_space


@torch.no_grad()
def without_negatives(network: VisionNetwork, layer: str, picture: Tensor) -> list[str]:
    """Return the nearest layer before ``layer``, and after it, whose maps are not negative for a picture (C, H, W)."""
    found: dict[str, bool] = {}  # by layer, in order of completion: whether it suits

    def note(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            found.setdefault(name, isinstance(output, Tensor) and output.ndim > 2 and float(output.min()) >= 0)

        return hook

    with ExitStack() as hooks:
        for name, module in network.module.named_modules():
            if name:
                hooks.callback(module.register_forward_hook(note(name)).remove)
        network.module(model_space(picture[None], network))
    names = list(found)
    here = names.index(layer)
    after = [name for name in names[here + 1 :] if found[name]]
    before = [name for name in reversed(names[:here]) if found[name]]
    return [*before[:1], *after[:1]]
