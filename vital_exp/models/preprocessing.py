"""A network's preprocessing: channels, size and normalisation, from the configuration or else the network's own."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from vital_exp.errors import UsageError
from vital_exp.models.channels import GREY, RGB, preview_of
from vital_exp.models.model_config import FINITE, ModelConfig
from vital_exp.models.network import Preprocessing, VisionNetwork
from vital_exp.models.refusals import other_channels
from vital_exp.values import interval, is_whole, numbers, one_of, side, sides, whole_number

# The shorter side before the centre crop is 256 px for an input of 224, as in VITAL; other inputs have the same ratio.
RESIZE_RATIO = 256 / 224
# Networks with a smaller input (CIFAR's 32 px) see whole images.
SMALLEST_CROPPED_INPUT = 128
# Pictures are in [0, 1]: larger means and deviations were meant for pictures in [0, 255].
LARGEST_MEAN, LARGEST_STD = 2.0, 5.0
INTERPOLATIONS = ("bilinear", "bicubic", "nearest")

logger = logging.getLogger(__name__)


def provisional(config: ModelConfig, own: Preprocessing | None) -> Preprocessing:
    """Return a preprocessing for RGB at the input's size, in use until the network's channels are known."""
    size = (own or Preprocessing()).size if config.size is None else sides("model.size", config.size)
    return Preprocessing(size=size)


def input_channels(config: ModelConfig, network: VisionNetwork) -> int:
    """Return the number of channels of the network's pictures: ``model.channels``, or else those of its first layer."""
    if config.channels is not None:
        return whole_number("model.channels", config.channels, 1)
    first = next((part for part in network.module.modules() if isinstance(part, nn.Conv2d)), None)
    if first is not None and first.in_channels == RGB:
        return RGB
    found = other_channels(network)
    return RGB if found is None else found[1]


def configured(config: ModelConfig, own: Preprocessing | None, channels: int, name: str) -> Preprocessing:
    """Return a network's preprocessing.

    Args:
        config: the keys of the group ``model``; None in a key: the network's own value.
        own: the network's own preprocessing; None: ImageNet's.
        channels: number of channels of its pictures, see :func:`input_channels`.
        name: the network's name, for messages.

    Raises:
        UsageError: a mean, deviation, size or range that is not allowed, or that does not fit the channels.
    """
    base = _with_channels(own or Preprocessing(), config, channels, name)
    size = base.size if config.size is None else sides("model.size", config.size)
    if config.resize is not None:
        side("model.resize", config.resize)
    resize = config.resize or (base.resize if own and size == own.size else _default_resize(size))
    interpolation = config.interpolation or base.interpolation
    one_of("model.interpolation", interpolation, INTERPOLATIONS)
    mean = base.mean if config.mean is None else numbers("model.mean", config.mean, each=FINITE)
    std = base.std if config.std is None else numbers("model.std", config.std, each=FINITE)
    for key, value in (("model.mean", mean), ("model.std", std)):
        if len(value) != channels:
            raise UsageError(key, list(value), f"{_counted(channels, 'value')}, one per channel of its pictures")
    if min(std) <= 0:
        raise UsageError("model.std", list(std), "numbers above 0: pictures are divided by them")
    for key, value, most in (("model.mean", mean, LARGEST_MEAN), ("model.std", std, LARGEST_STD)):
        if max(value) > most:
            raise UsageError(
                key, list(value), "numbers for RGB in [0, 1] are needed; if they are for 0 to 255, divide them by 255"
            )
    values = None if config.value_range is None else interval("model.value_range", config.value_range)
    if values is not None and values[0] == values[1]:
        raise UsageError("model.value_range", list(values), "[low, high], the lower number first")
    return Preprocessing(mean, std, size, resize, interpolation, values, _preview(config, channels))


def _with_channels(own: Preprocessing, config: ModelConfig, channels: int, name: str) -> Preprocessing:
    """Return the network's own preprocessing for pictures with this number of channels.

    Raises:
        UsageError: the pictures are neither grey nor RGB, and mean or standard deviation is missing.
    """
    lacking = [key for key in ("mean", "std") if getattr(config, key) is None]
    if channels == own.channels or not lacking:
        return own
    if channels != GREY:
        wanted = f"{_counted(channels, 'value')}, one per channel of its pictures in [0, 1]: {name} takes {channels}"
        raise UsageError(f"model.{lacking[0]}", None, wanted)
    mean, std = (round(statistics.mean(values), 3) for values in (own.mean, own.std))
    given = config.std if config.mean is None else config.mean  # the other one is missing
    if given is None or len(given) == channels:  # else it is refused
        logger.warning("%s takes grey pictures: model.mean=[%g] and model.std=[%g], the average over colours, unless "
                       "they are given", name, mean, std)  # fmt: skip
    return replace(own, mean=(mean,), std=(std,))


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _preview(config: ModelConfig, channels: int) -> tuple[int, int, int] | None:
    """Return the channels of a picture that are shown; None for grey and RGB."""
    if channels in (GREY, RGB):
        if config.preview is not None:
            raise UsageError("model.preview", list(config.preview), f"{config.name or 'the network'} takes "
                             f"{'grey' if channels == GREY else 'RGB'} pictures, which are shown whole")  # fmt: skip
        return None
    if config.preview is None:
        return preview_of(channels)
    allowed = f"three channels from 0 to {channels - 1}, shown as red, green and blue"
    given = list(config.preview) if isinstance(config.preview, Sequence) else [config.preview]
    if len(given) != RGB or any(not is_whole(one, 0, channels - 1) for one in given):
        raise UsageError("model.preview", config.preview, allowed)
    return (given[0], given[1], given[2])


def _default_resize(size: tuple[int, int]) -> int | None:
    return round(min(size) * RESIZE_RATIO) if min(size) >= SMALLEST_CROPPED_INPUT else None
