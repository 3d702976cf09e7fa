"""Checks of a composed configuration that need no torch, network or images; a command runs these checks first.

The functions that make objects from the same keys call these checks too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from vital_exp.config import plain
from vital_exp.configuration import Configuration
from vital_exp.errors import UsageError
from vital_exp.image_folders import check_folder, check_root
from vital_exp.images.masks import MASKS
from vital_exp.mining.counts import check_counts
from vital_exp.run_folders import is_run, is_sweep
from vital_exp.setup.network_checks import check_judges, check_network_files, check_network_numbers
from vital_exp.setup.schedule import SCHEDULES
from vital_exp.setup.wandb_login import check_login
from vital_exp.targets.class_name_files import read_class_names
from vital_exp.targets.class_names import ClassNames
from vital_exp.targets.selection import class_targets
from vital_exp.values import is_number, is_whole, one_of, sides, whole_number

# 16-mixed is missing: it scales the loss of the whole batch, and skips a step for all pictures when one overflows.
PRECISIONS = ("32-true", "bf16-mixed", "64-true")
ACCELERATORS = ("auto", "cpu", "cuda", "gpu", "mps")
LARGEST_SCALE = 100  # largest side of a picture, as a multiple of the network's input
LARGEST = 2**31 - 1  # the largest count or seed
RANGE = re.compile(r"\s*(\d{1,9})\s*(?:\.\.|-|:)\s*(\d{1,9})\s*")  # a range of seeds in the syntax of other tools
COUNT = "a whole number of at least 1"


def check_early(config: Configuration, command: str, files: bool = True) -> None:
    """Check a command's configuration as far as possible without torch.

    Args:
        config: the composed configuration, without Hydra's part.
        command: name of the command, such as ``"visualize"``.
        files: whether to check that files and folders exist; machines of several ranks may have different files.

    Raises:
        UsageError: the first mistake; every rank finds the same one without ``files``.
    """
    if config.get("list") is not None or command not in EARLY:
        return
    try:
        EARLY[command](config)
        if files:
            FILES[command](config)
    except UsageError as error:
        error.everywhere = True
        raise


def _check_visualize(config: Configuration) -> None:
    check_numbers(config)
    content = plain(config)
    check_network_numbers(content["model"])
    check_judges(content["evaluation"]["judges"] or [], "evaluation.judges")
    check_rate(config)
    check_scale(config)
    check_growing(config)
    pair(config.image.get("size"), "image.size", (1, 1))
    check_reference_count(config)
    pair(config.references.size, "references.size", (1, 1))
    _check_target(config)


def _check_files_of_visualize(config: Configuration) -> None:
    _check_logger(config)
    _check_files_of_network(config)
    if config.references.source == "folder" and config.references.root:
        check_root(config.references.root, "references.root")
    if config.target.kind == "class" and config.model.class_names is not None:
        _check_classes(config)


def _check_files_of_mine(config: Configuration) -> None:
    _check_files_of_network(config)
    if config.images and not isinstance(config.spectrum, str):
        check_root(config.images, "images")


def _check_files_of_evaluate(config: Configuration) -> None:
    if config.wandb and config.pictures is not None:
        raise UsageError("wandb", "true", "sends the metrics of a run (run=...), and not those of a folder of pictures")
    _check_wandb(config)
    if config.study or config.answers is not None:
        return
    if config.run is not None and config.pictures is not None:
        raise UsageError("pictures", config.pictures, f"cannot be combined with run={config.run}")
    if config.pictures is not None:
        check_folder(Path(config.pictures).expanduser(), "pictures", "pictures")
        return
    if config.run is None:
        raise UsageError("run", None, "a run folder of vital-visualize, or pictures=folder, is needed")
    run = Path(config.run).expanduser()
    if not is_run(run) and not is_sweep(run):
        problem = "no results.jsonl in this folder or below; a run folder of vital-visualize has one"
        raise UsageError("run", config.run, problem if run.is_dir() else "no such folder")


def _check_wandb(config: Configuration) -> None:
    if config.get("wandb") and not config.get("dry_run"):
        check_login("wandb", "true", bool(config.offline))


def _check_logger(config: Configuration) -> None:
    kind = str(config.logger.get("_target_") or "")
    if kind.endswith("WandbLogger") and not config.dry_run and config.target.kind != "circuit":
        check_login("logger", "wandb", bool(config.logger.get("offline")))


EARLY: Mapping[str, Callable[[Configuration], None]] = {
    "visualize": _check_visualize,
    "mine": check_counts,
    "evaluate": lambda config: None,
    "report": lambda config: None,
    "atlas": lambda config: None,
}
FILES: Mapping[str, Callable[[Configuration], None]] = {
    "visualize": _check_files_of_visualize,
    "mine": _check_files_of_mine,
    "evaluate": _check_files_of_evaluate,
    "report": _check_wandb,
    "atlas": _check_wandb,
}


def check_numbers(config: Configuration) -> None:
    """Check the keys whose values are counts or choices.

    Raises:
        UsageError: the first value that is not allowed.
    """
    for key, least in (("steps", 1), ("seed", 0), ("checkpoint_every", 1), ("pictures_every", 1)):
        value = config[key]
        _check_whole(key, value, least)
        if value > LARGEST:
            raise UsageError(key, value, f"at most {LARGEST}")
    size = config.batch_size
    if size != "auto" and not is_whole(size, 1):
        raise UsageError("batch_size", size, f"{COUNT}, or auto")
    one_of("mask", config.mask, MASKS)
    percentile = config.mask_percentile
    if not is_number(percentile, 0, 100) or percentile == 0:
        raise UsageError("mask_percentile", percentile, "a number above 0, at most 100")
    check_relevance(config)
    _check_views(config)
    _check_trainer(config)
    rank_patience(config)


def _check_whole(key: str, value: object, least: int) -> None:
    if isinstance(value, str) and (found := RANGE.fullmatch(value)):
        first, last = int(found[1]), int(found[2])
        raise UsageError(key, value, f"{_whole(least)}; -m '{key}=range({first},{last + 1})' makes one job for each")
    if not is_whole(value, least):
        raise UsageError(key, value, _whole(least))


def _whole(least: int) -> str:
    return f"a whole number of at least {least}"


def _check_views(config: Configuration) -> None:
    views, together = config.views, config.views_per_pass
    _check_whole("views", views, 1)
    if together != "auto" and (not is_whole(together, 1) or views % together):
        raise UsageError("views_per_pass", together, f"auto, or a whole number that divides views={views}")


def _check_trainer(config: Configuration) -> None:
    keys = config.trainer
    one_of("trainer.precision", keys.precision, PRECISIONS)
    one_of("trainer.accelerator", keys.accelerator, ACCELERATORS)
    if not is_whole(keys.num_nodes, 1):
        raise UsageError("trainer.num_nodes", keys.num_nodes, COUNT)
    check_devices(keys.devices)


def check_relevance(config: Configuration) -> None:
    """Check ``relevance.every``; raises UsageError."""
    _check_whole("relevance.every", config.relevance.every, 1)


def check_devices(devices: object) -> None:
    """Check the form of ``trainer.devices``, whatever devices the machine has; raises UsageError."""
    words = isinstance(devices, str) and (devices == "auto" or (devices.isdecimal() and int(devices) > 0))
    if not (words or is_whole(devices, 1) or isinstance(devices, list)):
        raise UsageError("trainer.devices", devices, "a number of devices, a list of GPUs, or auto")


def rank_patience(config: Configuration) -> float:
    """Return ``rank_timeout``, the longest time in seconds between the arrivals of one rank and the next.

    Raises:
        UsageError: not a number above 0.
    """
    seconds = config.rank_timeout
    if not is_number(seconds, 0, LARGEST) or seconds == 0:
        raise UsageError("rank_timeout", seconds, "seconds, a number above 0")
    return float(seconds)


def pair(size: object, key: str, default: tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) for a side, a [height, width], or None (the default); raises UsageError for others."""
    return default if size is None else sides(key, size)


def check_scale(config: Configuration) -> None:
    """Check ``image.scale``; raises UsageError."""
    scale = config.image.scale
    if not is_number(scale, 0, LARGEST_SCALE) or scale == 0:
        raise UsageError("image.scale", scale, f"a number above 0, at most {LARGEST_SCALE}")


def check_growing(config: Configuration) -> None:
    """Check ``image.grow_from`` and ``image.grow_until``; raises UsageError."""
    share, until = config.image.get("grow_from"), config.image.get("grow_until")
    if share is None:
        return
    if not is_number(share) or not 0 < share < 1:
        raise UsageError("image.grow_from", share, "above 0 and below 1, a share of the picture's side; null for none")
    if not is_number(until) or not 0 < until <= 1:
        raise UsageError("image.grow_until", until, "above 0 and at most 1, a share of the steps")


def check_rate(config: Configuration) -> None:
    """Check the learning rate, its warm-up and its schedule; raises UsageError."""
    keys = config.optimizer
    if not isinstance(keys.lr, (int, float)) or keys.lr <= 0:
        raise UsageError("optimizer.lr", keys.lr, "a number above 0")
    if not is_whole(keys.warmup, 0):
        raise UsageError("optimizer.warmup", keys.warmup, "a whole number of steps, at least 0")
    one_of("optimizer.schedule", keys.schedule, SCHEDULES)


def check_reference_count(config: Configuration) -> None:
    """Check how many references a target has; raises UsageError."""
    if not is_whole(config.references.count, 1):
        raise UsageError("references.count", config.references.count, COUNT)


def check_layer(layer: object) -> None:
    """Check that hidden units have a layer; raises UsageError where none is named."""
    if not layer:
        raise UsageError("target.layer", layer, "the name of a layer is needed; list=layers prints them")


def position_of(given: object) -> tuple[int, int]:
    """Return the position (row, column) of a neuron; raises UsageError for other values."""
    numbers = list(given) if isinstance(given, list) else []
    if len(numbers) != 2 or not all(is_whole(number, 0) for number in numbers):
        raise UsageError("target.position", given, "[row, column] in the layer's map, from 0")
    return numbers[0], numbers[1]


def variations_of(config: Configuration) -> int:
    """Return the number of variations of each unit; raises UsageError for other values."""
    variations: int = config.target.variations
    if not is_whole(variations, 1):
        raise UsageError("target.variations", variations, COUNT)
    return variations


def check_tree(config: Configuration) -> None:
    """Check the unit, depth and width of a circuit; raises UsageError."""
    for key, least in (("levels", 2), ("width", 1), ("ablation_images", 0)):
        whole_number(f"target.{key}", config["target"][key], least)
    if not config.target.unit:
        needed = 'a class or a channel is needed: "class:207" or "layer3.5:7"'
        raise UsageError("target.unit", config.target.unit, needed)


def _check_target(config: Configuration) -> None:
    """Check the targets; classes are checked only if the configuration lists their names."""
    kind = config.target.kind
    if kind == "circuit":
        check_tree(config)
        return
    variations_of(config)
    if kind != "class":
        if kind != "concept" or config.target.concepts is None:  # a file of concepts names its layer
            check_layer(config.target.layer)
        if kind == "neuron":
            position_of(config.target.position)
    elif isinstance(config.model.class_names, list):
        _check_classes(config)


def _check_classes(config: Configuration) -> None:
    """Check that the target's classes are among the names of ``model.class_names``."""
    content = plain(config)
    names = ClassNames(read_class_names(content["model"]["class_names"]))
    class_targets(content["target"]["index"], names, variations_of(config))


def _check_files_of_network(config: Configuration) -> None:
    """Check that the files of the network exist."""
    check_network_files(plain(config)["model"])
    if config.model.get("class_names") is not None:
        read_class_names(plain(config)["model"]["class_names"])
