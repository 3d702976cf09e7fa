"""Make the pictures of a configuration: batch after batch of targets, each kept as soon as it is finished."""

from __future__ import annotations

import logging
import math
import signal
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from vital_exp.config import build, config_hash, plain
from vital_exp.engine import setup
from vital_exp.engine.batching import automatic_batch_size, batches, views_per_pass
from vital_exp.engine.callbacks import Checkpoint, LogTerms, Progress
from vital_exp.engine.logging import close_loggers, make_loggers
from vital_exp.engine.memory import forget_peak, peak
from vital_exp.engine.module import VisualizationModule
from vital_exp.engine.problem import readout_of
from vital_exp.engine.provenance import provenance
from vital_exp.engine.run_folder import RunFolder
from vital_exp.engine.step import step_objective
from vital_exp.errors import UsageError
from vital_exp.evaluation.activation import activation_rows, unit_activations
from vital_exp.evaluation.recognition import check_judge, recognition, summarise
from vital_exp.images.output import quantised, resized, to_uint8, transparency
from vital_exp.images.randomness import RandomStreams
from vital_exp.models.named import named_network
from vital_exp.models.network import VisionNetwork
from vital_exp.references.base import References
from vital_exp.references.none import NoReferences
from vital_exp.targets.class_names import ClassNames
from vital_exp.targets.selection import parse_target
from vital_exp.targets.unit import Target

REFERENCES_SHOWN = 6  # beside each picture in the gallery


class History(dict[str, dict[str, list[float]]]):
    """Terms by step of each target, by its name in the run folder; every other spelling of a target finds it too."""

    def __init__(self, terms: Mapping[str, dict[str, list[float]]], class_names: ClassNames | None) -> None:
        super().__init__(terms)
        self._class_names = class_names

    def __missing__(self, spelling: str) -> dict[str, list[float]]:
        try:
            name = parse_target(spelling, self._class_names).name
        except UsageError as error:
            raise KeyError(spelling) from error
        if name == spelling:
            raise KeyError(spelling)
        return self[name]


@dataclass
class Pictures:
    """What a run made, in the order of its targets.

    Attributes:
        targets: the targets.
        images: (N, 3, H, W) float32 RGB in [0, 1]; NaN where a target failed.
        masks: (N, 1, H, W) in [0, 1], the transparency maps.
        history: {target: {term: one value per step, "total": ...}}.
        results: one dict per target, as in results.jsonl.
        metrics: as in metrics.json.
        rows: per-target values, as in metrics.csv.
        path: the run folder; None when nothing was written.
    """

    targets: list[Target]
    images: Tensor
    masks: Tensor
    history: History
    results: list[dict[str, Any]]
    metrics: Mapping[str, Mapping[str, float | int | str | None]] = field(default_factory=dict)
    rows: list[dict[str, float | int | str]] = field(default_factory=list)
    path: Path | None = None


@dataclass
class _Finished:
    """One target's picture in memory."""

    picture: Tensor  # (3, H, W)
    mask: Tensor  # (1, H, W)
    history: dict[str, list[float]]


class Visualization:
    """One run: what to make, and what is made so far.

    Args:
        config: the composed configuration.
        network: the frozen network, on its device.
        targets: what to show, one picture each.
        references: natural images of the targets.
        init: (N, 3, H, W) RGB to start from, one per target; None for what the configuration says.
        folder: where to keep everything; None keeps it in memory.
    """

    def __init__(
        self,
        config: DictConfig,
        network: VisionNetwork,
        targets: Sequence[Target],
        references: References,
        init: Tensor | None = None,
        folder: RunFolder | None = None,
    ) -> None:
        if init is not None and (init.ndim != 4 or len(init) != len(targets)):
            raise UsageError(
                "init", tuple(init.shape), f"one picture (3, H, W) per target, and there are {len(targets)}"
            )
        self.config = config
        self.network = network
        self.targets = list(targets)
        self.references = references
        self.starts = {} if init is None else dict(zip(targets, init, strict=True))
        self.folder = folder
        self.finished: dict[str, _Finished] = {}
        self.results = {result["target"]: result for result in folder.results()} if folder else {}
        self.loggers: list[Logger] = []
        self.judges: dict[str, VisionNetwork] = {}
        self.views_per_pass = 1
        self.metrics: Mapping[str, Mapping[str, Any]] = {}
        self.rows: Sequence[Mapping[str, Any]] = ()

    def run(self) -> Pictures:
        """Make every picture that is not there yet, evaluate all, and return them."""
        self.judges = self._load_judges()
        check_size(self.network, self._seen_size())
        size = self._resolve_batch_size()
        self.views_per_pass = self._resolve_views_per_pass(size)
        self._record_provenance(size)
        waiting = [target for target in self.targets if target.name not in self.results]
        work = list(batches(waiting, size))
        progress = Progress(len(self.targets), self.config.steps, len(work), self.config.progress)
        progress.add_done(len(self.targets) - len(waiting))
        self.loggers = make_loggers(self.config, self.folder)
        try:
            for number, (batch, padded) in enumerate(work):
                self._make(number, batch, padded, progress)
                progress.add_done(len(batch))
            progress.close()
            pictures = self._gather()
            self._evaluate(pictures)
            self.metrics, self.rows = pictures.metrics, pictures.rows
        finally:
            progress.close()
            close_loggers(self.loggers, self.config, self.folder, self.results, self.metrics, self.rows)
        return pictures

    def _load_judges(self) -> dict[str, VisionNetwork]:
        """Judges are loaded first: a mistake in one should not wait for the pictures."""
        if not self.config.evaluation.enabled or self.network.class_names is None or self.targets[0].layer is not None:
            return {}
        folder = setup.cache_dir(self.config)
        specs = OmegaConf.to_container(self.config.evaluation.judges)
        assert isinstance(specs, list)
        judges = [named_network(spec, folder, "evaluation.judges") for spec in specs]
        for judge in judges:
            check_judge(judge, self.network)
        return {judge.name: judge.to(self.network.device) for judge in judges}

    def _resolve_batch_size(self) -> int:
        """The size of every batch; what auto chose is recorded, and a resumed run keeps it."""
        if self.config.batch_size != "auto":
            return int(self.config.batch_size)
        recorded = self._recorded("batch_size")
        return recorded or automatic_batch_size(self.network, self._seen_size(), len(self.targets))

    def _resolve_views_per_pass(self, batch_size: int) -> int:
        """How many views of each picture are in the network at a time; likewise kept."""
        recorded = self._recorded("views_per_pass")
        return recorded or views_per_pass(self.config, self.network, self._seen_size(), batch_size)

    def _recorded(self, key: str) -> int | None:
        """What an earlier start of this run chose."""
        recorded = (self.folder.load_json("provenance.json") or {}) if self.folder else {}
        return int(recorded[key]) if key in recorded else None

    def _picture_size(self) -> tuple[int, int]:
        for start in self.starts.values():
            return start.shape[-2], start.shape[-1]
        return setup.picture_size(self.config, self.network)

    def _seen_size(self) -> tuple[int, int]:
        """At which size the network sees the pictures; crops of a large picture are as small as its input."""
        return setup.seen_size(self.config, self.network, self._picture_size())

    def _record_provenance(self, batch_size: int) -> None:
        if self.folder and self.folder.load_json("provenance.json") is None:
            origin = provenance(self.config, self.network, batch_size, self.views_per_pass)
            self.folder.save_json("provenance.json", origin)

    def _record_caption(self, caption: str) -> None:
        """Note what is minimised, in words; the gallery shows it."""
        recorded = self.folder.load_json("provenance.json") if self.folder else None
        if self.folder and recorded and "objective" not in recorded:
            self.folder.save_json("provenance.json", {**recorded, "objective": caption})

    def _make(self, number: int, batch: list[Target], padded: list[Target], progress: Progress) -> None:
        """Optimise one batch and keep its pictures."""
        started = time.perf_counter()
        forget_peak(self.network.device)
        module = self._module(padded)
        self._fit(number, module, batch, progress)
        seconds = (time.perf_counter() - started) / len(batch)
        cost = {"seconds": round(seconds, 3), "memory": round(peak(self.network.device), 1)}
        with torch.no_grad():
            pictures = module.pictures().detach().float().cpu()[: len(batch)]
        masks = transparency(module.sensitivity()[: len(batch)])
        history = {name: values[:, : len(batch)] for name, values in module.history().items()}
        activations, dead = self._activations(batch, pictures), module.dead()
        for i, target in enumerate(batch):
            terms = {name: values[:, i].tolist() for name, values in history.items()}
            error = _failure(terms["total"], pictures[i], dead[i])
            result = self._result(target, terms, error, activations[i], cost)
            self._keep(target, result, _Finished(pictures[i], masks[i], terms))
        if self.folder:
            self.folder.drop_checkpoint()

    def _module(self, padded: list[Target]) -> VisualizationModule:
        config = self.config
        streams = RandomStreams(config.seed, [target.name for target in padded])
        start = self._start(padded)
        pictures = setup.pictures_of(config, self.network, streams, start)
        starts = None
        if start is not None or config.image.init != "noise":
            with torch.no_grad():
                starts = pictures()
        objective = step_objective(
            config, self.network, padded, self.references, self.views_per_pass, self._picture_size(), starts
        )
        self._record_caption(objective.objective.caption)
        return VisualizationModule(pictures, objective, setup.optimizer_of(config), setup.rate_of(config), config.steps)

    def _start(self, padded: list[Target]) -> Tensor | None:
        """What the pictures start from, (N, 3, H, W) RGB: what was handed over, or a reference of each; None: noise."""
        if self.starts:
            return torch.stack([self.starts[target] for target in padded])
        if self.config.image.init != "reference":
            return None
        first = {target: next(iter(self.references.images(target))) for target in dict.fromkeys(padded)}
        return resized(torch.stack([first[target] for target in padded]), self._picture_size())

    def _fit(self, number: int, module: VisualizationModule, batch: list[Target], progress: Progress) -> None:
        config = self.config
        first_step, names = number * config.steps, [target.name for target in batch]
        callbacks: list[Any] = [progress]
        if self.loggers:
            every = config.trainer.log_every_n_steps
            callbacks.append(LogTerms(self.loggers, first_step, names, every, config.pictures_every))
        checkpoint = None
        if self.folder:
            callbacks.append(Checkpoint(self.folder.checkpoint, config.checkpoint_every))
            checkpoint = self.folder.checkpoint_of([t.name for t in batch])
        try:
            with _quiet_lightning():
                trainer = _trainer(config, self.network.device, callbacks)
                trainer.fit(module, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            _explain_memory(error, len(module.objective.streams.names), module.objective.views_per_pass)
            raise
        except SystemExit as ending:  # how Lightning answers Ctrl-C, which it also leaves without effect from then on
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt from ending

    def _activations(self, batch: list[Target], pictures: Tensor) -> list[float | None]:
        """What each saved picture makes of its target: a class's logit, a hidden unit's largest activation."""
        if batch[0].kind == "class" and self.network.class_names is None:
            return [None] * len(batch)
        read, shown = readout_of(self.config, self.network, batch), quantised(pictures.nan_to_num())
        if self._seen_size() != self._picture_size():  # a transformer could not read them otherwise
            shown = resized(shown, self.network.preprocessing.size)
        return list(map(float, unit_activations(self.network, read, shown)))

    def _result(
        self,
        target: Target,
        terms: dict[str, list[float]],
        error: str | None,
        activation: float | None,
        cost: Mapping[str, float],
    ) -> dict[str, Any]:
        return {
            "target": target.name,
            "kind": target.kind,
            "layer": target.layer,
            "index": target.index,
            "label": target.label,
            "status": "failed" if error else "done",
            "image": None if error else f"images/{target.name}.png",
            "seed": self.config.seed,
            "steps": self.config.steps,
            "loss": None if error else {name: values[-1] for name, values in terms.items()},
            "activation": None if error else activation,
            **cost,
            "error": error,
            "position": list(target.position) if target.position else None,
            "variation": target.variation,
            "config_hash": config_hash(self.config),
        }

    def _keep(self, target: Target, result: dict[str, Any], made: _Finished) -> None:
        """Keep a picture: on disk if there is a folder, and its line last."""
        if result["status"] == "failed":
            made.picture = torch.full_like(made.picture, torch.nan)
            made.mask = torch.zeros_like(made.mask)
        if self.folder:
            self.folder.append_history(target, made.history)
            if result["status"] == "done":
                self.folder.save_picture(target, made.picture, made.mask)
                if not isinstance(self.references, NoReferences):
                    self.folder.save_references(target, islice(self.references.images(target), REFERENCES_SHOWN))
            self.folder.append_result(result)
        self.finished[target.name] = made
        self.results[target.name] = result

    def _gather(self) -> Pictures:
        """All pictures, those of an earlier start read from disk."""
        earlier = [t for t in self.targets if t.name not in self.finished]
        history = self.folder.load_history() if self.folder and earlier else {}
        for target in earlier:
            assert self.folder is not None
            picture, mask = self.folder.load_picture(target.name)
            self.finished[target.name] = _Finished(picture, mask, history.get(target.name, {}))
        made = [self.finished[target.name] for target in self.targets]
        return Pictures(
            targets=self.targets,
            images=torch.stack([one.picture for one in made]),
            masks=torch.stack([one.mask for one in made]),
            history=History(
                {target.name: one.history for target, one in zip(self.targets, made, strict=True)},
                self.network.class_names,
            ),
            results=[self.results[target.name] for target in self.targets],
            path=self.folder.path if self.folder else None,
        )

    def _evaluate(self, pictures: Pictures) -> None:
        done = [i for i, result in enumerate(pictures.results) if result["status"] == "done"]
        if not self.config.evaluation.enabled or not done:
            return
        if self.config.evaluation.metrics == "basic":
            pictures.rows = self._rows([self.targets[i] for i in done], pictures, done)
            pictures.metrics = summarise(pictures.rows)
        else:
            self._score(pictures, done)
        if self.folder and pictures.rows:
            self.folder.save_json("metrics.json", pictures.metrics)
            self.folder.save_table("metrics.csv", pictures.rows)

    def _score(self, pictures: Pictures, done: list[int]) -> None:
        """Compute the metrics that the configuration names, as vital-evaluate does."""
        from vital_exp.evaluation.evaluate import evaluate_pictures, settings_of
        from vital_exp.evaluation.metrics import chosen
        from vital_exp.evaluation.pictures import PictureSet

        keys = plain(self.config)["evaluation"]
        targets = [self.targets[i] for i in done]
        shown = PictureSet(targets, to_uint8(pictures.images[done]), [pictures.results[i] for i in done])
        metrics, judges = chosen(keys["metrics"], "evaluation.metrics"), list(self.judges.values())
        table = evaluate_pictures(
            *(self.network, shown, self.references, judges, metrics, keys["features"], settings_of(keys)),
            setup.cache_dir(self.config),
            readout=readout_of(self.config, self.network, targets) if targets[0].is_direction else None,
        )
        pictures.rows, pictures.metrics = table.rows, table.metrics

    def _rows(self, targets: list[Target], pictures: Pictures, done: list[int]) -> list[dict[str, float | int | str]]:
        """What metrics.csv says of each target: who recognises a class, how strongly a hidden unit is driven."""
        if any(target.kind != "class" for target in targets):
            activations = [pictures.results[i]["activation"] for i in done]
            return activation_rows(targets, activations, self.references)
        if self.network.class_names is None:
            return []
        return recognition(self.network, self.judges, targets, quantised(pictures.images[done]))


def _failure(losses: Sequence[float], picture: Tensor, dead: bool) -> str | None:
    """Why a picture is no result; None when it is one."""
    broken = next((step for step, value in enumerate(losses) if not math.isfinite(value)), None)
    if broken is not None:
        return f"the loss is {losses[broken]} at step {broken}"
    if not picture.isfinite().all():
        return f"the picture is not finite after step {len(losses) - 1}"
    if dead:
        return "the gradient is exactly zero: nothing in the picture reaches the unit; try image.init=reference"
    return None


def check_size(network: VisionNetwork, size: Sequence[int]) -> None:
    """Run the network once on an empty picture.

    Raises:
        UsageError: it refuses pictures of this size.
    """
    if tuple(size) == tuple(network.preprocessing.size):
        return
    try:
        with torch.no_grad():
            network(torch.zeros(1, 3, *size, device=network.device))
    except (RuntimeError, AssertionError, ValueError, IndexError) as error:
        first = str(error).strip().split("\n")[0]
        raise UsageError("image.size", "x".join(map(str, size)), f"the network refuses this size: {first}") from None


# What Lightning warns of once per batch and a user can do nothing about.
LIGHTNING_WARNINGS = (
    r".*LeafSpec.*",  # Lightning 2.6 calls what torch 2.15 deprecates
    r"(GPU|MPS) available but not used",  # the accelerator is the one that was asked for
    r".*resuming from a checkpoint that ended before the epoch ended.*",  # steps are counted by the module itself
)


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # its greetings, once per batch
    with warnings.catch_warnings():
        for message in LIGHTNING_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        yield


def _trainer(config: DictConfig, device: torch.device, callbacks: list[Any]) -> Trainer:
    trainer: Trainer = build(
        config.trainer,
        max_steps=config.steps,
        max_epochs=-1,
        accelerator="gpu" if device.type == "cuda" else device.type,
        devices=[device.index or 0] if device.type == "cuda" else 1,
        logger=False,
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    return trainer


def _explain_memory(error: BaseException, batch_size: int, views_per_pass: int) -> None:
    """Raise UsageError if an error means that memory ran out."""
    text = str(error).lower()
    if (
        isinstance(error, (MemoryError, torch.OutOfMemoryError))
        or "out of memory" in text
        or "can't allocate memory" in text
    ):
        smaller = f"try batch_size={batch_size // 2}" if batch_size > 1 else "try a smaller image.size"
        advice = "try views_per_pass=1" if views_per_pass > 1 else smaller
        raise UsageError("batch_size", batch_size, f"out of memory: {advice}") from error
