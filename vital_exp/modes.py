"""The Python API computes in torch modes of its own, independent of the caller's modes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def own_modes() -> Iterator[None]:
    """Suspend the caller's inference mode, ``no_grad``, autocast, default dtype and default device.

    The optimisation needs gradients, even when a test step or an evaluation script calls the API. The trainer's
    precision applies.
    """
    precision = torch.get_default_dtype()
    with ExitStack() as modes:
        modes.enter_context(torch.inference_mode(False))  # also enables gradients
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                modes.enter_context(torch.autocast(device, enabled=False))
        if torch.get_default_device().type != "cpu":
            modes.enter_context(torch.device("cpu"))
        if precision != torch.float32:
            modes.callback(torch.set_default_dtype, precision)
            torch.set_default_dtype(torch.float32)
        yield
