"""Check that a network is still the network of a run folder."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vital_exp.errors import UsageError
from vital_exp.models.identity import LAYER, difference, identity_of
from vital_exp.models.network import VisionNetwork
from vital_exp.runs.folder import KEY, NETWORK, RunFolder

RECIPE = "recipe"
DAMAGE = (AttributeError, KeyError, TypeError, ValueError)  # errors that a malformed record raises

logger = logging.getLogger(__name__)


def check_network(folder: RunFolder, network: VisionNetwork) -> None:
    """Record the network of a new run; check that a resumed run has the recorded network.

    Raises:
        UsageError: the network has changed (the message says how), or the record cannot be read.
    """
    identity = identity_of(network)
    recorded = folder.load_json(NETWORK)
    if recorded is None:
        folder.save_json(NETWORK, {**identity.describe(), RECIPE: repr(network.recipe)})
        return
    try:
        text = network_change(recorded, network)
    except DAMAGE as error:
        problem = f"{NETWORK} there cannot be read ({type(error).__name__}: {error})"
        raise UsageError(KEY, folder.path, problem) from error
    if text:
        raise UsageError(KEY, folder.path, f"{text}; choose another folder")


def network_change(recorded: Mapping[str, Any], network: VisionNetwork) -> str | None:
    """Return how a network differs from a run's record; None if it does not differ."""
    what = difference(recorded, identity_of(network))
    if what is None and recorded[RECIPE] != repr(network.recipe):
        what = RECIPE
    if what is None:
        return None
    if what.startswith(LAYER):
        return f"the network computes something else at {what} than when the run began: other code or hooks"
    return f"the network's {what} changed since the run began"


def warn_of_change(path: Path, network: VisionNetwork) -> None:
    """Log a one-line warning if a network differs from the network of a finished run."""
    try:
        text = network_change(json.loads((path / NETWORK).read_text(encoding="utf-8")), network)
    except (OSError, *DAMAGE):
        return  # no readable record to compare with
    if text:
        logger.warning("%s: %s; what is said of its pictures is said by the network as it is now", path, text)
