"""The mean of a target's reference images: a start that knows what belongs where, and no detail."""

from __future__ import annotations

import hashlib
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vital_exp.references.base import References
from vital_exp.targets.unit import Target
from vital_exp.whole_files import whole_path

FORMAT = "mean image, 1"  # part of the cache's key: a change of what is stored needs another


def mean_image(references: References, target: Target, cache_dir: Path | None = None) -> Tensor:
    """Return the mean of a target's reference images, (3, H, W) float32 RGB in [0, 1], at their size.

    The sum is in double precision, the mean rounded to half, as it is kept.

    Args:
        references: the images; one is in memory at a time.
        target: whose.
        cache_dir: a folder for the results of earlier runs; None keeps nothing.

    Raises:
        UsageError: the target has no references.
    """
    path = None
    if cache_dir:
        key = hashlib.sha256(f"{FORMAT}\n{references.fingerprint(target)}".encode()).hexdigest()
        path = cache_dir / "means" / f"{key}.safetensors"
        if (kept := _read(path)) is not None:
            return kept.float()
    images = references.images(target)
    total, count = next(images).double(), 1
    for image in images:
        total, count = total + image, count + 1
    mean = (total / count).half()
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_path(path) as temporary:
            save_file({"mean": mean}, temporary)
    return mean.float()


def _read(path: Path) -> Tensor | None:
    """A kept mean, or None when there is none or it is damaged (it is then made again)."""
    try:
        return load_file(path)["mean"]
    except (OSError, SafetensorError, KeyError):
        return None
