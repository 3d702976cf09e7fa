"""The job: makes the pictures of a request batch after batch, saves each finished batch, and computes the metrics."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from lightning.pytorch.loggers import Logger
from torch import Tensor

from vital_exp.engine.batch import Batch, Made
from vital_exp.engine.callbacks import LogTerms, Progress
from vital_exp.engine.fitting import fit
from vital_exp.engine.memory import forget_peak, peak
from vital_exp.engine.module import VisualizationModule
from vital_exp.errors import UsageError
from vital_exp.evaluation.reconstruction import MOST_IMAGES, log_reconstruction
from vital_exp.images.output import stored
from vital_exp.images.ranges import checked_pictures
from vital_exp.mining.references import MinedReferences
from vital_exp.models.network import VisionNetwork
from vital_exp.models.refusals import REFUSALS, refusal
from vital_exp.references.none import NoReferences
from vital_exp.runs.folder import RunFolder
from vital_exp.runs.movies import Film
from vital_exp.runs.provenance import provenance
from vital_exp.runs.same_network import check_network
from vital_exp.setup.batching import automatic_batch_size, batches, together
from vital_exp.setup.request import Request
from vital_exp.setup.run_setup import RunSetup
from vital_exp.targets.unit import Target
from vital_exp.visualization.loggers import close_loggers, make_loggers
from vital_exp.visualization.opening import Opening
from vital_exp.visualization.outcome import History, Outcome, Pictures, result_line
from vital_exp.visualization.ranks import Ranks
from vital_exp.visualization.scores import Evaluator, Scores

REFERENCES_SHOWN = 6  # beside each picture in the gallery
SECONDS_BETWEEN_COLLECTIONS = 5.0  # garbage collections, which free reference cycles


class Visualization:
    """One run: the pictures to make, and the finished ones.

    Args:
        request: configuration, network, targets and references.
        init: (N, C, H, W) in [0, 1], an image to start from for each target; None for the configuration's start.
        folder: the run folder; None keeps everything in memory.
        ranks: the ranks that share the targets and the run folder; None for this process alone.
        keep: whether pictures that are saved in the folder stay in memory too; thousands would fill it.
        tell: a function that takes the opening of the run before the first batch; None for no opening.
    """

    def __init__(
        self,
        request: Request,
        init: Tensor | None = None,
        folder: RunFolder | None = None,
        ranks: Ranks | None = None,
        keep: bool = True,
        tell: Callable[[Opening], None] | None = None,
    ) -> None:
        init = None if init is None else _checked_init(init, request)
        self.setup, self.network, self.references = request.setup, request.network, request.references
        self.targets = list(request.targets)
        self.given = {} if init is None else dict(zip(request.targets, init, strict=True))
        self.size = self.setup.size if init is None else (init.shape[-2], init.shape[-1])
        self.folder = folder
        self.ranks = ranks or Ranks()
        self.keep = keep or folder is None
        self.tell = tell
        self.finished: dict[str, Made] = {}
        self.results: dict[str, dict[str, Any]] = {}
        self.scores = Scores()
        self.loggers: list[Logger] = []
        self.views_per_pass = 1

    def run(self) -> Pictures:
        """Make the missing pictures, evaluate all pictures, and return them."""
        self.make()
        return self.pictures()

    def make(self) -> Outcome:
        """Make this rank's share of the missing pictures; rank 0 then evaluates all pictures."""
        leads = self.ranks.rank == 0
        evaluator = Evaluator(self.setup, self.targets) if leads else None
        check_size(self.network, self._seen_size())
        if self.setup.growth:
            check_size(self.network, self.setup.seen_size(self.setup.growth.size(self.size)))
        self.ranks.in_turn(lambda: check_network(self.folder, self.network) if leads and self.folder else None)
        if isinstance(self.references, MinedReferences) and self.ranks.size > 1:
            self.ranks.in_turn(lambda: next(self.references.images(self.targets[0]), None))  # rank 0 mines for all
        size, work = self._plan()
        self.loggers = make_loggers(self.setup, self.folder) if leads else []
        if leads and work:
            self._tell(size, work)
        progress = Progress(len(self.targets), self.setup.steps, len(work), self.setup.progress and leads)
        progress.add_done(len(self.results))
        try:
            self._make_all(size, work, progress)
            if evaluator:
                done = [target for target in self.targets if self.results[target.name]["status"] == "done"]
                self.scores = evaluator.scores(done, self.results, self._pixels, self.folder)
        except UsageError as error:
            if leads and self.folder and not self.results:
                self.folder.save_mistake(error)
            raise
        finally:
            progress.close()
            own = (self.results, self.scores.metrics, self.scores.rows)
            close_loggers(self.loggers, self.setup, self.folder, *own)
        return Outcome(**self._outcome())

    def _tell(self, size: int, work: list[list[Target]]) -> None:
        if self.tell:
            path = self.folder.path if self.folder else None
            self.tell(Opening(self.setup, self.targets, work, size, self.views_per_pass, path))
        if self.folder is None or not self.folder.results():  # a resumed run has logged it before
            _log_reconstruction(self.setup, self.targets[0])

    def _make_all(self, size: int, work: list[list[Target]], progress: Progress) -> None:
        collected = time.monotonic()
        for number, targets in self.ranks.share(work):
            self._make(number, targets, size, progress)
            collected = collect_now_and_then(collected)
            progress.add_done(len(targets))
        self.ranks.wait()
        progress.close()
        self._take_over()

    # The plan

    def _plan(self) -> tuple[int, list[list[Target]]]:
        """Return the batch size and the batches of the missing pictures, the same on every rank."""
        self._take_over()
        waiting = [target for target in self.targets if target.name not in self.results]
        chosen = self._sizes(together(waiting)) if self.ranks.rank == 0 else None
        size, self.views_per_pass = self.ranks.broadcast(chosen)
        if self.folder and self.ranks.rank == 0 and self.folder.load_json("provenance.json") is None:
            origin = provenance(self.setup.config_hash, self.network, size, self.views_per_pass)
            self.folder.save_json("provenance.json", origin)
        half_made = self.ranks.broadcast(self.folder.checkpoints.batches() if self.folder else [])
        return size, list(batches(waiting, size, half_made))

    def _take_over(self) -> None:
        """Read the results in the folder, which an earlier start of the run or other ranks have written."""
        if self.folder:
            names = {target.name for target in self.targets}
            found = self.ranks.broadcast(self.folder.results(names) if self.ranks.rank == 0 else [])
            self.results = {result["target"]: result for result in found}

    def _sizes(self, waiting: int) -> tuple[int, int]:
        """Return the batch size, and the number of views per pass; a resumed run keeps the recorded numbers."""
        recorded = (self.folder.load_json("provenance.json") or {}) if self.folder else {}
        each = math.ceil(waiting / self.ranks.size)
        size = self.setup.batch_size or recorded.get("batch_size")
        size = size or automatic_batch_size(self.network, self._seen_size(), each)
        return int(size), int(recorded.get("views_per_pass") or self.setup.together(self.size, size))

    @property
    def _shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the pictures."""
        return self.network.preprocessing.channels, *self.size

    def _seen_size(self) -> tuple[int, int]:
        """Return the size at which the network sees the pictures; for crops this is its input size."""
        return self.setup.seen_size(self.size)

    # One batch

    def _make(self, number: int, targets: list[Target], size: int, progress: Progress) -> None:
        """Optimise one batch and keep its pictures."""
        started = time.perf_counter()
        most_before = forget_peak(self.network.device)
        batch = self._batch(targets, size)
        if batch is None:
            return
        movie = self.setup.movie if self.folder else None
        film = Film(self.setup.steps) if movie else None
        module = self._fit(number, batch, [progress, film] if film else [progress])
        seconds = (time.perf_counter() - started) / len(batch.targets)
        memory = peak(self.network.device, most_before)
        cost = {"seconds": round(seconds, 3), "memory": None if memory is None else round(memory, 1)}
        for i, (target, made) in enumerate(zip(batch.targets, batch.made(module), strict=True)):
            if self.folder and film and movie and not made.error:
                self.folder.save_film(target, film.of(i), movie)
            self._keep(target, made, cost)
        if self.folder:
            self.folder.checkpoints.drop(batch.names)

    def _batch(self, targets: list[Target], size: int) -> Batch | None:
        """Return the batch of the targets whose references can be read, None if there are none; record the others.

        Files of references may be deleted during a run. A target without its files fails, and the other targets of its
        batch do not.
        """
        try:
            return self._assembled(targets, size)
        except UsageError:
            failed = self._failures(targets) if self.results else {}
            if not failed:
                raise
        for target, reason in failed.items():
            self._keep(target, Made.failed(self._shape, reason), {"seconds": 0.0, "memory": None})
        left = [target for target in targets if target not in failed]
        return self._assembled(left, size) if left else None

    def _assembled(self, targets: list[Target], size: int) -> Batch:
        batch = Batch(self.setup, targets, size, self.views_per_pass, self.size, self.given)
        self._record_caption(batch.objective.objective.caption)
        return batch

    def _failures(self, targets: list[Target]) -> dict[Target, str]:
        """Return the errors of the targets that fail even in a batch of their own."""
        failed = {}
        for target in targets:
            try:
                self._assembled([target], 1)
            except UsageError as mistake:
                failed[target] = str(mistake)
        return failed

    def _record_caption(self, caption: str) -> None:
        """Write the objective's caption, which the gallery shows, into provenance.json."""
        recorded = self.folder.load_json("provenance.json") if self.folder and self.ranks.rank == 0 else None
        if self.folder and recorded and "objective" not in recorded:
            self.folder.save_json("provenance.json", {**recorded, "objective": caption})

    def _fit(self, number: int, batch: Batch, beside: list[Any]) -> VisualizationModule:
        """Optimise a batch, with the loggers' callbacks, and return its Lightning module."""
        module = batch.module()
        if self.loggers:
            every = (self.setup.log_every, self.setup.pictures_every)
            first = number * self.setup.steps
            beside = [*beside, LogTerms(self.loggers, first, batch.names, *every, self.setup.log_targets)]
        fit(self.setup, module, batch.names, beside, self.folder.checkpoints if self.folder else None)
        return module

    # Finished pictures

    def _keep(self, target: Target, made: Made, cost: Mapping[str, float | None]) -> None:
        """Keep a picture; in a run folder, its line in results.jsonl is written last."""
        result = result_line(self.setup, target, made, cost)
        if self.folder:
            if made.history:
                self.folder.append_history(target, made.history)
            if not made.error:
                self.folder.save_picture(target, made.picture, made.mask)
                if not isinstance(self.references, NoReferences):
                    self.folder.save_references(target, islice(self.references.images(target), REFERENCES_SHOWN))
            self.folder.append_result(result)
        if self.keep:
            self.finished[target.name] = made
        self.results[target.name] = result

    # Returned values

    def pictures(self) -> Pictures:
        """Return all pictures; those of an earlier start or another rank are read from the run folder."""
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

    def _outcome(self) -> dict[str, Any]:
        return {
            "targets": self.targets,
            "results": [self.results[target.name] for target in self.targets],
            "metrics": self.scores.metrics,
            "rows": self.scores.rows,
            "path": self.folder.path if self.folder else None,
        }

    def _from_folder(self, target: Target, history: Mapping[str, dict[str, list[float]]]) -> Made:
        assert self.folder is not None
        terms = history.get(target.name, {})
        if self.results[target.name]["status"] == "failed":
            return Made.failed(self._shape, history=terms)
        return Made(*self.folder.load_picture(target.name), terms)

    def _pixels(self, targets: Sequence[Target]) -> Tensor:
        """Return the pictures of finished targets, (N, C, H, W), as their files hold them."""
        made = (self.finished.get(target.name) or self._from_folder(target, {}) for target in targets)
        return torch.stack([stored(one.picture) for one in made])


def _checked_init(init: Tensor, request: Request) -> Tensor:
    """Return the images to start from, one for each target, (N, C, H, W)."""
    init = checked_pictures(init, "init", request.network.preprocessing.channels)
    if len(init) != len(request.targets):
        shape = f"({init.shape[1]}, H, W)"
        wanted = f"one picture {shape} per target, and there are {len(request.targets)}"
        raise UsageError("init", tuple(init.shape), wanted)
    return init


def _log_reconstruction(setup: RunSetup, target: Target) -> None:
    """Log how well the autoencoder of a feature reconstructs the layer's activations on the feature's references."""
    autoencoder = setup.readout([target]).autoencoder if target.kind == "sae" else None
    if autoencoder is None or isinstance(setup.references, NoReferences):
        return
    try:
        images = list(islice(setup.references.images(target), MOST_IMAGES))
    except UsageError:
        return  # making the picture will report it
    log_reconstruction(setup.network, str(target.layer), autoencoder, images)


def collect_now_and_then(last: float) -> float:
    """Collect garbage if the last collection, at time ``last``, is seconds ago; return the time of the last one.

    Lightning's trainers form reference cycles. Python itself would free them only after a hundred batches. A collection
    takes a quarter of a second, so it is not done after every batch.
    """
    if time.monotonic() - last < SECONDS_BETWEEN_COLLECTIONS:
        return last
    gc.collect()
    return time.monotonic()


def check_size(network: VisionNetwork, size: Sequence[int]) -> None:
    """Run the network once on a blank picture of a size, unless this is its input size.

    Raises:
        UsageError: the network refuses pictures of this size.
    """
    if tuple(size) == tuple(network.preprocessing.size):
        return
    try:
        with torch.no_grad():
            network.returned(network.blank(size=size))
    except REFUSALS as error:
        raise refusal(network, size, error, "image.size") from None
