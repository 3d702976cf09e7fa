"""Make the pictures of a configuration: batch after batch of targets, each kept as soon as it is finished."""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import math
import signal
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from vital_exp.config import build, config_hash, plain
from vital_exp.engine import setup
from vital_exp.engine.batching import automatic_batch_size, batches, padded, together, views_per_pass
from vital_exp.engine.callbacks import Checkpoint, LogTerms, Progress
from vital_exp.engine.checkpoints import Checkpoints
from vital_exp.engine.interruption import Interruption
from vital_exp.engine.logging import close_loggers, make_loggers
from vital_exp.engine.memory import forget_peak, peak
from vital_exp.engine.module import VisualizationModule
from vital_exp.engine.movies import Film
from vital_exp.engine.pictures import History, Outcome, Pictures
from vital_exp.engine.problem import readout_of
from vital_exp.engine.provenance import provenance, version_of
from vital_exp.engine.ranks import Ranks
from vital_exp.engine.run_folder import RunFolder
from vital_exp.engine.same_network import check_network
from vital_exp.engine.starts import starts_of
from vital_exp.engine.step import step_objective
from vital_exp.errors import UsageError
from vital_exp.evaluation.activation import activation_rows, unit_activations
from vital_exp.evaluation.recognition import PICTURES_PER_PASS, check_judge, recognition, summarise, unjudged
from vital_exp.images.output import quantised, resized, to_uint8
from vital_exp.images.randomness import RandomStreams
from vital_exp.images.ranges import checked_pictures
from vital_exp.mining.references import MinedReferences
from vital_exp.models.identity import begin_call, identity_of
from vital_exp.models.named import named_network
from vital_exp.models.network import VisionNetwork
from vital_exp.models.precision import precisions_of
from vital_exp.models.refusals import REFUSALS, refusal, unsupported
from vital_exp.references.base import References
from vital_exp.references.faceted import FacetedReferences
from vital_exp.references.none import NoReferences
from vital_exp.targets.unit import Target

EVALUATION = ".hydra/evaluation.json"  # the last one, and what it was of
REFERENCES_SHOWN = 6  # beside each picture in the gallery
SECONDS_BETWEEN_COLLECTIONS = 5.0  # of rings of Python objects


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
        ranks: the processes that share the targets; they meet in the folder.
        keep: whether pictures that are in the folder stay in memory too: thousands would fill it.
    """

    def __init__(
        self,
        config: DictConfig,
        network: VisionNetwork,
        targets: Sequence[Target],
        references: References,
        init: Tensor | None = None,
        folder: RunFolder | None = None,
        ranks: Ranks | None = None,
        keep: bool = True,
    ) -> None:
        if init is not None:
            init = checked_pictures(init, "init")
            if len(init) != len(targets):
                wanted = f"one picture (3, H, W) per target, and there are {len(targets)}"
                raise UsageError("init", tuple(init.shape), wanted)
        self.config = config
        self.network = network
        self.targets = list(targets)
        self.references = references
        self.starts = {} if init is None else dict(zip(targets, init, strict=True))
        self.folder = folder
        self.ranks = ranks or Ranks()
        self.keep = keep or folder is None
        self.finished: dict[str, _Finished] = {}
        self.results: dict[str, dict[str, Any]] = {}
        self.metrics: dict[str, Any] = {}
        self.rows: list[dict[str, float | int | str]] = []
        self.loggers: list[Logger] = []
        self.judges: dict[str, VisionNetwork] = {}
        self.views_per_pass = 1

    def run(self) -> Pictures:
        """Make every picture that is not there yet, evaluate all, and return them."""
        self.make()
        return self.pictures()

    def make(self) -> Outcome:
        """Make this rank's share of the pictures that are not there yet; rank 0 then evaluates all."""
        leads = self.ranks.rank == 0
        self.judges = self._load_judges() if leads else {}
        check_size(self.network, self._seen_size())
        self.ranks.in_turn(lambda: check_network(self.folder, self.network) if leads and self.folder else None)
        if isinstance(self.references, MinedReferences) and self.ranks.size > 1:
            self.ranks.in_turn(lambda: next(self.references.images(self.targets[0]), None))  # mined once
        size, work = self._plan()
        self.loggers = make_loggers(self.config, self.folder) if leads else []
        progress = Progress(len(self.targets), self.config.steps, len(work), self.config.progress and leads)
        progress.add_done(len(self.results))
        collected = time.monotonic()
        try:
            for number, batch in self.ranks.share(work):
                self._make(number, batch, size, progress)
                collected = _collect_rings(collected)
                progress.add_done(len(batch))
            self.ranks.wait()
            progress.close()
            self._collect()
            if leads:
                self._evaluate()
        except UsageError as error:
            if leads and self.folder and not self.results:
                self.folder.save_mistake(error)
            raise
        finally:
            progress.close()
            close_loggers(self.loggers, self.config, self.folder, self.results, self.metrics, self.rows)
        return Outcome(**self._outcome())

    def _plan(self) -> tuple[int, list[list[Target]]]:
        """Return the batch size and the batches that are to be made, the same on every rank."""
        self._collect()
        waiting = [target for target in self.targets if target.name not in self.results]
        chosen = self._sizes(together(waiting)) if self.ranks.rank == 0 else None
        size, self.views_per_pass = self.ranks.broadcast(chosen)
        if self.ranks.rank == 0:
            self._record_provenance(size)
        half_made = self.ranks.broadcast(self.folder.checkpoints.batches() if self.folder else [])
        return size, list(batches(waiting, size, half_made))

    def _sizes(self, waiting: int) -> tuple[int, int]:
        """How many pictures are made together, and how many views of each, of so many that could be."""
        size = self._resolve_batch_size(waiting)
        return size, self._resolve_views_per_pass(size)

    def _collect(self) -> None:
        """Take over what the folder says is finished: of an earlier start, or by other ranks."""
        found = self.folder.results() if self.folder and self.ranks.rank == 0 else []
        if self.folder:
            names = {target.name for target in self.targets}
            found = self.ranks.broadcast(found)
            self.results = {result["target"]: result for result in found if result["target"] in names}

    def _outcome(self) -> dict[str, Any]:
        return {
            "targets": self.targets,
            "results": [self.results[target.name] for target in self.targets],
            "metrics": self.metrics,
            "rows": self.rows,
            "path": self.folder.path if self.folder else None,
        }

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
            begin_call(judge, folder if self.config.references.cache else None)
        return {judge.name: judge.to(self.network.device) for judge in judges}

    def _resolve_batch_size(self, waiting: int) -> int:
        """The size of every batch; what auto chose is recorded, and a resumed run keeps it."""
        if self.config.batch_size != "auto":
            return int(self.config.batch_size)
        recorded = self._recorded("batch_size")
        each = math.ceil(waiting / self.ranks.size)
        return recorded or automatic_batch_size(self.network, self._seen_size(), each)

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
        recorded = self.folder.load_json("provenance.json") if self.folder and self.ranks.rank == 0 else None
        if self.folder and recorded and "objective" not in recorded:
            self.folder.save_json("provenance.json", {**recorded, "objective": caption})

    def _make(self, number: int, batch: list[Target], size: int, progress: Progress) -> None:
        """Optimise one batch and keep its pictures; targets that have lost their references fail alone."""
        started = time.perf_counter()
        most_before = forget_peak(self.network.device)
        try:
            module = self._module(padded(batch, size))
        except UsageError as mistake:
            lost = self._lost(batch) if self.results else {}
            if not lost:
                raise mistake from None
            for target, reason in lost.items():
                self._fail(target, reason)
            if left := [target for target in batch if target not in lost]:
                self._make(number, left, size, progress)
            return
        film = Film(self.config.steps) if self.folder and self.config.movie else None
        self._fit(number, module, batch, [progress, film] if film else [progress])
        seconds = (time.perf_counter() - started) / len(batch)
        memory = peak(self.network.device, most_before)
        cost = {"seconds": round(seconds, 3), "memory": None if memory is None else round(memory, 1)}
        with torch.no_grad():
            pictures = module.pictures().detach().float().cpu()[: len(batch)]
        masks = module.masks(self.config.mask_percentile)[: len(batch)]
        history = {name: values[:, : len(batch)] for name, values in module.history().items()}
        activations, dead = self._activations(batch, pictures), module.dead()
        for i, target in enumerate(batch):
            terms = {name: values[:, i].tolist() for name, values in history.items()}
            error = _failure(terms["total"], pictures[i], dead[i], activations[i])
            error = error and error + self._precision_hint(error)
            result = self._result(target, terms, error, activations[i], cost)
            if self.folder and film and not error:
                self.folder.save_film(target, film.of(i), self.config.movie)
            self._keep(target, result, _Finished(pictures[i], masks[i], terms))
        if self.folder:
            self.folder.checkpoints.drop([target.name for target in batch])

    def _precision_hint(self, error: str) -> str:
        """What to do where a number may have left the range of float16, 6e-8 to 65504."""
        narrow = torch.float16 in precisions_of(self.network.module) and "zero" not in error
        return "; the network computes in float16, to 65504: hand over module.bfloat16() or float()" if narrow else ""

    def _lost(self, batch: list[Target]) -> dict[Target, str]:
        """Return those of a batch that alone cannot be made either, since files have gone meanwhile, and why."""
        lost = {}
        for target in batch:
            try:
                self._module([target])
            except UsageError as mistake:
                lost[target] = str(mistake)
        return lost

    def _fail(self, target: Target, error: str) -> None:
        height, width = self._picture_size()
        nothing = _Finished(torch.full((3, height, width), torch.nan), torch.zeros(1, height, width), {})
        self._keep(target, self._result(target, {}, error, None, {"seconds": 0.0, "memory": None}), nothing)

    def _module(self, padded: list[Target]) -> VisualizationModule:
        config = self.config
        streams = RandomStreams(config.seed, [target.name for target in padded])
        start = self._start(padded)
        pictures = setup.pictures_of(config, self.network, streams, start)
        starts = None
        if start is not None:
            with torch.no_grad():
                starts = pictures()
        objective = step_objective(
            config, self.network, padded, self.references, self.views_per_pass, self._picture_size(), starts
        )
        self._record_caption(objective.objective.caption)
        optimizer, rate = setup.optimizer_of(config), setup.rate_of(config)
        return VisualizationModule(pictures, objective, optimizer, rate, config.steps, config.mask)

    def _start(self, padded: list[Target]) -> Tensor | None:
        """What the pictures start from, (N, 3, H, W) RGB: what was handed over, or image.init's; None: noise."""
        if self.starts:
            return torch.stack([self.starts[target] for target in padded])
        return starts_of(self.config, self.references, padded, self._picture_size())

    def _fit(self, number: int, module: VisualizationModule, batch: list[Target], beside: list[Callback]) -> None:
        config = self.config
        first_step, names = number * config.steps, [target.name for target in batch]
        callbacks = list(beside)
        if self.loggers:
            every = config.trainer.log_every_n_steps
            callbacks.append(LogTerms(self.loggers, first_step, names, every, config.pictures_every))
        checkpoint, save = None, None
        if self.folder:
            save = partial(_save, self.folder.checkpoints, names)
            callbacks.append(Checkpoint(save, config.checkpoint_every))
            checkpoint = self.folder.checkpoints.begin(names)
        interruption = Interruption(save)
        try:
            with _quiet_lightning():
                trainer = _trainer(config, self.network.device, [*callbacks, interruption])
                trainer.fit(module, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            _explain_memory(error, len(module.objective.streams.names), module.objective.views_per_pass)
            if told := unsupported(self.network, error):
                raise told from error
            raise
        except SystemExit as ending:  # how Lightning answers Ctrl-C, which it also leaves without effect from then on
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt from ending
        finally:
            module.trainer = None  # which else holds the batch's tensors until Python looks for rings
        if interruption.asked:
            raise KeyboardInterrupt

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
        cost: Mapping[str, float | None],
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
            "facet": target.facet,
            **self._described(target),
            "config_hash": config_hash(self.config),
        }

    def _described(self, target: Target) -> dict[str, Any]:
        """What is known of the target's facet."""
        if isinstance(self.references, FacetedReferences) and target.facet is not None:
            return self.references.describe(target)
        return {"share": None, "coherence": None, "members": None, "facets": None}

    def _keep(self, target: Target, result: dict[str, Any], made: _Finished) -> None:
        """Keep a picture: on disk if there is a folder, and its line last."""
        if result["status"] == "failed":
            made.picture = torch.full_like(made.picture, torch.nan)
            made.mask = torch.zeros_like(made.mask)
        if self.folder:
            if made.history:
                self.folder.append_history(target, made.history)
            if result["status"] == "done":
                self.folder.save_picture(target, made.picture, made.mask)
                if not isinstance(self.references, NoReferences):
                    self.folder.save_references(target, islice(self.references.images(target), REFERENCES_SHOWN))
            self.folder.append_result(result)
        if self.keep:
            self.finished[target.name] = made
        self.results[target.name] = result

    def pictures(self) -> Pictures:
        """Return all pictures, those of an earlier start or another rank read from disk."""
        earlier = [target for target in self.targets if target.name not in self.finished]
        history = self.folder.load_history() if self.folder and earlier else {}
        made = [self.finished.get(t.name) or self._from_folder(t, history) for t in self.targets]
        terms = {target.name: one.history for target, one in zip(self.targets, made, strict=True)}
        return Pictures(
            images=torch.stack([one.picture for one in made]),
            masks=torch.stack([one.mask for one in made]),
            history=History(terms, self.network.class_names),
            **self._outcome(),
        )

    def _from_folder(self, target: Target, history: Mapping[str, dict[str, list[float]]]) -> _Finished:
        assert self.folder is not None
        terms = history.get(target.name, {})
        if self.results[target.name]["status"] == "failed":
            height, width = self._picture_size()
            return _Finished(torch.full((3, height, width), torch.nan), torch.zeros(1, height, width), terms)
        return _Finished(*self.folder.load_picture(target.name), terms)

    def _pixels(self, targets: Sequence[Target]) -> Tensor:
        """The pictures of finished targets as their files hold them, (N, 3, H, W) uint8."""
        made = (self.finished.get(target.name) or self._from_folder(target, {}) for target in targets)
        return torch.stack([to_uint8(one.picture) for one in made])

    def _evaluate(self) -> None:
        done = [target for target in self.targets if self.results[target.name]["status"] == "done"]
        if not self.config.evaluation.enabled or not done:
            return
        asked = self._asked_of(done)
        if known := self._evaluated_before(asked):
            self.rows, self.metrics = known["rows"], known["metrics"]
            return
        if self.config.evaluation.metrics == "basic":
            self.rows = self._rows(done)
            self.metrics = {**summarise(self.rows), **self._unjudged()}
        else:
            self._score(done)
        if self.folder and self.rows:
            self.folder.save_json("metrics.json", self.metrics)
            self.folder.save_table("metrics.csv", self.rows)
            self.folder.save_json(EVALUATION, {"asked": asked, "rows": self.rows, "metrics": self.metrics})

    def _evaluated_before(self, asked: str) -> dict[str, Any] | None:
        """The evaluation of an earlier start: a sweep that goes on does not judge its finished jobs again."""
        names = (EVALUATION, "metrics.json", "metrics.csv")
        if not self.folder or not all((self.folder.path / name).is_file() for name in names):
            return None
        try:
            known = self.folder.load_json(EVALUATION)
        except UsageError:  # damaged: it is only a copy
            return None
        return known if isinstance(known, dict) and known.get("asked") == asked else None

    def _asked_of(self, targets: list[Target]) -> str:
        """A hash of all an evaluation depends on: its settings, pictures, references, judges, and this version."""
        content = {
            "version": version_of("vital-exp"),
            **{key: plain(self.config)[key] for key in ("evaluation", "references")},
            "results": [self.results[target.name] for target in targets],
            "networks": [f"{identity_of(one).key} {one.head}" for one in (self.network, *self.judges.values())],
            "images": [self._images_of(target) for target in targets],
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()

    def _images_of(self, target: Target) -> str | None:
        """A hash of a target's natural images; None where there are none."""
        try:
            return self.references.fingerprint(target)
        except UsageError:
            return None

    def _score(self, targets: list[Target]) -> None:
        """Compute the metrics that the configuration names, as vital-evaluate does."""
        from vital_exp.evaluation.evaluate import evaluate_pictures, settings_of
        from vital_exp.evaluation.metrics import chosen
        from vital_exp.evaluation.pictures import PictureSet

        keys = plain(self.config)["evaluation"]
        shown = PictureSet(targets, self._pixels(targets), [self.results[target.name] for target in targets])
        metrics, judges = chosen(keys["metrics"], "evaluation.metrics"), list(self.judges.values())
        table = evaluate_pictures(
            *(self.network, shown, self.references, judges, metrics, keys["features"], settings_of(keys)),
            setup.cache_dir(self.config),
            readout=readout_of(self.config, self.network, targets) if targets[0].is_direction else None,
            keep=bool(self.config.references.cache),
        )
        self.rows, self.metrics = table.rows, table.metrics

    def _unjudged(self) -> dict[str, Any]:
        """Why classes are not recognised, by whoever has no opinion of them."""
        of_classes = self.targets[0].kind == "class" and self.network.class_names is not None
        return unjudged(self.network, self.judges, self.rows) if of_classes else {}

    def _rows(self, targets: list[Target]) -> list[dict[str, float | int | str]]:
        """What metrics.csv says of each target: who recognises a class, how strongly a hidden unit is driven."""
        if any(target.kind != "class" for target in targets):
            activations = [self.results[target.name]["activation"] for target in targets]
            return activation_rows(targets, activations, self.references)
        if self.network.class_names is None:
            return []
        rows = []
        for start in range(0, len(targets), PICTURES_PER_PASS):  # thousands do not fit into memory
            some = targets[start : start + PICTURES_PER_PASS]
            rows += recognition(self.network, self.judges, some, self._pixels(some).float() / 255)
        return rows


def _collect_rings(last: float) -> float:
    """Free what holds itself, as Lightning's trainers do, if the last time was long ago; return when the last time was.

    Python by itself waits for a hundred batches of them. Looking takes a quarter of a second.
    """
    if time.monotonic() - last < SECONDS_BETWEEN_COLLECTIONS:
        return last
    gc.collect()
    return time.monotonic()


def _failure(losses: Sequence[float], picture: Tensor, dead: bool, activation: float | None) -> str | None:
    """Why a picture is no result; None when it is one."""
    broken = next((step for step, value in enumerate(losses) if not math.isfinite(value)), None)
    if broken is not None:
        return f"the loss is {losses[broken]} at step {broken}"
    if not picture.isfinite().all():
        return f"the picture is not finite after step {len(losses) - 1}"
    if activation is not None and not math.isfinite(activation):
        return f"the target's activation by the picture is {activation}"
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
            network.returned(torch.zeros(1, 3, *size, device=network.device))
    except REFUSALS as error:
        raise refusal(network, size, error, "image.size") from None


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


def _save(checkpoints: Checkpoints, names: Sequence[str], trainer: Trainer) -> None:
    checkpoints.save(names, trainer.save_checkpoint)


def _trainer(config: DictConfig, device: torch.device, callbacks: list[Any]) -> Trainer:
    trainer: Trainer = build(
        config.trainer,
        max_steps=config.steps,
        max_epochs=-1,
        accelerator="gpu" if device.type == "cuda" else device.type,
        devices=[device.index or 0] if device.type == "cuda" else 1,
        num_nodes=1,
        plugins=[LightningEnvironment()],  # a rank among others trains by itself, whatever started it
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
