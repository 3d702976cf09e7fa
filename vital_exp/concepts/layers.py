"""Layers that NMF can take: those whose activations are never negative."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch import Tensor, nn

from vital_exp.models.network import VisionNetwork, model_space

SUGGESTED = 2  # the nearest before the layer and the nearest after it


@torch.no_grad()
def without_negatives(network: VisionNetwork, layer: str, picture: Tensor) -> list[str]:
    """Return the layers nearest to ``layer`` with maps that are nowhere negative for a picture (3, H, W) RGB."""
    found: dict[str, bool] = {}  # whether it will do, in order of completion

    def note(name: str):  # type: ignore[no-untyped-def]
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
    return [*before[:1], *after[:1]][:SUGGESTED]
