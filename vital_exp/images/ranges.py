"""Checks of pictures that the user gives as tensors: a wrong shape, type or range is reported, never repaired."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Tensor

from vital_exp.errors import UsageError
from vital_exp.models.channels import RGB

logger = logging.getLogger(__name__)

WANTED = "RGB in [0, 1]"
NO_NUMBERS = "NaN or infinite values"
# Resizing by bicubic or Lanczos kernels overshoots by some hundredths, at sharp edges by up to three tenths.
OVERSHOOT, EDGES = 0.1, 0.3
# Many values of normalised pictures lie outside [0, 1]: with mean = std = 0.5 they lie in [-1, 1], with ImageNet's mean
# and std in [-2.1, 2.6]. Normal noise about grey, 0.45 +- 0.23 in RGB, has few such values, within these bounds.
LEAST, MOST, SHARE = -0.9, 1.9, 0.02
# A value that normalised pictures do not reach, and even dark pictures of values 0 to 255 do.
BYTES = 8.0


def checked_pictures(pictures: object, key: str, channels: int = RGB) -> Tensor:
    """Return pictures (N, C, H, W) unchanged; inference tensors are copied.

    Values slightly outside [0, 1], which resizing causes, are accepted; values further outside are logged.

    Args:
        pictures: what the user gave.
        key: the argument that holds the pictures.
        channels: C, as many as the network takes.

    Raises:
        UsageError: not a floating-point tensor of this shape; NaN or infinite values; another range than [0, 1].

    Examples:
        >>> import torch
        >>> from vital_exp.images.ranges import checked_pictures
        >>> checked_pictures(torch.rand(2, 3, 8, 8), "references").shape
        torch.Size([2, 3, 8, 8])
        >>> checked_pictures(torch.full((1, 3, 8, 8), 255.0), "init")
        Traceback (most recent call last):
            ...
        vital_exp.errors.UsageError: init=values from 255 to 255: RGB in [0, 1] is wanted; for 0 to 255: tensor / 255
    """
    tensor = checked_shape(pictures, key, channels=channels)
    tell_ranges(key, {"": tensor})
    return tensor


def tell_ranges(key: str, pictures: Mapping[str, Tensor]) -> None:
    """Check the ranges of several tensors, and log the first that holds NaN, and the first outside [0, 1].

    NaN or infinite values of one tensor among several are no error here: only the target that uses the tensor fails.

    Args:
        key: the argument that holds the tensors.
        pictures: by the text that messages name a tensor with.

    Raises:
        UsageError: NaN or infinite values in the only tensor; a range that :func:`range_outside` refuses.
    """
    broken = [of for of, tensor in pictures.items() if not bool(tensor.isfinite().all())]
    if broken and len(pictures) == 1:
        raise UsageError(key, f"{broken[0]}{NO_NUMBERS}", f"every value must be a number, {WANTED}")
    sound = {of: tensor for of, tensor in pictures.items() if of not in broken}
    seen = [found for of, tensor in sound.items() if (found := range_outside(tensor, key, of))]
    for found in (f"{broken[0]}{NO_NUMBERS}" if broken else None, seen[0] if seen else None):
        if found:
            logger.warning("%s=%s: used unchanged; %s is wanted", key, found, WANTED)


def checked_shape(pictures: object, key: str, of: str = "", channels: int = RGB) -> Tensor:
    """Return ``pictures`` if they are a floating-point tensor (N, C, H, W) without an empty axis.

    Raises:
        UsageError: anything else; the message says how to convert the usual other forms.
    """
    values = WANTED if channels == RGB else "in [0, 1]"
    wanted = f"must have the shape (B, {channels}, H, W), {values}"
    if not isinstance(pictures, Tensor):
        raise UsageError(key, f"{of}{type(pictures).__name__}", f"must be a tensor (B, {channels}, H, W), {values}")
    shape = tuple(pictures.shape)
    if len(shape) == 3 and shape[0] == channels:
        raise UsageError(key, f"{of}{shape}", f"{wanted}; a single picture is tensor[None]")
    if len(shape) == 4 and shape[1] != channels and shape[3] == channels:
        raise UsageError(key, f"{of}{shape}", f"{wanted}; channels come first: tensor.permute(0, 3, 1, 2)")
    if len(shape) == 4 and shape[1] in (1, 4) and channels == RGB:
        advice = "grey is tensor.expand(-1, 3, -1, -1)" if shape[1] == 1 else "without transparency it is tensor[:, :3]"
        raise UsageError(key, f"{of}{shape}", f"{wanted}; {advice}")
    if len(shape) != 4 or shape[1] != channels or 0 in shape:
        raise UsageError(key, f"{of}{shape}", f"{wanted}, with B, H, W >= 1")
    if not pictures.is_floating_point():
        advice = "tensor / 255" if pictures.dtype == torch.uint8 else "tensor.float()"
        raise UsageError(key, f"{of}{pictures.dtype}", f"must be a floating-point tensor, {values}: {advice}")
    return pictures.clone() if pictures.is_inference() else pictures


def range_outside(pictures: Tensor, key: str, of: str = "") -> str | None:
    """Return a text with the range of pictures that leave [0, 1] further than resizing does; None for others.

    Raises:
        UsageError: the values seem to be 0 to 255, or normalised; the message has their range.
    """
    values = pictures.detach()
    least, most = (float(value) for value in values.aminmax())
    if least >= -OVERSHOOT and most <= 1 + OVERSHOOT:
        return None
    seen = f"{of}values from {least:.4g} to {most:.4g}"
    if most > BYTES:
        raise UsageError(key, seen, f"{WANTED} is wanted; for 0 to 255: tensor / 255")
    outside = float(((values < -EDGES) | (values > 1 + EDGES)).float().mean())
    if least < LEAST or most > MOST or outside > SHARE:
        advice = "give pictures that are not normalised, or tensor * std + mean: the network normalises them itself"
        raise UsageError(key, seen, f"{WANTED} is wanted; {advice}")
    return seen
