"""What a run says before its first step: network, targets, references, folder, and how long it takes."""

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
NAMES = 12  # letters of the names of lines
TARGETS_SHOWN = 10
ESTIMATED_FROM = 100  # steps of a run: a shorter one has ended before it is estimated


@dataclass(frozen=True)
class Opening:
    """A run that is about to begin.

    Attributes:
        setup: of the run.
        targets: all of them.
        batches: those that are to be made.
        size: pictures of a batch.
        together: views of each picture in the network at a time.
        path: the run folder; None where nothing is written.
    """

    setup: RunSetup
    targets: Sequence[Target]
    batches: Sequence[Sequence[Target]]
    size: int
    together: int
    path: Path | None = None

    def __str__(self) -> str:
        """Return the lines, wrapped at 80 columns but for paths."""
        network = self.setup.network
        count = network.output.classes
        classes = f", {count} {'class' if count == 1 else 'classes'}" if count else ""
        lines = {
            "network": f"{network.name}{classes}, on {network.device}{self._told_usual_pictures()}",
            "targets": self._told_targets(),
            "references": self._told_references(),
            **({"run folder": str(self.path)} if self.path else {}),
            **({"time": told} if (told := self._told_time()) else {}),
        }
        return "\n".join(_wrapped(name, text) for name, text in lines.items())

    def _told_usual_pictures(self) -> str:
        """Of somebody's own network whose preprocessing nobody has said: which one it gets, for it may be another."""
        own, usual = self.setup.network.preprocessing, Preprocessing()
        lacking = [key for key in ("mean", "std") if getattr(own, key) == getattr(usual, key)]
        if self.setup.recorded["model"]["source"] != "python" or not lacking:
            return ""
        return f"; ImageNet's {' and '.join(lacking)} (others: {', '.join(f'model.{key}=' for key in lacking)})"

    def _told_targets(self) -> str:
        waiting = [target for batch in self.batches for target in batch]
        names = [f"{target.name} ({target.label})" if target.label else target.name for target in waiting]
        more = f" and {len(names) - TARGETS_SHOWN} more" if len(names) > TARGETS_SHOWN else ""
        done = len(self.targets) - len(waiting)
        finished = f"; {done} are finished" if done else ""
        return f"{', '.join(names[:TARGETS_SHOWN])}{more}; by {self.setup.method}, {self.setup.steps} steps{finished}"

    def _told_references(self) -> str:
        told = described(self.setup.references, self.targets)
        if self._trial is None or (kept := self._kept(self._trial)) is None:
            return told
        waiting = len({target for batch in self.batches for target in batch})
        where = {waiting: "statistics are in the cache", 0: "to be read"}
        return f"{told}; {where.get(kept, f'statistics of {kept} of {waiting} targets are in the cache')}"

    @cached_property
    def _trial(self) -> Batch | None:
        """The batch that is timed; None for a short run, or where something is wrong, which whoever makes it tells."""
        if self.setup.steps * len(self.batches) < ESTIMATED_FROM:
            return None
        try:
            return trial(self.setup, self.batches[0], self.size, self.together)
        except (UsageError, RuntimeError):
            return None

    def _kept(self, batch: Batch) -> int | None:
        """How many targets have the statistics of their references in the cache; None where they ask for none."""
        terms = batch.objective.objective.terms.values()
        layers = next((tuple(term.layer_weights) for term in terms if isinstance(term, DistributionTerm)), None)
        if layers is None or not _can_tell(self.setup.references):
            return None
        try:
            return sum(self.setup.problem(one).statistics.kept(one, layers) for one in self.batches)
        except UsageError:
            return None

    def _told_time(self) -> str | None:
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
    """Return how many references targets have, and where they come from."""
    if isinstance(references, FacetedReferences):
        if isinstance(references.source, MinedReferences):
            return f"{references.count} of each facet, of {_described_mined(references.source)}"
        return f"{described(references.source, targets)}; {references.count} of each facet"
    if isinstance(references, NoReferences):
        return "none"
    if isinstance(references, DrawnReferences):
        return f"{references.count} images of each target, drawn by code"
    if isinstance(references, FolderReferences):
        return f"{_counted(references, targets)} images of each target from {printable(references.root)}"
    if isinstance(references, MinedReferences):
        return f"{references.count} of {_described_mined(references)}"
    return "handed over as tensors"


def _counted(references: FolderReferences, targets: Sequence[Target]) -> str:
    """How many images the first targets have, at most as many as are asked for."""
    try:
        counts = [min(references.count, references.available(target)) for target in targets[:TARGETS_SHOWN]]
    except UsageError:  # whoever reads the images tells it
        return str(references.count)
    few, many = min(counts), max(counts)
    return str(few) if few == many else f"{few} to {many}"


def _described_mined(references: MinedReferences) -> str:
    folder = f"{len(references.folder.paths)} images of {printable(references.folder.root)}"
    state = "mined" if references.is_mined() else "to be mined"
    plural = {"patch": "patches"}.get(references.region, f"{references.region}s")
    return f"the {plural} that drive each unit most, among {folder} ({state})"


def _can_tell(references: References) -> bool:
    """Whether nothing has to be mined to know what the statistics depend on."""
    source = references.source if isinstance(references, FacetedReferences) else references
    return not isinstance(source, NoReferences) and not (isinstance(source, MinedReferences) and not source.is_mined())


def _wrapped(name: str, text: str) -> str:
    wrapped = textwrap.wrap(text, WIDTH - NAMES, break_long_words=False, break_on_hyphens=False)
    return f"\n{' ' * NAMES}".join([f"{name:{NAMES}}{wrapped[0]}", *wrapped[1:]])
