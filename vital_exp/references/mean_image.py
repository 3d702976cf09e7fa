"""The mean of a target's reference images: a starting picture with the right layout and no detail."""

from __future__ import annotations

import hashlib
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vital_exp.references.base import References
from vital_exp.targets.unit import Target
from vital_exp.whole_files import whole_path

FORMAT = "mean image, 1"  # part of the cache's key; raise the number when the stored content changes


def mean_image(references: References, target: Target, cache_dir: Path | None = None) -> Tensor:
    """Return the mean of a target's reference images, (3, H, W) float32 RGB in [0, 1], at their size.

    The sum is in double precision. The mean is rounded to half precision even where it is not cached, so that a cached
    mean has the same bits.

    Args:
        references: the source of the images; one image is in memory at a time.
        target: the target whose images are averaged.
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
    """Return a cached mean; None where the file is missing or damaged: the mean is then computed again."""
    try:
        return load_file(path)["mean"]
    except (OSError, SafetensorError, KeyError):
        return None
