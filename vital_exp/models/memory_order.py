"""The order in which a network's maps lie in memory: channels first or last."""

from __future__ import annotations

import logging

import torch

from vital_exp.models.network import VisionNetwork

logger = logging.getLogger(__name__)


def arrange(network: VisionNetwork, channels_last: bool) -> None:
    """Lay out a network's weights, and with them its maps, as (N, H, W, C) or as (N, C, H, W) in memory.

    No value and no shape changes. Convolutions are faster with the channels last (docs/performance.md). A network whose
    code relies on the other order, such as ``x.view(len(x), -1)`` behind a convolution, keeps it, and the log says why.

    Args:
        network: on its device; its weights are laid out anew in place.
        channels_last: whether the order is (N, H, W, C).
    """
    if not any(parameter.ndim == 4 for parameter in network.module.parameters()):
        return
    network.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    if channels_last and (reason := _refusal(network)):
        logger.info("%s keeps its maps as (N, C, H, W): %s", network.name, reason)
        network.to(memory_format=torch.contiguous_format)


@torch.no_grad()
def _refusal(network: VisionNetwork) -> str:
    """Return why a network cannot run in its present memory order; empty if it can."""
    try:
        network.returned(network.blank())
    except RuntimeError as error:
        return str(error).split("\n")[0]
    return ""
