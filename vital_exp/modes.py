"""The modes of torch around the functions of the Python API, whatever the caller's are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def own_modes() -> Iterator[None]:
    """Compute inside without the caller's inference mode, ``no_grad``, autocast, default precision and default device.

    Pictures need gradients, also where they are asked for in a test step or an evaluation script, and their precision
    is the trainer's.
    """
    precision = torch.get_default_dtype()
    with ExitStack() as modes:
        modes.enter_context(torch.inference_mode(False))  # which has gradients on
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                modes.enter_context(torch.autocast(device, enabled=False))
        if torch.get_default_device().type != "cpu":
            modes.enter_context(torch.device("cpu"))
        if precision != torch.float32:
            modes.callback(torch.set_default_dtype, precision)
            torch.set_default_dtype(torch.float32)
        yield
