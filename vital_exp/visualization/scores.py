"""The evaluation at the end of a run: judges first, so that a mistake in one does not wait for the pictures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from vital_exp.errors import UsageError
from vital_exp.evaluation.activation import activation_rows
from vital_exp.evaluation.recognition import PICTURES_PER_PASS, check_judge, recognition, summarise, unjudged
from vital_exp.evaluation.table import METRICS, ROWS, write_scores
from vital_exp.images.output import in_unit
from vital_exp.models.identity import begin_call, identity_of
from vital_exp.models.named import named_network
from vital_exp.models.network import VisionNetwork
from vital_exp.runs.folder import RunFolder
from vital_exp.runs.provenance import version_of
from vital_exp.setup.run_setup import RunSetup
from vital_exp.targets.unit import Target

BASIC = "basic"  # evaluation.metrics: what a few forward passes tell
EVALUATION = ".hydra/evaluation.json"  # the last one, and what it was of

Row = dict[str, float | int | str]
Pixels = Callable[[Sequence[Target]], Tensor]  # the pictures of targets as their files hold them, (N, 3, H, W) uint8


@dataclass
class Scores:
    """What the metrics say of a run's pictures.

    Attributes:
        rows: per target, as in metrics.csv.
        metrics: as in metrics.json.
    """

    rows: list[Row] = field(default_factory=list)
    metrics: dict[str, Any] = field(default_factory=dict)


class Evaluator:
    """Computes the metrics that a run's configuration names; nothing where evaluation is off.

    Args:
        setup: of the run.
        targets: of the run.

    Raises:
        UsageError: a judge that is unknown, or that does not know the classes.
    """

    def __init__(self, setup: RunSetup, targets: Sequence[Target]) -> None:
        self.setup, self.network = setup, setup.network
        self.keys: Mapping[str, Any] = setup.recorded["evaluation"]
        self.judges = self._load_judges(targets)

    def _load_judges(self, targets: Sequence[Target]) -> dict[str, VisionNetwork]:
        of_classes = targets[0].layer is None
        # Of hidden units judges are asked for an embedding, which basic metrics do not use.
        asked = self.network.class_names is not None if of_classes else self.keys["metrics"] != BASIC
        if not self.keys["enabled"] or not asked:
            return {}
        judges = [named_network(spec, self.setup.cache_dir, "evaluation.judges") for spec in self.keys["judges"]]
        for judge in judges:
            if of_classes:
                check_judge(judge, self.network)
            begin_call(judge, self.setup.cache)
        return {judge.name: judge.to(self.network.device) for judge in judges}

    def scores(
        self, targets: list[Target], results: Mapping[str, Mapping[str, Any]], pixels: Pixels, folder: RunFolder | None
    ) -> Scores:
        """Return the scores of finished pictures, from an earlier start of the run where nothing has changed since.

        Args:
            targets: of the finished pictures.
            results: a line of results.jsonl by target.
            pixels: returns pictures.
            folder: of the run; the scores are written into it.
        """
        if not self.keys["enabled"] or not targets:
            return Scores()
        asked = self._asked_of(targets, results)
        if folder and (known := _known(folder, asked)):
            return known
        if self.keys["metrics"] == BASIC:
            rows = self._rows(targets, results, pixels)
            scores = Scores(rows, {**summarise(rows), **self._unjudged(targets, rows)})
        else:
            scores = self._measured(targets, results, pixels)
        if folder and scores.rows:
            write_scores(folder.path, scores.metrics, scores.rows)
            folder.save_json(EVALUATION, {"asked": asked, "rows": scores.rows, "metrics": scores.metrics})
        return scores

    def _asked_of(self, targets: list[Target], results: Mapping[str, Mapping[str, Any]]) -> str:
        """A hash of all an evaluation depends on: its settings, pictures, references, judges, and this version."""
        content = {
            "version": version_of("vital-exp"),
            **{key: self.setup.recorded[key] for key in ("evaluation", "references")},
            "results": [results[target.name] for target in targets],
            "networks": [f"{identity_of(one).key} {one.head}" for one in (self.network, *self.judges.values())],
            "images": [self._images_of(target) for target in targets],
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()

    def _images_of(self, target: Target) -> str | None:
        """A hash of a target's natural images; None where there are none."""
        try:
            return self.setup.references.fingerprint(target)
        except UsageError:
            return None

    def _measured(self, targets: list[Target], results: Mapping[str, Mapping[str, Any]], pixels: Pixels) -> Scores:
        """The metrics that vital-evaluate computes."""
        from vital_exp.evaluation.metrics import chosen
        from vital_exp.evaluation.pictures import PictureSet
        from vital_exp.runs.evaluate import evaluate_pictures, settings_of

        keys, judges = self.keys, list(self.judges.values())
        shown = PictureSet(targets, pixels(targets), [dict(results[target.name]) for target in targets])
        metrics = chosen(keys["metrics"], "evaluation.metrics")
        table = evaluate_pictures(
            *(self.network, shown, self.setup.references, judges, metrics, keys["features"], settings_of(keys)),
            self.setup.cache_dir,
            readout=self.setup.readout(targets) if targets[0].is_direction else None,
            keep=self.setup.cache is not None,
            progress=self.setup.progress,
        )
        return Scores(table.rows, table.metrics)

    def _unjudged(self, targets: list[Target], rows: list[Row]) -> dict[str, Any]:
        """Why classes are not recognised, by whoever has no opinion of them."""
        of_classes = targets[0].kind == "class" and self.network.class_names is not None
        return unjudged(self.network, self.judges, rows) if of_classes else {}

    def _rows(self, targets: list[Target], results: Mapping[str, Mapping[str, Any]], pixels: Pixels) -> list[Row]:
        """What metrics.csv says of each target: who recognises a class, how strongly a hidden unit is driven."""
        if any(target.kind != "class" for target in targets):
            activations = [results[target.name]["activation"] for target in targets]
            return activation_rows(targets, activations, self.setup.references)
        if self.network.class_names is None:
            return []
        rows = []
        for start in range(0, len(targets), PICTURES_PER_PASS):  # thousands do not fit into memory
            some = targets[start : start + PICTURES_PER_PASS]
            rows += recognition(self.network, self.judges, some, in_unit(pixels(some)))
        return rows


def _known(folder: RunFolder, asked: str) -> Scores | None:
    """The scores of an earlier start: a sweep that goes on does not judge its finished jobs again."""
    names = (EVALUATION, METRICS, ROWS)
    if not all((folder.path / name).is_file() for name in names):
        return None
    try:
        known = folder.load_json(EVALUATION)
    except UsageError:  # damaged: it is only a copy
        return None
    same = isinstance(known, dict) and known.get("asked") == asked
    return Scores(known["rows"], known["metrics"]) if same else None
