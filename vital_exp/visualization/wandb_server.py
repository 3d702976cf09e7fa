"""The start of a Weights & Biases run. If its server does not answer within seconds, the run continues offline."""

from __future__ import annotations

import os
import socket
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlparse

from vital_exp.errors import UsageError
from vital_exp.setup.wandb_login import MODE, check_login, is_offline

Run = TypeVar("Run")
SILENT = "WANDB_SILENT"  # wandb's environment variable
ASKED_BY = {"logger": "wandb", "wandb": "true"}  # configuration keys that turn wandb on, with their values
PROBE_SECONDS = 3  # limit for a connection to the server
INIT_SECONDS = 20  # limit for the server's answer to a new run; wandb's default is 90
# Limits for wandb's attempts to send. By default wandb tries for hours, and a script does not end.
PATIENCE = {"retry_max": 2, "retry_wait_min_seconds": 1, "retry_wait_max_seconds": 3, "timeout_seconds": 10}
SENDERS = ("x_graphql", "x_file_stream", "x_file_transfer")
SYNC = "`wandb sync` later sends the records from the folder wandb"


def start(begin: Callable[[dict[str, Any]], Run], offline: bool, key: str = "logger") -> Run:
    """Begin a run: offline if the user wants it or the server does not answer, else online.

    wandb prints nothing itself, unless the environment has WANDB_SILENT=false.

    Args:
        begin: calls ``wandb.init`` with the given arguments.
        offline: whether the user wants to work offline.
        key: the configuration key that turned wandb on, for messages.

    Raises:
        UsageError: online without a login, or with a login that the server refuses.
    """
    with _quiet():
        return _start(begin, offline, key)


def where(run: Any) -> str:
    """Return a line with the address of a run, or with the command that sends an offline run."""
    return f"wandb: offline; send it by: wandb sync {Path(run.dir).parent}" if run.offline else f"wandb: {run.url}"


def _start(begin: Callable[[dict[str, Any]], Run], offline: bool, key: str) -> Run:
    import wandb

    if is_offline(offline):
        with _unchanged_mode():
            return begin({"mode": "offline" if offline else os.environ[MODE]})
    value = ASKED_BY[key]
    check_login(key, value, offline)
    if not reachable(_server()):
        return _without_server(begin, f"{_server()} cannot be reached")
    try:
        with _unchanged_mode():
            return begin({"settings": patient_settings()})
    except wandb.errors.AuthenticationError as error:
        raise UsageError(key, value, _first_line(error)) from error
    except wandb.errors.Error as error:  # the server refused the run or stopped answering
        wandb.teardown()
        return _without_server(begin, _first_line(error))


def _without_server(begin: Callable[[dict[str, Any]], Run], reason: str) -> Run:
    print(f"wandb: {reason}; the run continues offline, and {SYNC}", file=sys.stderr)
    with _unchanged_mode():
        return begin({"mode": "offline"})


def patient_settings() -> Any:
    """Return the settings, of those that this version of wandb has, with which wandb gives up soon."""
    import wandb

    limits: dict[str, Any] = {f"{sender}_{name}": value for sender in SENDERS for name, value in PATIENCE.items()}
    known = getattr(wandb.Settings, "model_fields", {})
    return wandb.Settings(init_timeout=INIT_SECONDS, **{k: v for k, v in limits.items() if k in known})


def reachable(address: str) -> bool:
    """Return whether a server accepts connections; True without a test behind a proxy."""
    place = urlparse(address)
    if urllib.request.getproxies().get(place.scheme) and not urllib.request.proxy_bypass(place.hostname or ""):
        return True
    try:
        port = place.port or (443 if place.scheme == "https" else 80)
        with socket.create_connection((place.hostname or "", port), timeout=PROBE_SECONDS):
            return True
    except OSError:
        return False


def _server() -> str:
    import wandb

    return str(wandb.setup().settings.base_url)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence wandb, unless the environment variable has a value; an empty one is an error to wandb."""
    if os.environ.get(SILENT):
        yield
        return
    os.environ[SILENT] = "true"
    try:
        yield
    finally:
        os.environ.pop(SILENT, None)


@contextmanager
def _unchanged_mode() -> Iterator[None]:
    """Restore the environment variable of wandb's mode at the end: the next job of a sweep may be online."""
    before = os.environ.get(MODE)
    try:
        yield
    finally:
        os.environ.pop(MODE, None)
        if before is not None:
            os.environ[MODE] = before
