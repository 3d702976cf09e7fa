"""The preprocessing that a folder of Hugging Face's transformers describes in its JSON files, for RGB in [0, 1]."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vital_exp.errors import UsageError
from vital_exp.models import hub
from vital_exp.models.network import IMAGENET_MEAN, IMAGENET_SIZE, IMAGENET_STD, Preprocessing
from vital_exp.text_files import read_json

FILES = ("preprocessor_config.json", "processor_config.json")
WHITE = 255  # the largest value of a pixel before it is rescaled
# By Pillow's number of a filter: the interpolation of this library that is nearest to it.
INTERPOLATIONS = {0: "nearest", 1: "bicubic", 2: "bilinear", 3: "bicubic", 4: "bilinear", 5: "bilinear"}
# For input sides below this one ConvNeXt's processor crops images; from it on, it squeezes whole images.
SMALLEST_SQUEEZED = 384
NEEDED = ("size", "image_mean", "image_std")

logger = logging.getLogger(__name__)


def read_preprocessing(folder: Path, config: object, defaults: Callable[[], Mapping[str, object]]) -> Preprocessing:
    """Return the preprocessing of a network, by its folder's image processor.

    Mean and std are converted to RGB in [0, 1], whatever the processor scales pixels by.

    Args:
        folder: with ``preprocessor_config.json``; without, ImageNet's mean and std are taken, and the log says so.
        config: the network's configuration, which may have an ``image_size``.
        defaults: returns all settings of the processor by default; called where the file leaves some out.

    Raises:
        UsageError: a processor that turns RGB into BGR, or a file that is not a JSON object.
    """
    own = _settings(folder)
    if own is None:
        side = _sides(getattr(config, "image_size", None)) or (IMAGENET_SIZE, IMAGENET_SIZE)
        logger.warning("%s holds no %s: ImageNet's mean and std are taken, and %d x %d px; model.mean=, model.std= and "
                       "model.size= say otherwise", folder, FILES[0], *side)  # fmt: skip
        return Preprocessing(IMAGENET_MEAN, IMAGENET_STD, side, min(side))
    if any(own.get(key) is None for key in NEEDED if key == "size" or own.get("do_normalize", True)):
        own = {**defaults(), **{key: value for key, value in own.items() if value is not None}}
    if own.get("do_flip_channel_order"):
        problem = "its image processor hands over BGR: model=python model.factory=file.py:function can turn channels"
        raise UsageError(hub.KEY, folder, problem)
    mean, std = _normalisation(own)
    size, resize = _size(own, config)
    return Preprocessing(mean, std, size, resize, INTERPOLATIONS.get(int(own.get("resample") or 2), "bilinear"))


def _settings(folder: Path) -> dict[str, Any] | None:
    """Return the image processor's settings in the first of :data:`FILES` that has them; None where none has."""
    for name in FILES:
        if (folder / name).is_file():
            content = read_json(folder / name, hub.KEY)
            if not isinstance(content, dict):
                raise UsageError(hub.KEY, folder / name, "is not a JSON object, so it describes no image processor")
            found = content.get("image_processor", content) if name != FILES[0] else content
            if isinstance(found, dict):
                return found
    return None


def _normalisation(own: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std for RGB in [0, 1]: the processor computes (255 RGB factor - offset - mean) / std."""
    factor = WHITE * float(own.get("rescale_factor") or 1 / WHITE) if own.get("do_rescale", True) else float(WHITE)
    offset = 1.0 if own.get("rescale_offset") and own.get("do_rescale", True) else 0.0
    channels = len(own.get("image_mean") or IMAGENET_MEAN)
    mean, std = [0.0] * channels, [1.0] * channels
    if own.get("do_normalize", True):
        mean, std = list(map(float, own["image_mean"])), list(map(float, own["image_std"]))
        if own.get("include_top"):  # EfficientNet's processor divides by std twice
            std = [value * value for value in std]
    return tuple((value + offset) / factor for value in mean), tuple(value / factor for value in std)


def _size(own: Mapping[str, Any], config: object) -> tuple[tuple[int, int], int | None]:
    """Return (height, width) of the input, and the shorter side before the centre crop."""
    size = own.get("size")
    shorter = size.get("shortest_edge") if isinstance(size, dict) else size if isinstance(size, int) else None
    whole = _sides(size) or _sides(getattr(config, "image_size", None)) or (IMAGENET_SIZE, IMAGENET_SIZE)
    if own.get("do_center_crop") and (crop := _sides(own.get("crop_size"))):
        return crop, (shorter or min(whole)) if own.get("do_resize", True) else None
    if shorter is None:
        return whole, min(whole)
    if own.get("crop_pct") and shorter < SMALLEST_SQUEEZED:
        return (shorter, shorter), int(shorter / own["crop_pct"])
    return (shorter, shorter), shorter


def _sides(given: object) -> tuple[int, int] | None:
    """Return (height, width) of a size in a file: one number, two numbers, or a mapping; None for anything else."""
    if isinstance(given, dict) and {"height", "width"} <= given.keys():
        return int(given["height"]), int(given["width"])
    if isinstance(given, (list, tuple)) and len(given) == 2:
        return int(given[0]), int(given[1])
    return (given, given) if isinstance(given, int) else None
