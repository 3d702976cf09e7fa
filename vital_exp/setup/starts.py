"""What pictures start from where it is not noise: an image of the target's references, their mean, or a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from vital_exp.errors import UsageError
from vital_exp.images.output import resized
from vital_exp.references.base import References
from vital_exp.references.decoding import CorruptImageError, fit, load_rgb
from vital_exp.references.mean_image import mean_image
from vital_exp.targets.unit import Target

NAMED = ("noise", "reference", "mean")


def starts_of(
    init: str, references: References, targets: Sequence[Target], size: tuple[int, int], cache: Path | None = None
) -> Tensor | None:
    """Return what the pictures of targets start from, (N, 3, H, W) RGB in [0, 1]; None for noise.

    Args:
        init: one of ``NAMED``, or an image file.
        references: of the targets.
        targets: one per picture.
        size: (height, width) of the pictures.
        cache: where means are kept; None: nowhere.

    Raises:
        UsageError: neither a name nor an image, or a target without references.
    """
    if init == "noise":
        return None
    if init not in NAMED:
        return _image_file(init, size).expand(len(targets), -1, -1, -1)
    images = {
        target: mean_image(references, target, cache) if init == "mean" else next(iter(references.images(target)))
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
