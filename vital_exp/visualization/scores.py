"""The evaluation at the end of a run. Judges are loaded at its start, so that errors in judges appear at once."""

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

BASIC = "basic"  # a value of evaluation.metrics: the metrics that need a few forward passes only
EVALUATION = ".hydra/evaluation.json"  # the last evaluation, with a hash of its inputs

Row = dict[str, float | int | str]
Pixels = Callable[[Sequence[Target]], Tensor]  # returns the pictures of targets, (N, C, H, W), as their files hold them


@dataclass
class Scores:
    """The metrics of a run's pictures.

    Attributes:
        rows: metrics of each target, as in metrics.csv.
        metrics: as in metrics.json.
    """

    rows: list[Row] = field(default_factory=list)
    metrics: dict[str, Any] = field(default_factory=dict)


class Evaluator:
    """Computes the metrics that a run's configuration names; none where evaluation is disabled.

    Args:
        setup: of the run.
        targets: of the run.

    Raises:
        UsageError: a judge that is unknown, or that has other classes than the network.
    """

    def __init__(self, setup: RunSetup, targets: Sequence[Target]) -> None:
        self.setup, self.network = setup, setup.network
        self.keys: Mapping[str, Any] = setup.recorded["evaluation"]
        self.judges = self._load_judges(targets)

    def _load_judges(self, targets: Sequence[Target]) -> dict[str, VisionNetwork]:
        of_classes = targets[0].layer is None
        # For hidden units judges give embeddings, which basic metrics do not use.
        needed = self.network.class_names is not None if of_classes else self.keys["metrics"] != BASIC
        if not self.keys["enabled"] or not needed:
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
        """Return the scores of finished pictures.

        The scores of an earlier start of the run are read from the folder if their inputs have not changed.

        Args:
            targets: of the finished pictures.
            results: lines of results.jsonl by target.
            pixels: returns the pictures of targets.
            folder: the run folder, in which the scores are written; None for none.
        """
        if not self.keys["enabled"] or not targets:
            return Scores()
        asked = self._hash_of_inputs(targets, results)
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

    def _hash_of_inputs(self, targets: list[Target], results: Mapping[str, Mapping[str, Any]]) -> str:
        """Return a hash of all that an evaluation depends on: settings, pictures, references, judges, version."""
        content = {
            "version": version_of("vital-exp"),
            **{key: self.setup.recorded[key] for key in ("evaluation", "references")},
            "results": [results[target.name] for target in targets],
            "networks": [f"{identity_of(one).key} {one.head}" for one in (self.network, *self.judges.values())],
            "images": [self._hash_of_images(target) for target in targets],
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()

    def _hash_of_images(self, target: Target) -> str | None:
        """Return a hash of a target's references; None where there are none."""
        try:
            return self.setup.references.fingerprint(target)
        except UsageError:
            return None

    def _measured(self, targets: list[Target], results: Mapping[str, Mapping[str, Any]], pixels: Pixels) -> Scores:
        """Return the metrics of ``evaluation.metrics``, computed as by vital-evaluate."""
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
        """Return, for classes, entries of metrics.json that say why a network has no judgement of them."""
        of_classes = targets[0].kind == "class" and self.network.class_names is not None
        return unjudged(self.network, self.judges, rows) if of_classes else {}

    def _rows(self, targets: list[Target], results: Mapping[str, Mapping[str, Any]], pixels: Pixels) -> list[Row]:
        """Return the basic metrics of each target: recognition of classes, activation of hidden units."""
        if any(target.kind != "class" for target in targets):
            activations = [results[target.name]["activation"] for target in targets]
            return activation_rows(targets, activations, self.setup.references)
        if self.network.class_names is None:
            return []
        rows = []
        for start in range(0, len(targets), PICTURES_PER_PASS):  # thousands of pictures do not fit into memory
            some = targets[start : start + PICTURES_PER_PASS]
            rows += recognition(self.network, self.judges, some, in_unit(pixels(some)))
        return rows


def _known(folder: RunFolder, asked: str) -> Scores | None:
    """Return the scores of an earlier start with the same inputs, so that a resumed sweep does not repeat them."""
    names = (EVALUATION, METRICS, ROWS)
    if not all((folder.path / name).is_file() for name in names):
        return None
    try:
        known = folder.load_json(EVALUATION)
    except UsageError:  # a damaged file: the scores are computed again
        return None
    same = isinstance(known, dict) and known.get("asked") == asked
    return Scores(known["rows"], known["metrics"]) if same else None
