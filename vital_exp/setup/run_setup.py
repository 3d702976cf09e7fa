"""The setup of a run: the composed configuration as plain values and functions. Lower layers read no configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn
from torch.optim import Optimizer

from vital_exp.config import build, config_hash, plain
from vital_exp.configuration import Configuration
from vital_exp.errors import UsageError
from vital_exp.images.parameterisation import Parameterisation
from vital_exp.images.randomness import RandomStreams
from vital_exp.images.transforms import Compose
from vital_exp.models.layers import Alignment
from vital_exp.models.network import VisionNetwork
from vital_exp.models.sparsify import Sparsification, sparsified
from vital_exp.objectives.terms import Objective, Problem
from vital_exp.references.base import References
from vital_exp.references.statistics import ReferenceStatistics
from vital_exp.relevance.weights import Relevance
from vital_exp.setup import parts
from vital_exp.setup.batching import views_per_pass
from vital_exp.setup.colours import colours_of
from vital_exp.setup.growth import Growth, growth_of
from vital_exp.setup.problem import alignment_of, readout_of
from vital_exp.setup.starts import starts_of
from vital_exp.targets.readout import Readout
from vital_exp.targets.unit import Target

AUTO = "auto"


@dataclass(frozen=True)
class RunSetup:
    """A checked configuration, for one network and its targets' references.

    Attributes:
        network: the frozen network, on its device.
        references: the references of the targets.
        method: name of the method.
        seed, steps: seed of the run; number of steps of every target.
        views: number of random views of each picture in a step.
        views_per_pass: number of views of each picture in one forward pass; None: as many as are fast and fit into
            memory.
        batch_size: number of pictures that are optimised together; None: as many as fit into memory.
        sparsify: how the network is pruned for each target; None: not at all.
        size: (height, width) of pictures that start from noise.
        init: the start of the pictures, ``image.init``.
        mask, mask_percentile: kind and percentile of the transparency maps.
        checkpoint_every, pictures_every, log_every: steps between checkpoints, logged pictures and logged losses.
        log_targets: whether loggers get the losses of each target too, and not only the mean over a batch.
        movie: the format of films; None: no films.
        progress: whether progress is shown.
        bf16: whether steps compute in bfloat16.
        relevance, relevance_every: name of the relevance method; steps between two relevance passes over a picture.
        cache_dir: the folder of the cache.
        cache: the folder in which statistics of references are cached; None: nowhere.
        transform: makes a random view of a picture.
        growth: the size of the pictures in the first steps; None: their own size in all steps.
        rate: maps a step to its learning rate.
        recorded: the configuration in plain values, as it is written into the run folder.
        config_hash: hash of the keys that determine the pictures.
    """

    network: VisionNetwork
    references: References
    method: str
    seed: int
    steps: int
    views: int
    views_per_pass: int | None
    batch_size: int | None
    sparsify: Sparsification | None
    size: tuple[int, int]
    init: str
    mask: str
    mask_percentile: float
    checkpoint_every: int
    pictures_every: int
    log_every: int
    log_targets: bool
    movie: str | None
    progress: bool
    bf16: bool
    relevance: str
    relevance_every: int
    cache_dir: Path
    cache: Path | None
    transform: Compose
    growth: Growth | None
    rate: Callable[[int], float]
    recorded: Mapping[str, Any]
    config_hash: str
    _pictures: Callable[[RandomStreams, Tensor | None, Tensor | None], Parameterisation]
    _colours: Callable[[], Tensor | None]
    _objective: Callable[[Problem], Objective]
    _optimizer: Callable[[list[nn.Parameter]], Optimizer]
    _trainer: Callable[..., Trainer]
    _logger: Callable[..., Logger] | None
    _alignment: Callable[[str | None], Alignment]
    _readout: Callable[[Sequence[Target]], Readout]
    _alignments: dict[str | None, Alignment] = field(default_factory=dict)
    _sparse: dict[Target, VisionNetwork] = field(default_factory=dict)

    @classmethod
    def of(cls, config: Configuration, network: VisionNetwork, references: References) -> RunSetup:
        """Return the setup of a composed configuration that :class:`Request` has checked."""
        growth = growth_of(config)
        views_per_pass = None if config.views_per_pass == AUTO else int(config.views_per_pass)
        return cls(
            network=network,
            references=references,
            method=config.method.name,
            **{key: config[key] for key in ("seed", "steps", "views", "checkpoint_every", "pictures_every")},
            **{key: config[key] for key in ("mask", "mask_percentile", "movie", "progress")},
            views_per_pass=1 if config.views == 1 else views_per_pass,
            batch_size=_batch_size(config),
            sparsify=_sparsification(config),
            size=parts.picture_size(config, network),
            init=config.image.init,
            log_every=config.trainer.log_every_n_steps,
            log_targets=config.log_targets,
            bf16=config.trainer.precision == "bf16-mixed",
            relevance=config.relevance.method,
            relevance_every=config.relevance.every,
            cache_dir=config.cache,
            cache=config.cache if config.references.cache else None,
            transform=parts.transform_of(config, network),
            growth=growth,
            rate=parts.rate_of(config, growth),
            recorded=plain(config),
            config_hash=config_hash(config),
            _pictures=partial(parts.pictures_of, config, network),
            _colours=partial(colours_of, config, network, references),
            _objective=partial(parts.objective_of, config),
            _optimizer=parts.optimizer_of(config),
            _trainer=partial(build, "trainer", config["trainer"]),
            _logger=partial(build, "logger", config.logger) if config.logger.get("_target_") else None,
            _alignment=partial(alignment_of, config, network),
            _readout=partial(readout_of, config, network),
        )

    def without_cache(self, references: References) -> RunSetup:
        """Return the setup with other references, whose statistics are not cached."""
        return replace(self, references=references, cache=None)

    def seen_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the (height, width) at which the network sees pictures of a size, after the transforms."""
        blank = torch.zeros(1, self.network.preprocessing.channels, *size)
        seen = self.transform(blank, RandomStreams(0, ["size"]), 0)
        return seen.shape[-2], seen.shape[-1]

    def together(self, size: tuple[int, int], batch_size: int) -> int:
        """Return the number of views per pass for each picture of a size, a divisor of ``views``."""
        return self.views_per_pass or views_per_pass(self.views, self.network, self.seen_size(size), batch_size)

    def starts(self, targets: Sequence[Target], size: tuple[int, int]) -> Tensor | None:
        """Return the images that pictures of a size start from, (N, C, H, W) in [0, 1]; None for noise."""
        return starts_of(self.init, self.references, targets, size, self.network.preprocessing, self.cache)

    def pictures(self, targets: Sequence[Target], start: Tensor | None) -> Parameterisation:
        """Return the parameterisation of the pictures of targets; ``start`` (N, C, H, W) replaces noise."""
        streams = RandomStreams(self.seed, [target.name for target in targets])
        return self._pictures(streams, start, self.colours)

    @cached_property
    def colours(self) -> Tensor | None:
        """The (C, C) matrix from decorrelated to natural channels; None: ImageNet's, or the identity."""
        return self._colours()

    def alignment(self, layer: str | None) -> Alignment:
        """Return the aligned layers and weights for units of a layer, or for classes (None)."""
        if layer not in self._alignments:
            self._alignments[layer] = self._alignment(layer)
        return self._alignments[layer]

    def readout(self, targets: Sequence[Target]) -> Readout:
        """Return the read-outs of targets, which are units of one layer, or classes."""
        return self._readout(targets)

    def problem(self, targets: Sequence[Target], share: float = 1.0) -> Problem:
        """Return the problem of a batch of pictures, whose targets are units of one layer, or classes.

        The sides of the references are scaled by ``share`` before the network sees the references.
        """
        layer, read = targets[0].layer, self.readout(targets)
        network = self._network_for(targets)
        relevance = None if layer is None else Relevance(network, read, self.relevance)
        statistics = ReferenceStatistics(network, self.references, self.cache, relevance, share)
        return Problem(network, tuple(targets), read, self.alignment(layer), statistics, relevance)

    def _network_for(self, targets: Sequence[Target]) -> VisionNetwork:
        """Return the network for pictures of targets: with ``sparsify``, a copy that is pruned for their references."""
        if self.sparsify is None:
            return self.network
        alone = {replace(target, variation=1) for target in targets}
        if len(alone) > 1:
            raise UsageError("model.sparsify", "spade", "one target at a time: each target has its own pruned network")
        target = alone.pop()
        if target not in self._sparse:
            self._sparse.clear()  # only one copy stays in memory
            images = list(self.references.images(target))
            self._sparse[target] = sparsified(self.network, images, self.sparsify, target.layer)
        return self._sparse[target]

    def objective(self, problem: Problem) -> Objective:
        """Return the sum of the terms that the configuration lists."""
        return self._objective(problem)

    def optimizer(self, parameters: list[nn.Parameter]) -> Optimizer:
        """Return the optimiser of pictures' parameters."""
        return self._optimizer(parameters)

    def trainer(self, callbacks: list[Callback]) -> Trainer:
        """Return Lightning's trainer of one batch, on the network's device."""
        device = self.network.device
        return self._trainer(
            max_steps=self.steps,
            max_epochs=-1,
            accelerator="gpu" if device.type == "cuda" else device.type,
            devices=[device.index or 0] if device.type == "cuda" else 1,
            num_nodes=1,
            plugins=[LightningEnvironment()],  # each rank trains by itself, whatever environment started it
            logger=False,
            callbacks=callbacks,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )

    def logger(self, save_dir: Path) -> Logger | None:
        """Return the logger that the configuration names, which writes into a folder; None without a logger."""
        return None if self._logger is None else self._logger(save_dir=str(save_dir))


def _sparsification(config: Configuration) -> Sparsification | None:
    """Return how the network is pruned for each target; None without pruning."""
    keys = plain(config)["model"]
    if keys.get("sparsify") is None:
        return None
    return Sparsification.of(keys["sparsify"], keys["sparsity"], keys["sparsify_images"], config.seed)


def _batch_size(config: Configuration) -> int | None:
    """Return the number of pictures that are optimised together; None: as many as fit into memory."""
    size = None if config.batch_size == AUTO else int(config.batch_size)
    if config.model.get("sparsify") is None:
        return size
    if size not in (None, 1):
        wanted = "1 or auto: with model.sparsify each target has its own pruned network"
        raise UsageError("batch_size", size, wanted)
    return 1
