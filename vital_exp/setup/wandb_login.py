"""The check for a login at Weights & Biases, before a long run begins. Imports no torch."""

from __future__ import annotations

import inspect
import os

from vital_exp.errors import UsageError

MODE = "WANDB_MODE"  # wandb's environment variable


def is_offline(asked: bool) -> bool:
    """Return whether wandb works offline: by the configuration (``asked``) or by the environment variable."""
    return asked or os.environ.get(MODE, "online") not in ("online", "shared")


def check_login(key: str, value: object, offline: bool) -> None:
    """Check that a run can be sent to Weights & Biases.

    Args:
        key, value: the configuration key that turned wandb on, and its value, for the message.
        offline: whether the configuration asks to work offline.

    Raises:
        UsageError: online without a login.
    """
    if is_offline(offline) or logged_in():
        return
    instead = "logger.offline=true" if key == "logger" else "offline=true"
    raise UsageError(key, value, f"no login: add {instead}, run `wandb login`, or set WANDB_API_KEY")


def logged_in() -> bool:
    """Return whether there is a login, without a prompt for one (wandb.init would show a prompt on a terminal)."""
    import wandb

    if "prompt" in inspect.signature(wandb.login).parameters:
        return bool(wandb.login(prompt=False, verify=False))
    return bool(wandb.api.api_key)  # versions before 0.30
