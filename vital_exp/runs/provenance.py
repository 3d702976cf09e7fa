"""The provenance of a run: versions, hashes, device, git revision."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from typing import Any

from vital_exp.models.identity import identity_of
from vital_exp.models.network import VisionNetwork

PACKAGES = (
    "vital-exp",
    "torch",
    "torchvision",
    "timm",
    "lightning",
    "hydra-core",
    "omegaconf",
    "torchmetrics",
    "wandb",
)


def provenance(config_hash: str, network: VisionNetwork, batch_size: int, views_per_pass: int = 1) -> dict[str, Any]:
    """Return the facts that are needed to make the same pictures again, as values for JSON."""
    return {
        "python": platform.python_version(),
        "versions": {package: version_of(package) for package in PACKAGES},
        "device": str(network.device),
        "machine": platform.machine(),
        "git_revision": _git_revision(),
        "network": network.name,
        "weights_hash": identity_of(network).weights,
        "output": network.output.key or None,
        "head": network.head.kind,
        "recognised_by": network.head.words,
        "classes": None if network.class_names is None else len(network.class_names),
        "config_hash": config_hash,
        "batch_size": batch_size,
        "views_per_pass": views_per_pass,
    }


def version_of(package: str) -> str | None:
    """Return the version of an installed package, None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_revision() -> str | None:
    """Return the git revision of the working directory; None if it is no checkout or git is missing."""
    try:
        command = ["git", "rev-parse", "HEAD"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
