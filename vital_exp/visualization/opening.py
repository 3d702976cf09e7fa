"""The lines that a run prints before its first step: network, targets, references, run folder, estimated time."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from vital_exp.engine.batch import Batch
from vital_exp.errors import UsageError
from vital_exp.mining.plan import duration
from vital_exp.mining.references import MinedReferences
from vital_exp.models.network import Preprocessing
from vital_exp.objectives.alignment_terms import DistributionTerm
from vital_exp.references.base import References
from vital_exp.references.decoding import printable
from vital_exp.references.drawn import DrawnReferences
from vital_exp.references.faceted import FacetedReferences
from vital_exp.references.folder import FolderReferences
from vital_exp.references.none import NoReferences
from vital_exp.setup.run_setup import RunSetup
from vital_exp.targets.unit import Target
from vital_exp.visualization.step_time import seconds_per_step, trial

WIDTH = 80  # columns
NAMES = 12  # columns of the lines' names
TARGETS_SHOWN = 10
ESTIMATED_FROM = 100  # fewest steps of a run whose time is estimated; shorter runs end before an estimate is worth it


@dataclass(frozen=True)
class Opening:
    """A run that is about to begin.

    Attributes:
        setup: of the run.
        targets: all targets of the run.
        batches: targets that have no picture yet, in batches.
        size: number of pictures in a batch.
        together: number of views of each picture that pass through the network at a time.
        path: the run folder; None where nothing is written.
    """

    setup: RunSetup
    targets: Sequence[Target]
    batches: Sequence[Sequence[Target]]
    size: int
    together: int
    path: Path | None = None

    def __str__(self) -> str:
        """Return the lines, wrapped at 80 columns; paths are not broken."""
        network = self.setup.network
        count = network.output.classes
        classes = f", {count} {'class' if count == 1 else 'classes'}" if count else ""
        lines = {
            "network": f"{network.name}{classes}, on {network.device}{self._assumed_preprocessing()}",
            "targets": self._targets_line(),
            "references": self._references_line(),
            **({"run folder": str(self.path)} if self.path else {}),
            **({"time": time} if (time := self._time_line()) else {}),
        }
        return "\n".join(_wrapped(name, text) for name, text in lines.items())

    def _assumed_preprocessing(self) -> str:
        """Return a note if the user's own network gets ImageNet's mean or std, which may not be its own; else ''."""
        own, usual = self.setup.network.preprocessing, Preprocessing()
        lacking = [key for key in ("mean", "std") if getattr(own, key) == getattr(usual, key)]
        if self.setup.recorded["model"]["source"] != "python" or not lacking:
            return ""
        return f"; ImageNet's {' and '.join(lacking)} (others: {', '.join(f'model.{key}=' for key in lacking)})"

    def _targets_line(self) -> str:
        waiting = [target for batch in self.batches for target in batch]
        names = [f"{target.name} ({target.label})" if target.label else target.name for target in waiting]
        more = f" and {len(names) - TARGETS_SHOWN} more" if len(names) > TARGETS_SHOWN else ""
        done = len(self.targets) - len(waiting)
        finished = f"; {done} are finished" if done else ""
        return f"{', '.join(names[:TARGETS_SHOWN])}{more}; by {self.setup.method}, {self.setup.steps} steps{finished}"

    def _references_line(self) -> str:
        told = described(self.setup.references, self.targets)
        if self._trial is None or (kept := self._in_cache(self._trial)) is None:
            return told
        waiting = len({target for batch in self.batches for target in batch})
        where = {waiting: "statistics are in the cache", 0: "to be read"}
        return f"{told}; {where.get(kept, f'statistics of {kept} of {waiting} targets are in the cache')}"

    @cached_property
    def _trial(self) -> Batch | None:
        """The batch that is timed; None for a short run, or where it cannot be made (the run then reports why)."""
        if self.setup.steps * len(self.batches) < ESTIMATED_FROM:
            return None
        try:
            return trial(self.setup, self.batches[0], self.size, self.together)
        except (UsageError, RuntimeError):
            return None

    def _in_cache(self, batch: Batch) -> int | None:
        """Return the number of targets whose reference statistics are in the cache; None where none are needed."""
        terms = batch.objective.objective.terms.values()
        layers = next((tuple(term.layer_weights) for term in terms if isinstance(term, DistributionTerm)), None)
        if layers is None or not _can_tell(self.setup.references):
            return None
        try:
            return sum(self.setup.problem(one).statistics.kept(one, layers) for one in self.batches)
        except UsageError:
            return None

    def _time_line(self) -> str | None:
        if self._trial is None:
            return None
        try:
            seconds = seconds_per_step(self._trial, 1)
        except (UsageError, RuntimeError):
            return None
        number = len(self.batches)
        shape = f"{number} {'batch' if number == 1 else 'batches'} of {self.size}, {seconds:.2f} s a step"
        return f"about {duration(seconds * self.setup.steps * number)} ({shape}), and reading the references"


def described(references: References, targets: Sequence[Target]) -> str:
    """Return a text with the number of each target's references, and their source."""
    if isinstance(references, FacetedReferences):
        if isinstance(references.source, MinedReferences):
            return f"{references.count} of each facet, from {_described_mined(references.source)}"
        return f"{described(references.source, targets)}; {references.count} of each facet"
    if isinstance(references, NoReferences):
        return "none"
    if isinstance(references, DrawnReferences):
        return f"{references.count} images of each target, drawn by code"
    if isinstance(references, FolderReferences):
        return f"{_counted(references, targets)} images of each target from {printable(references.root)}"
    if isinstance(references, MinedReferences):
        return f"{references.count} of {_described_mined(references)}"
    return "given as tensors"


def _counted(references: FolderReferences, targets: Sequence[Target]) -> str:
    """Return the number of images that a target has, up to the wanted number, or its range over the first targets."""
    try:
        counts = [min(references.count, references.available(target)) for target in targets[:TARGETS_SHOWN]]
    except UsageError:  # reading the images will report it
        return str(references.count)
    few, many = min(counts), max(counts)
    return str(few) if few == many else f"{few} to {many}"


def _described_mined(references: MinedReferences) -> str:
    folder = f"{len(references.folder.paths)} images of {printable(references.folder.root)}"
    state = "mined" if references.is_mined() else "to be mined"
    plural = {"patch": "patches"}.get(references.region, f"{references.region}s")
    return f"the {plural} that drive each unit most, among {folder} ({state})"


def _can_tell(references: References) -> bool:
    """Return whether the cache of statistics can be searched: references are there, and need not be mined first."""
    source = references.source if isinstance(references, FacetedReferences) else references
    return not isinstance(source, NoReferences) and not (isinstance(source, MinedReferences) and not source.is_mined())


def _wrapped(name: str, text: str) -> str:
    wrapped = textwrap.wrap(text, WIDTH - NAMES, break_long_words=False, break_on_hyphens=False)
    return f"\n{' ' * NAMES}".join([f"{name:{NAMES}}{wrapped[0]}", *wrapped[1:]])
