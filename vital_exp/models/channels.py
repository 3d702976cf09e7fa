"""Pictures that are not RGB: the conversion of grey ones, and how pictures with other channels are shown."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vital_exp.errors import UsageError

GREY, RGB = 1, 3
LUMINANCE = (0.299, 0.587, 0.114)  # weights of red, green, blue: ITU-R BT.601, as in Pillow


def preview_of(channels: int) -> tuple[int, int, int]:
    """Return the channels that are shown as red, green and blue by default."""
    return (0, min(1, channels - 1), min(2, channels - 1))


def as_rgb(pictures: Tensor, preview: Sequence[int] | None = None) -> Tensor:
    """Return pictures (..., C, H, W) as they are shown, (..., 3, H, W): grey is repeated, RGB stays as it is.

    Args:
        pictures: of any dtype.
        preview: the three channels that are shown where pictures are neither grey nor RGB; by default the first three.

    Examples:
        >>> import torch
        >>> from vital_exp.models.channels import as_rgb
        >>> as_rgb(torch.tensor([0.2, 0.4, 0.6, 0.8, 1.0]).view(5, 1, 1), preview=[4, 2, 0]).flatten()
        tensor([1.0000, 0.6000, 0.2000])
    """
    channels = pictures.shape[-3]
    if channels == RGB:
        return pictures
    chosen = preview_of(channels) if preview is None or channels == GREY else preview
    return pictures[..., list(chosen), :, :]


def in_channels(pictures: Tensor, channels: int) -> Tensor:
    """Return pictures (..., C, H, W) in [0, 1], converted to the number of channels that a network takes.

    Grey becomes RGB with three equal channels. RGB becomes grey, its luminance.

    Raises:
        UsageError: any other conversion.

    Examples:
        >>> import torch
        >>> from vital_exp.models.channels import in_channels
        >>> in_channels(torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1), 1)  # the luminance of red
        tensor([[[0.2990]]])
    """
    own = pictures.shape[-3]
    if own == channels:
        return pictures
    if own == GREY and channels == RGB:
        return as_rgb(pictures)
    if own == RGB and channels == GREY:
        weights = torch.tensor(LUMINANCE, dtype=pictures.dtype, device=pictures.device)
        return (pictures * weights.view(-1, 1, 1)).sum(dim=-3, keepdim=True)
    raise UsageError(
        "pictures", "x".join(map(str, pictures.shape)), f"the network takes pictures of {channels} channels"
    )
