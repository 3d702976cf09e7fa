"""Whether Weights & Biases knows who is logged in: asked before anything long begins. Imports no torch."""

from __future__ import annotations

import inspect
import os

from vital_exp.errors import UsageError

MODE = "WANDB_MODE"  # the environment variable


def is_offline(asked: bool) -> bool:
    """Return whether nothing is to be sent: it is asked for, or the environment says so."""
    return asked or os.environ.get(MODE, "online") not in ("online", "shared")


def check_login(key: str, value: object, offline: bool) -> None:
    """Make sure that a run can be sent.

    Args:
        key, value: of the configuration, that asked for Weights & Biases.
        offline: whether it is asked that nothing is sent.

    Raises:
        UsageError: online without a login.
    """
    if is_offline(offline) or logged_in():
        return
    instead = "logger.offline=true" if key == "logger" else "offline=true"
    raise UsageError(key, value, f"no login: add {instead}, run `wandb login`, or set WANDB_API_KEY")


def logged_in() -> bool:
    """Return whether there is a login; nobody is asked for one, as wandb.init would on a terminal."""
    import wandb

    if "prompt" in inspect.signature(wandb.login).parameters:
        return bool(wandb.login(prompt=False, verify=False))
    return bool(wandb.api.api_key)  # versions before 0.30
