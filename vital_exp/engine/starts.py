"""What pictures start from where it is not noise: an image of the target's references, their mean, or a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor

from vital_exp.engine.setup import cache_dir
from vital_exp.errors import UsageError
from vital_exp.images.output import resized
from vital_exp.references.base import References
from vital_exp.references.decoding import CorruptImageError, fit, load_rgb
from vital_exp.references.mean_image import mean_image
from vital_exp.targets.unit import Target

NAMED = ("noise", "reference", "mean")


def starts_of(
    config: DictConfig, references: References, targets: Sequence[Target], size: tuple[int, int]
) -> Tensor | None:
    """Return what the pictures of targets start from by image.init, (N, 3, H, W) RGB in [0, 1]; None for noise.

    Raises:
        UsageError: neither a name nor an image, or a target without references.
    """
    init = config.image.init
    if init == "noise":
        return None
    if init not in NAMED:
        return _image_file(init, size).expand(len(targets), -1, -1, -1)
    folder = cache_dir(config) if config.references.cache else None
    images = {
        target: mean_image(references, target, folder) if init == "mean" else next(iter(references.images(target)))
        for target in dict.fromkeys(targets)
    }
    return torch.stack([resized(images[target][None], size)[0] for target in targets])


def _image_file(path: str, size: tuple[int, int]) -> Tensor:
    place = Path(path).expanduser()
    if not place.is_file():
        raise UsageError("image.init", path, f"{', '.join(NAMED)}, or an image file that exists", NAMED)
    try:
        return fit(load_rgb(place), size)[None]
    except CorruptImageError as error:
        raise UsageError("image.init", path, f"not a readable image ({error.reason})") from error
