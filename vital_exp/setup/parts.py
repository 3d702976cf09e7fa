"""The parts of a run, made from a composed configuration: device, transforms, pictures, objective, optimiser."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from vital_exp.config import build
from vital_exp.configuration import Configuration
from vital_exp.errors import UsageError
from vital_exp.images.output import scaled_size
from vital_exp.images.parameterisation import Parameterisation
from vital_exp.images.prior import check_weights
from vital_exp.images.randomness import RandomStreams
from vital_exp.images.spectrum import EMBEDDED
from vital_exp.images.transforms import Compose
from vital_exp.mining.spectrum import references_magnitude
from vital_exp.models.network import VisionNetwork, model_space
from vital_exp.objectives.steering import Steering
from vital_exp.objectives.terms import Objective, Problem
from vital_exp.references.arrays import Loader
from vital_exp.setup.checks import ACCELERATORS, check_devices, check_rate, check_scale, pair
from vital_exp.setup.growth import Growth, check_growth
from vital_exp.setup.image_root import image_root
from vital_exp.setup.schedule import learning_rate, restarted
from vital_exp.setup.steered import concept_of
from vital_exp.values import one_of

# Keys of the group ``image`` that are no arguments of the parameterisation.
NOT_OF_IMAGES = ("size", "scale", "init", "colours", "grow_from", "grow_until")
REFERENCES = "references"  # a value of image.magnitude: the magnitude is measured on the references' folder


def device_count(config: Configuration) -> int:
    """Return the number of devices of a machine that the run uses; each device has its own process.

    Raises:
        UsageError: more GPUs than the machine has; or a value other than a number, a list of GPUs, or auto.
    """
    devices = config.trainer.devices
    gpus = torch.cuda.device_count() if _kind(config) == "cuda" else 0
    if devices == "auto":
        return max(1, gpus)
    if isinstance(devices, list):
        if devices == [0] or (gpus and devices and all(number in range(gpus) for number in set(devices))):
            return len(set(devices))
        raise UsageError("trainer.devices", devices, f"this machine has {gpus} GPUs; a CPU takes a number of processes")
    check_devices(devices)
    count = int(devices)
    if gpus and count > gpus:
        raise UsageError("trainer.devices", count, f"this machine has {gpus} GPUs")
    return count


def device_of(config: Configuration, network: VisionNetwork | None = None, local_rank: int = 0) -> torch.device:
    """Return the device of a run; for ``auto``, the device of a given network, or else the fastest available one.

    Args:
        config: the composed configuration.
        network: a network that is on a device already.
        local_rank: number of the rank on this machine, which selects one of several GPUs.

    Raises:
        UsageError: an unknown accelerator, or one that this machine does not have.
    """
    if config.trainer.accelerator == "auto" and network is not None:
        return network.device
    kind = _kind(config)
    if kind != "cuda":
        return torch.device(kind)
    devices = config.trainer.devices
    numbers = list(devices) if isinstance(devices, list) else list(range(torch.cuda.device_count()))
    return torch.device(kind, numbers[local_rank % len(numbers)])


def _kind(config: Configuration) -> str:
    """Return the kind of device that the configuration names; UsageError if this machine has none."""
    name = one_of("trainer.accelerator", config.trainer.accelerator, ACCELERATORS)
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return next(kind for kind, there in available.items() if there)
    kind = "cuda" if name == "gpu" else str(name)
    if not available[kind]:
        raise UsageError("trainer.accelerator", name, "this machine has none; cpu works everywhere")
    return kind


def picture_size(config: Configuration, network: VisionNetwork) -> tuple[int, int]:
    """Return the (height, width) of pictures that start from noise.

    Raises:
        UsageError: ``image.size`` or ``image.scale`` is not allowed.
    """
    check_scale(config)
    own = scaled_size(network.preprocessing.size, config.image.scale)
    return pair(config.image.size, "image.size", own)


def check_optimisation(config: Configuration, network: VisionNetwork) -> None:
    """Check rates, transforms, the pictures' size, growth and prior before anything is computed.

    Raises:
        UsageError: the first mistake.
    """
    size = picture_size(config, network)
    if "weights" in config.image:
        check_weights(config.image.weights)
    rate_of(config)
    optimizer_of(config)
    check_growth(config, network, transform_of(config, network), size)


def objective_of(config: Configuration, problem: Problem) -> Objective:
    """Return the objective: the sum of the terms that the configuration lists."""
    for name, node in config.objective.items():
        weight = node.get("weight")
        if isinstance(weight, bool) or not isinstance(weight, (int, float, type(None))):
            raise UsageError(f"objective.{name}.weight", weight, "a number")
    terms = {name: build(f"objective.{name}", node, problem=problem) for name, node in config.objective.items()}
    fold = config.fold_batch_norms
    if config.get("steer") is not None:
        terms["steer"] = steering = Steering(problem, config.steer, concept_of(str(config.steer), problem.network))
        steering.check_read([layer for part in terms.values() for layer in getattr(part, "layers", ())])
        fold = False  # folding would change the output of a layer that is steered
    return Objective(problem.network, terms, fold, config.pack_weights, problem.relevance)


def transform_of(config: Configuration, network: VisionNetwork | None = None) -> Compose:
    """Return the transforms that the configuration lists, in order; crops are resized to a given network's input."""
    parts = {name: build(f"transforms.{name}", node) for name, node in config.transforms.items()}
    return Compose(parts, network.preprocessing.size if network else None)


def pictures_of(
    config: Configuration,
    network: VisionNetwork,
    streams: RandomStreams,
    init: Tensor | None = None,
    colours: Tensor | None = None,
) -> Parameterisation:
    """Return the parameterisation of a batch of pictures.

    Args:
        config: the composed configuration.
        network: the network that sees the pictures.
        streams: the random streams of the pictures.
        init: (N, C, H, W) in [0, 1], images to start from; None: a random start.
        colours: (C, C) from decorrelated to natural channels, measured on the references; None: the default.
    """
    keys = {key: value for key, value in config.image.items() if key not in NOT_OF_IMAGES}
    size = picture_size(config, network)
    measured: dict[str, Any] = {} if colours is None else {"colours": colours}
    if keys.get("magnitude") == REFERENCES:
        del keys["magnitude"]
        measured["magnitude"] = _references_magnitude(config, network, colours)
    start = None
    if init is not None:
        start, size = model_space(init, network), (init.shape[-2], init.shape[-1])
    pictures: Parameterisation = build(
        "image",
        keys,
        **measured,
        preprocessing=network.preprocessing,
        size=size,
        streams=streams,
        init=start,
    )
    return pictures.to(network.device, network.dtype)


def _references_magnitude(config: Configuration, network: VisionNetwork, colours: Tensor | None) -> str | Tensor:
    """Return MACO's magnitude, measured on the references' whole folder; without a folder, that of drawn images."""
    root, own = config.references.root, network.preprocessing
    if not root:
        return EMBEDDED
    return references_magnitude(
        str(image_root(root, config.cache)), min(own.size), own, colours, loader_of(config), config.cache
    )


def loader_of(config: Configuration) -> Loader | None:
    """Return the user's function that reads reference files; None where ``references.loader`` names none.

    Raises:
        UsageError: there is no such function.
    """
    spelling = config.references.loader
    return None if spelling is None else Loader.named(str(spelling), "references.loader")


def optimizer_of(config: Configuration) -> Callable[[list[torch.nn.Parameter]], Optimizer]:
    """Return the function that makes the optimiser from the parameters."""
    node = {key: value for key, value in config.optimizer.items() if key not in ("warmup", "schedule")}
    return lambda parameters: build("optimizer", node, params=parameters)


def rate_of(config: Configuration, growth: Growth | None = None) -> Callable[[int], float]:
    """Return the schedule, from a step to its learning rate; it starts again when the pictures have grown."""
    check_rate(config)
    keys = config.optimizer
    rate = partial(learning_rate, peak=keys.lr, warmup=keys.warmup, schedule=keys.schedule)
    return partial(rate, steps=config.steps) if growth is None else restarted(rate, config.steps, growth.until)
