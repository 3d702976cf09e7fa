"""Images that pictures start from: a reference of the target, the mean of its references, or a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from vital_exp.errors import UsageError
from vital_exp.images.output import resized
from vital_exp.models.network import Preprocessing
from vital_exp.references.base import References
from vital_exp.references.decoding import CorruptImageError
from vital_exp.references.files import PictureFiles
from vital_exp.references.mean_image import mean_image
from vital_exp.targets.unit import Target

NAMED = ("noise", "reference", "mean")


def starts_of(
    init: str,
    references: References,
    targets: Sequence[Target],
    size: tuple[int, int],
    own: Preprocessing,
    cache: Path | None = None,
) -> Tensor | None:
    """Return the images that the pictures of targets start from, (N, C, H, W) in [0, 1]; None for noise.

    Args:
        init: one of ``NAMED``, or an image file.
        references: of the targets.
        targets: one per picture.
        size: (height, width) of the pictures.
        own: the network's preprocessing.
        cache: the folder in which mean images are cached; None: nowhere.

    Raises:
        UsageError: ``init`` is neither a name nor a readable image file, or a target has no references.
    """
    if init == "noise":
        return None
    if init not in NAMED:
        return _image_file(init, size, own).expand(len(targets), -1, -1, -1)
    images = {
        target: mean_image(references, target, cache) if init == "mean" else next(iter(references.images(target)))
        for target in dict.fromkeys(targets)
    }
    return torch.stack([resized(images[target][None], size)[0] for target in targets])


def _image_file(path: str, size: tuple[int, int], own: Preprocessing) -> Tensor:
    place = Path(path).expanduser()
    if not place.is_file():
        raise UsageError("image.init", path, f"{', '.join(NAMED)}, or an image file that exists", NAMED)
    try:
        return PictureFiles(own.channels, size, value_range=own.value_range, made=True).load(place)[None]
    except CorruptImageError as error:
        raise UsageError("image.init", path, f"not a readable image ({error.reason})") from error
